//! `y = x W^T` at the shapes of OpenELM-1.1B, weights cold: each call takes the next of many matrices, more than the
//! last cache holds, as a forward pass does. x and y are warm.
//!
//! Ends with a table: the median rate, its share of the multiply-add peak and of the read bandwidth measured around it,
//! and the kernel that ran. `TTFT_SHAPES=full` takes every shape and M of the list; the engine is chosen by the same
//! variables as in `ttft bench`. With the cargo feature `peers`, other libraries are timed in turn with it.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use common::Group;
use criterion::Throughput;
use half::bf16;
use ttft_bench::{
    machine::compute_dtype,
    micro::{self, Operand, Products, Series, Setup, WEIGHTS, percent},
};
use ttft_kernels::DType;
use ttft_reports::summary::PROBE_BEATEN;

const ROWS: [usize; 7] = [1, 4, 16, 64, 128, 512, micro::MOST_ROWS];

/// The part of the list that a plain `cargo bench` takes.
fn quick(m: usize, n: usize, k: usize) -> bool {
    [1, 16, 64, 128, 512].contains(&m) && [(16384, 2048), (2048, 8192), (3072, 2048)].contains(&(n, k))
}

/// What was measured at one shape.
struct Cell {
    dtype: DType,
    shape: (usize, usize, usize),
    series: Series,
    /// Kernels of each contender: the engine, then the peers.
    who: Vec<String>,
}

fn main() -> ExitCode {
    common::main("gemm", |group, setup| {
        let mut cells = measure::<bf16>(group, setup)?;
        cells.extend(measure::<f32>(group, setup)?);
        show(setup, &cells);
        Ok(())
    })
}

fn measure<A: Operand>(group: &mut Group<'_>, setup: &Setup) -> Result<Vec<Cell>> {
    let (e, peers) = (&setup.engine, A::peers());
    let mut cells = Vec::new();
    // Made on first use: listing and filtering cost nothing.
    let mut operands = None;
    for m in ROWS {
        for (n, k) in WEIGHTS.into_iter().filter(|&(n, k)| setup.full || quick(m, n, k)) {
            let (shape, mul) = ((m, n, k), compute_dtype(A::DTYPE, A::DTYPE));
            let flops = Throughput::Elements((2 * m * n * k) as u64);
            e.take_used();
            let id = format!("{}/m{m}/n{n}k{k}", A::DTYPE);
            let series = group.measure(
                &id,
                flops,
                mul,
                || Ok(operands.get_or_insert_with(|| Products::<A>::new(setup))),
                |o, turn, iters| {
                    Ok(micro::in_turn(1 + peers.len(), turn, iters, |who| match who.checked_sub(1) {
                        None => o.linear(e, shape),
                        Some(i) => o.time(shape, |x, w, y| peers[i].1(x, w, y, e.threads())),
                    }))
                },
            )?;
            let mut who = vec![e.take_used().join(", ")];
            who.extend(peers.iter().map(|p| format!("crate {}", p.0)));
            cells.extend(series.map(|series| Cell { dtype: A::DTYPE, shape, series, who }));
        }
    }
    Ok(cells)
}

/// Rates by shape, with what bounds them.
fn show(setup: &Setup, cells: &[Cell]) {
    let mut header =
        vec!["weights", "M", "N x K", "ms", "GFLOP/s", "% of peak", "GB/s", "% of read", "kernel", "time / ttft"];
    let alone = cells.iter().all(|c| c.who.len() == 1);
    if alone {
        header.pop();
    }
    let gb_s = |c: &Cell, i: usize| (c.shape.1 * c.shape.2 * c.dtype.size()) as f64 / c.series.seconds(i) / 1e9;
    let row = |c: &Cell, i: usize| {
        let ((m, n, k), speed, seconds) = (c.shape, c.series.speed(), c.series.seconds(i));
        let gflops = (2 * m * n * k) as f64 / seconds / 1e9;
        let gb_s = gb_s(c, i);
        let mut row = vec![
            c.dtype.name().to_owned(),
            m.to_string(),
            format!("{n} x {k}"),
            format!("{:.3}", seconds * 1e3),
            format!("{gflops:.0}"),
            percent(gflops, speed.gflops),
            format!("{gb_s:.1}"),
            percent(gb_s, speed.gb_s),
            c.who[i].clone(),
        ];
        if !alone {
            row.push(format!("{:.2}", c.series.ratio(i, 0)));
        }
        row
    };
    let all = || cells.iter().flat_map(|c| (0..c.who.len()).map(move |i| (c, i)));
    let most = all().map(|(c, i)| gb_s(c, i) / c.series.speed().gb_s).fold(0.0, f64::max) - 1.0;
    let what = match most > PROBE_BEATEN {
        true => {
            format!("weights cold; a kernel reads {:.0}% faster than the probe, whose figure is too low", 100.0 * most)
        }
        false => "weights cold".to_owned(),
    };
    micro::print(setup, &what, &header, all().map(|(c, i)| row(c, i)));
}
