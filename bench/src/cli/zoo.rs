use anyhow::Result;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ttft_kernels::DType;
use ttft_models::{Extent, Precision, RunSpec, cost::CostSystem, memory_of, zoo};
use ttft_reports::format::{bytes, flops, ratio};

use crate::{
    catalog::Catalog,
    console,
    scenario::{self, Arm, Named},
    weights::{Size, Weights},
};

/// List the networks, pairs, token prunings and rivals with their parameters, bytes on disk, FLOPs reductions and memory
#[derive(Args, Debug)]
pub struct Zoo {
    /// Number of sequences
    #[arg(long, value_name = "B", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Prompt tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 59, value_parser = clap::value_parser!(u32).range(1..=131_072))]
    prompt: u32,
    /// Type of the weights: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = DType::from_name)]
    dtype: DType,
    /// What is computed: first_token or full_network
    #[arg(long, value_name = "EXTENT", default_value = "first_token", value_parser = Extent::from_name)]
    extent: Extent,
}

const HEAD: [&str; 9] =
    ["system", "base", "parameters", "predictor", "on disk", "FLOPs", "FLOPs red., paper", "exact", "memory"];

impl Zoo {
    pub fn run(self) -> Result<()> {
        let weights = Weights::new(Some("unused".into()), self.dtype, 0, Size::Real)?;
        let (batch, prompt) = (self.batch as usize, self.prompt as usize);
        let precision = Precision::natural(self.dtype);
        let spec = RunSpec { batch, prompt, generate: 1, precision, extent: self.extent };
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(HEAD);
        let total = |cost: &CostSystem| cost.first_token(&spec).iter().map(|p| p.flops.total()).sum::<u64>();
        for arm in arms()? {
            let cost = weights.cost(&arm)?;
            let base = CostSystem::named(&arm.base, self.dtype)?;
            let own = arm.system == arm.base;
            let reduction = |of: f64, by: f64| if own { "-".to_owned() } else { ratio(of / by) };
            let predictor = cost.predictor_params();
            let networks = [&cost.base].into_iter().chain(cost.aux());
            let params = networks.map(|c| c.params()).sum::<u64>() + predictor;
            let paper = |c: &CostSystem| c.paper_flops(batch, prompt) as f64;
            table.add_row([
                arm.system.clone(),
                if own { "-".into() } else { arm.base.clone() },
                millions(params),
                if predictor > 0 { millions(predictor) } else { "-".into() },
                bytes(weights.bytes([&arm])?),
                flops(total(&cost)),
                match &cost.prediction {
                    // The paper's headline figure leaves out what is not the auxiliary, or the layers in its place.
                    Some(_) => ratio(cost.paper_reduction()),
                    None => reduction(paper(&base), paper(&cost)),
                },
                reduction(total(&base) as f64, total(&cost) as f64),
                bytes(memory_of(&cost, &spec).total()),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        console::print(format_args!(
            "{}\n\n{batch} x {prompt} tokens, {} weights, extent {}. A pair's parameters and bytes are those of both networks and \
             its predictor; networks are shared. FLOPs red., paper: by parameters, without predictor and base step; \
             exact: counted from shapes.",
            table.trim_fmt(),
            self.dtype,
            self.extent.name()
        ))
    }
}

fn millions(parameters: u64) -> String {
    format!("{:.1} M", parameters as f64 * 1e-6)
}

/// Every base with what is compared with it.
fn arms() -> Result<Vec<Arm>> {
    let mut bases: Vec<&str> = Vec::new();
    for pair in zoo::PAIRS {
        let base = zoo::pair(pair)?.base;
        if !bases.contains(&base) {
            bases.push(base);
        }
    }
    let of = |base: &str| {
        let pairs = zoo::PAIRS.into_iter().filter(|p| zoo::pair(p).is_ok_and(|p| p.base == base)).map(str::to_owned);
        // The paper prunes tokens of one base alone.
        let pruned = zoo::PRUNINGS.iter().filter(|_| base == "OE1.1B").map(|p| format!("{base}-{p}"));
        let others = zoo::SHARED.into_iter().chain(zoo::RIVALS);
        let others = others.filter(|name| name.starts_with(&format!("{base}-"))).map(str::to_owned);
        let systems: Vec<String> = pairs.chain(pruned).chain(others).collect();
        scenario::arms(&Catalog::default(), Some(base), &systems)
    };
    Ok(bases.into_iter().map(of).collect::<Result<Vec<_>>>()?.concat())
}
