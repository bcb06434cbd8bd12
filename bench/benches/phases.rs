//! The phases of OpenELM-1.1B's full prefill, and of its KV prediction by OpenELM-450M: time against the roofline bound of
//! their FLOPs and bytes at the peak and bandwidth measured around them, and what their parallel regions cost.
//!
//! The cost of a region is that of an empty one, measured in the same process while its threads are awake. Prompts of one
//! token are a base step alone. `TTFT_SHAPES=full` takes every cell of the list.

mod common;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use common::Group;
use criterion::Throughput;
use ttft_bench::{
    estimate::roofline,
    machine::compute_dtype,
    micro::{self, Series, Setup, percent},
    rig::Rig,
    scenario::Arm,
    weights::Size,
};
use ttft_models::{
    RunSpec,
    cost::{CostSystem, PhaseCost},
    plan,
};
use ttft_reports::schema::Kind;

const PAIR: &str = "OE1.1B-KVP-C-450M";

/// Ids that every network has, tiny ones too.
const VOCAB: usize = 512;

/// Batch, prompt, whether a plain `cargo bench` takes the full prefill, and the KV prediction.
const CELLS: [(usize, usize, bool, bool); 10] = [
    (1, 1, false, true),
    (8, 1, false, false),
    (64, 1, false, true),
    (1, 64, true, true),
    (1, 256, false, true),
    (1, 1024, false, false),
    (4, 64, false, false),
    (4, 256, false, false),
    (8, 128, false, false),
    (64, 59, false, false),
];

/// What was measured of one system.
struct Cell {
    system: String,
    batch: usize,
    prompt: usize,
    phases: Vec<PhaseCost>,
    /// Parallel regions of each phase.
    regions: Vec<usize>,
    /// The whole, then each phase.
    series: Series,
}

fn main() -> ExitCode {
    common::main("phases", |group, setup| {
        let mut scenario = setup.knobs.scenario()?;
        scenario.systems = vec![PAIR.into()];
        let arms = scenario.arms()?;
        let mut rig = None;
        let mut cells = Vec::new();
        for (batch, prompt, base, pair) in CELLS {
            let selected = |a: &&Arm| match a.kind {
                Kind::Base => setup.full || base,
                Kind::Kvp => setup.full || pair,
                _ => false,
            };
            for arm in arms.iter().filter(selected) {
                cells.extend(measure(group, setup, &mut rig, arm, batch, prompt)?);
            }
        }
        show(setup, &cells);
        Ok(())
    })
}

/// Times a system to its first token; criterion sees the whole, the table the phases.
fn measure(
    group: &mut Group<'_>,
    setup: &Setup,
    rig: &mut Option<Rig>,
    arm: &Arm,
    batch: usize,
    prompt: usize,
) -> Result<Option<Cell>> {
    let scenario = setup.knobs.scenario()?;
    let (precision, extent) = (scenario.precision(), scenario.extent());
    let spec = RunSpec { batch, prompt, generate: 1, precision, extent };
    let phases = CostSystem::named(&arm.system, scenario.dtype)?.first_token(&spec);
    let mul = compute_dtype(precision.dtype(), scenario.dtype);
    let ids: Vec<u32> = (0..batch * prompt).map(|i| (i % VOCAB) as u32).collect();
    let prepare = || {
        if rig.is_none() {
            let size = if setup.smoke { Size::Tiny } else { Size::Real };
            *rig = Some(Rig::new(&setup.knobs, size)?);
        }
        let system = rig.as_mut().context("a rig")?.system(arm)?;
        Ok(plan(&system, &spec)?)
    };
    let mut regions = Vec::new();
    let id = format!("{}/{}/b{batch}/p{prompt}", arm.system, arm.kind.name());
    let throughput = Throughput::Elements((batch * prompt) as u64);
    let series = group.measure(&id, throughput, mul, prepare, |inference, _, iters| {
        let mut sum = vec![Duration::ZERO; 1 + phases.len()];
        for _ in 0..iters {
            let times = inference.first_token(&setup.engine, &ids)?;
            let parts = [times.total].into_iter().chain(times.phases.iter().map(|p| p.time));
            sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
            regions = times.phases.iter().map(|p| p.regions).collect();
        }
        Ok(sum.into_iter().map(|s| s / u32::try_from(iters.max(1)).unwrap_or(u32::MAX)).collect())
    })?;
    Ok(series.map(|series| Cell { system: arm.system.clone(), batch, prompt, phases, regions, series }))
}

fn show(setup: &Setup, cells: &[Cell]) {
    let region = micro::region_seconds(setup.engine.pool());
    let header = [
        "system",
        "batch x prompt",
        "phase",
        "ms",
        "GFLOP/s",
        "% of peak",
        "GB/s",
        "bound ms",
        "% of bound",
        "regions",
        "% in regions",
    ];
    let row = |c: &Cell, i: usize| {
        let (cost, seconds, speed) = (&c.phases[i], c.series.seconds(1 + i), c.series.speed());
        let (flops, bytes) = (cost.flops.total() as f64, (cost.weight_bytes + cost.cache_bytes) as f64);
        let bound = roofline(flops, bytes, speed.gflops * 1e9, speed.gb_s * 1e9);
        vec![
            c.system.clone(),
            format!("{} x {}", c.batch, c.prompt),
            cost.phase.name().to_owned(),
            format!("{:.2}", seconds * 1e3),
            format!("{:.0}", flops / seconds / 1e9),
            percent(flops / seconds / 1e9, speed.gflops),
            format!("{:.1}", bytes / seconds / 1e9),
            format!("{:.2}", bound * 1e3),
            percent(bound, seconds),
            c.regions[i].to_string(),
            format!("{:.1}", 100.0 * c.regions[i] as f64 * region / seconds),
        ]
    };
    let rows = cells.iter().flat_map(|c| (0..c.phases.len()).map(move |i| row(c, i)));
    micro::print(setup, &format!("an empty parallel region takes {:.2} us", region * 1e6), &header, rows);
}
