//! Attention at the heads of OpenELM-1.1B's last layer: prefill, causal, beside the qkv_proj of the same layer on the same
//! rows; and one query against a long cache, cold as a forward pass leaves it.
//!
//! FLOPs are those of the positions that a query sees. Ends with a table for each; `TTFT_SHAPES=full` takes all lengths,
//! and f32.

mod common;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use common::Group;
use criterion::Throughput;
use half::bf16;
use ttft_bench::{
    machine::compute_dtype,
    micro::{self, MOST_ROWS, Operand, Products, Series, Setup, percent, time, value},
};
use ttft_kernels::{AttnShape, DType, HeadCache, Mat, MatMut};

/// Query heads, KV heads, features of a head and `[N, K]` of qkv_proj, of the last layer.
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const QKV: (usize, usize) = (3072, 2048);

/// `(batch, positions)`, and whether a plain `cargo bench` takes it.
const PREFILL: [(usize, usize, bool); 10] = [
    (1, 64, true),
    (1, 128, false),
    (1, 256, true),
    (1, 512, false),
    (1, 1024, true),
    (1, 2048, false),
    (1, 4096, true),
    (4, 256, false),
    (8, 128, true),
    (64, 59, false),
];
const STEP: [(usize, usize, bool); 7] = [
    (1, 256, true),
    (1, 1024, false),
    (1, 4096, true),
    (1, 16384, false),
    (8, 128, false),
    (8, 1024, true),
    (64, 59, false),
];

/// What was measured at one shape.
struct Cell {
    dtype: DType,
    batch: usize,
    len: usize,
    series: Series,
    kernels: Vec<&'static str>,
}

fn main() -> ExitCode {
    common::main("attention", |group, setup| {
        let mut prefill = prefill::<bf16>(group, setup)?;
        let mut step = step::<bf16>(group, setup)?;
        if setup.full {
            prefill.extend(self::prefill::<f32>(group, setup)?);
            step.extend(self::step::<f32>(group, setup)?);
        }
        show_prefill(setup, &prefill);
        show_step(setup, &step);
        Ok(())
    })
}

/// Operands of one shape: a query each for the last `n` of `len` positions.
struct Attention<A> {
    shape: AttnShape,
    q: Vec<A>,
    out: Vec<A>,
    /// Keys and values, taken in turn.
    caches: Vec<(HeadCache<A>, HeadCache<A>)>,
    next: usize,
}

impl<A: Operand> Attention<A> {
    /// With caches of `bytes` in all, and one at least.
    fn new(batch: usize, n: usize, len: usize, bytes: usize) -> Attention<A> {
        let size = batch * n * HEADS * HEAD_DIM;
        let count = (bytes / (2 * batch * len * KV_HEADS * HEAD_DIM * size_of::<A>())).max(1);
        Attention {
            shape: AttnShape { batch, n, past: len - n },
            q: (0..size).map(value).collect(),
            out: vec![A::default(); size],
            caches: (0..count).map(|_| (cache(batch, len), cache(batch, len))).collect(),
            next: 0,
        }
    }

    fn time(&mut self, setup: &Setup) -> Duration {
        let (rows, cols) = (self.shape.batch * self.shape.n, HEADS * HEAD_DIM);
        let (k, v) = &self.caches[self.next];
        self.next = (self.next + 1) % self.caches.len();
        let (q, out) = (Mat::new(&self.q, rows, cols), MatMut::new(&mut self.out, rows, cols));
        time(|| setup.engine.attention(q, k, v, self.shape, out).expect("the shapes fit"))
    }
}

fn cache<A: Operand>(batch: usize, len: usize) -> HeadCache<A> {
    let mut c = HeadCache::new(batch, KV_HEADS, len, HEAD_DIM);
    for (b, h) in (0..batch).flat_map(|b| (0..KV_HEADS).map(move |h| (b, h))) {
        let mut head = c.head_mut(b, h);
        for p in 0..len {
            head.row_mut(p).iter_mut().enumerate().for_each(|(i, x)| *x = value((h * len + p) * HEAD_DIM + i));
        }
    }
    c
}

/// FLOPs of a causal pass over `len` positions: 2 d for each product with a key, and for its share of the values.
fn flops(batch: usize, len: usize) -> usize {
    4 * HEAD_DIM * HEADS * batch * (len * (len + 1) / 2)
}

/// Rows of the qkv_proj that a prefill is compared with: all of them, or as many as a call takes.
fn rows(batch: usize, len: usize) -> usize {
    (batch * len).min(MOST_ROWS)
}

fn selected(setup: &Setup, list: &[(usize, usize, bool)]) -> Vec<(usize, usize)> {
    list.iter().filter(|(.., quick)| setup.full || *quick).map(|&(batch, len, _)| (batch, len)).collect()
}

fn prefill<A: Operand>(group: &mut Group<'_>, setup: &Setup) -> Result<Vec<Cell>> {
    let e = &setup.engine;
    let mut products = None;
    let mut cells = Vec::new();
    for (batch, len) in selected(setup, &PREFILL) {
        let mul = compute_dtype(A::DTYPE, A::DTYPE);
        let throughput = Throughput::Elements(flops(batch, len) as u64);
        let mut kernels = Vec::new();
        let id = format!("prefill/{}/b{batch}/n{len}", A::DTYPE);
        let series = group.measure(
            &id,
            throughput,
            mul,
            || {
                let products = products.get_or_insert_with(|| Products::<A>::new(setup));
                Ok((Attention::<A>::new(batch, len, len, 0), products))
            },
            |(attention, products), turn, iters| {
                Ok(micro::in_turn(2, turn, iters, |who| match who {
                    0 => {
                        e.take_used();
                        let took = attention.time(setup);
                        kernels = e.take_used();
                        took
                    }
                    _ => products.linear(e, (rows(batch, len), QKV.0, QKV.1)),
                }))
            },
        )?;
        cells.extend(series.map(|series| Cell { dtype: A::DTYPE, batch, len, series, kernels }));
    }
    Ok(cells)
}

fn step<A: Operand>(group: &mut Group<'_>, setup: &Setup) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for (batch, len) in selected(setup, &STEP) {
        let throughput = Throughput::Bytes(bytes(A::DTYPE, batch, len) as u64);
        setup.engine.take_used();
        let prepare = || Ok(Attention::<A>::new(batch, 1, len, setup.cold()));
        let id = format!("step/{}/b{batch}/t{len}", A::DTYPE);
        let series = group.measure(&id, throughput, DType::F32, prepare, |attention, turn, iters| {
            Ok(micro::in_turn(1, turn, iters, |_| attention.time(setup)))
        })?;
        let kernels = setup.engine.take_used();
        cells.extend(series.map(|series| Cell { dtype: A::DTYPE, batch, len, series, kernels }));
    }
    Ok(cells)
}

/// Bytes of keys and values that a step reads.
fn bytes(dtype: DType, batch: usize, len: usize) -> usize {
    2 * batch * len * KV_HEADS * HEAD_DIM * dtype.size()
}

fn show_prefill(setup: &Setup, cells: &[Cell]) {
    let header = ["type", "batch x n", "ms", "GFLOP/s", "% of peak", "qkv_proj GFLOP/s", "% of qkv_proj", "kernels"];
    let row = |c: &Cell| {
        let gflops = flops(c.batch, c.len) as f64 / c.series.seconds(0) / 1e9;
        let gemm = (2 * rows(c.batch, c.len) * QKV.0 * QKV.1) as f64 / c.series.seconds(1) / 1e9;
        vec![
            c.dtype.name().to_owned(),
            format!("{} x {}", c.batch, c.len),
            format!("{:.3}", c.series.seconds(0) * 1e3),
            format!("{gflops:.0}"),
            percent(gflops, c.series.speed().gflops),
            format!("{gemm:.0}"),
            percent(gflops, gemm),
            c.kernels.join(", "),
        ]
    };
    micro::print(setup, "causal attention and qkv_proj in turn", &header, cells.iter().map(row));
}

fn show_step(setup: &Setup, cells: &[Cell]) {
    let header = ["type", "batch x T", "us", "GB/s", "% of read", "kernels"];
    let row = |c: &Cell| {
        let gb_s = bytes(c.dtype, c.batch, c.len) as f64 / c.series.seconds(0) / 1e9;
        vec![
            c.dtype.name().to_owned(),
            format!("{} x {}", c.batch, c.len),
            format!("{:.1}", c.series.seconds(0) * 1e6),
            format!("{gb_s:.1}"),
            percent(gb_s, c.series.speed().gb_s),
            c.kernels.join(", "),
        ]
    };
    micro::print(setup, "one query of each sequence against a cold cache", &header, cells.iter().map(row));
}
