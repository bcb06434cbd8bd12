//! Checks the dispatcher: at every shape, its own choice in turn with every kernel of the registry that can serve it and that
//! `TTFT_KERNEL` can force, weights cold. A choice that is more than 5% behind the fastest is flagged; kernels that cannot be
//! forced are named below the table.
//!
//! Kernels that take more than twice as long as the choice in one call are left out. `TTFT_SHAPES=full` takes every shape.

mod common;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use common::Group;
use criterion::Throughput;
use half::bf16;
use ttft_bench::{
    knobs::EngineKnobs,
    machine::compute_dtype,
    micro::{self, Operand, Products, Series, Setup, WEIGHTS},
};
use ttft_kernels::{DType, Engine, Format, Isa, Mul, isas, kernels_of};

/// Rows, and whether a plain `cargo bench` takes them: where the choice changes.
const ROWS: [(usize, bool); 16] = [
    (1, false),
    (4, false),
    (6, true),
    (7, true),
    (8, false),
    (12, false),
    (16, true),
    (24, false),
    (32, false),
    (48, false),
    (63, true),
    (64, true),
    (96, false),
    (128, true),
    (256, false),
    (512, false),
];

/// Weights that a plain `cargo bench` takes.
const QUICK: (usize, usize) = (3072, 2048);

/// How far behind the fastest kernel the choice may be.
const BEHIND: f64 = 0.05;

/// A kernel takes part if it is at most so many times slower than the choice.
const SLOW: u32 = 2;

/// What was measured at one shape.
struct Cell {
    dtype: DType,
    shape: (usize, usize, usize),
    choice: Vec<&'static str>,
    /// The kernels behind the choice in `series`.
    kernels: Vec<&'static str>,
    series: Series,
}

fn main() -> ExitCode {
    common::main("dispatch", |group, setup| {
        let mut unforced = Vec::new();
        let mut cells = measure::<bf16>(group, setup, &mut unforced)?;
        cells.extend(measure::<f32>(group, setup, &mut unforced)?);
        show(setup, &cells, &unforced);
        Ok(())
    })
}

/// An engine for each kernel that takes activations and weights of this type, with the kernel's name. Those that no engine
/// can be forced to go to `unforced`.
fn forced<A: Operand>(setup: &Setup, unforced: &mut Vec<&'static str>) -> Result<Vec<(&'static str, Engine)>> {
    let isa = setup.engine.isa();
    let tiles = kernels_of(isa).into_iter().filter(|k| k.mul == Mul::F32 || A::DTYPE == DType::BF16).map(|k| k.name);
    // BF16 activations can be widened.
    let able = |(x, w): (DType, Format)| w == A::DTYPE.into() && (x == A::DTYPE || x == DType::F32);
    let level = |isa: Isa| isas().iter().find(|r| r.isa == isa);
    let levels = std::iter::successors(level(isa), |r| level(r.base?));
    let few_rows = levels.flat_map(|r| r.dot).filter(|k| able(k.takes())).map(|k| k.name);
    let mut engines = Vec::new();
    for name in tiles.chain(few_rows) {
        match (EngineKnobs { kernel: Some(name.into()), ..setup.knobs.engine.clone() }).engine() {
            Ok(engine) => engines.push((name, engine)),
            Err(e) if matches!(e.downcast_ref(), Some(ttft_kernels::Error::KernelUnknown { .. })) => {
                unforced.push(name)
            }
            Err(e) => return Err(e),
        }
    }
    Ok(engines)
}

fn measure<A: Operand>(group: &mut Group<'_>, setup: &Setup, unforced: &mut Vec<&'static str>) -> Result<Vec<Cell>> {
    let e = &setup.engine;
    let all = forced::<A>(setup, unforced)?;
    let mut cells = Vec::new();
    let mut operands = None;
    for (m, quick) in ROWS {
        for (n, k) in WEIGHTS.into_iter().filter(|w| setup.full || (quick && *w == QUICK)) {
            let shape = (m, n, k);
            let flops = Throughput::Elements((2 * m * n * k) as u64);
            let mut racing: Vec<&(&str, Engine)> = Vec::new();
            let mut choice = Vec::new();
            let series = group.measure(
                &format!("{}/m{m}/n{n}k{k}", A::DTYPE),
                flops,
                compute_dtype(A::DTYPE, A::DTYPE),
                || {
                    let o = operands.get_or_insert_with(|| Products::<A>::new(setup));
                    let mut second = |e: &Engine| [o.linear(e, shape), o.linear(e, shape)][1];
                    e.take_used();
                    let most = second(e).max(Duration::from_micros(50)) * SLOW;
                    choice = e.take_used();
                    racing = all.iter().filter(|(_, e)| second(e) <= most).collect();
                    Ok((o, racing.clone()))
                },
                |(o, racing), turn, iters| {
                    let engine = |who: usize| who.checked_sub(1).map_or(e, |i| &racing[i].1);
                    Ok(micro::in_turn(1 + racing.len(), turn, iters, |who| o.linear(engine(who), shape)))
                },
            )?;
            let kernels = racing.iter().map(|r| r.0).collect();
            cells.extend(series.map(|series| Cell { dtype: A::DTYPE, shape, choice, kernels, series }));
        }
    }
    Ok(cells)
}

fn show(setup: &Setup, cells: &[Cell], unforced: &[&str]) {
    let header = ["weights", "M", "N x K", "choice", "GFLOP/s", "fastest kernel", "GFLOP/s", "choice is behind by", ""];
    let row = |c: &Cell| {
        let (m, n, k) = c.shape;
        let rate = |i| format!("{:.0}", (2 * m * n * k) as f64 / c.series.seconds(i) / 1e9);
        let behind = |i: &usize| c.series.ratio(0, *i) - 1.0;
        let fastest = (1..=c.kernels.len()).max_by(|i, j| behind(i).total_cmp(&behind(j)));
        let (name, its, by) = match fastest {
            Some(i) => (c.kernels[i - 1], rate(i), behind(&i)),
            None => ("none near", String::new(), 0.0),
        };
        vec![
            c.dtype.name().to_owned(),
            m.to_string(),
            format!("{n} x {k}"),
            c.choice.join(", "),
            rate(0),
            name.to_owned(),
            its,
            format!("{:.1}%", 100.0 * by),
            if by > BEHIND { "(!)".to_owned() } else { String::new() },
        ]
    };
    micro::print(setup, "weights cold; kernels in turn", &header, cells.iter().map(row));
    let late = cells.iter().filter(|c| (1..=c.kernels.len()).any(|i| c.series.ratio(0, i) > 1.0 + BEHIND)).count();
    if !cells.is_empty() {
        println!("{late} of {} choices are more than {:.0}% behind", cells.len(), 100.0 * BEHIND);
        if !unforced.is_empty() {
            println!("not compared, for they cannot be forced: {}", unforced.join(", "));
        }
    }
}
