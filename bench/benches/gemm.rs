//! `y = x W^T` at the shapes of OpenELM-1.1B, weights cold: each sample takes the next of many matrices, more than the
//! last cache holds, as a forward pass does. x and y are warm.
//!
//! Ends with a table: the median rate, its share of the multiply-add peak and of the read bandwidth measured around it,
//! and the kernel that ran. `TTFT_SHAPES=full` takes every shape and M of the list; the engine is chosen by the same
//! variables as in `ttft bench`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use comfy_table::{Table, presets};
use criterion::{Criterion, SamplingMode, Throughput};
use half::bf16;
use ttft_bench::{
    criterion_args::CriterionArgs,
    knobs::RunKnobs,
    machine::{Probe, compute_dtype},
};
use ttft_kernels::{DType, Element, Engine, Mat, MatMut, Output, Weight};

/// `[N, K]` and what it is in OpenELM-1.1B.
const SHAPES: [(usize, usize, &str); 7] = [
    (16384, 2048, "proj_1 of the last layer"),
    (2048, 8192, "proj_2 of the last layer"),
    (3072, 2048, "qkv_proj of the last layer"),
    (2048, 2048, "out_proj of the last layer"),
    (1536, 2048, "qkv_proj of the first layer"),
    (2048, 1024, "out_proj, proj_2 of the first layer"),
    (32000, 2048, "output head"),
];
const ROWS: [usize; 7] = [1, 4, 16, 64, 128, 512, 1024];

/// The part of the list that a plain `cargo bench` takes.
fn quick(m: usize, n: usize, k: usize) -> bool {
    [1, 16, 64, 128, 512].contains(&m) && [(16384, 2048), (2048, 8192), (3072, 2048)].contains(&(n, k))
}

/// What was measured at one shape.
struct Cell {
    dtype: DType,
    m: usize,
    n: usize,
    k: usize,
    samples: Vec<f64>,
    /// GFLOP/s and GB/s of the machine around the samples.
    limits: Vec<(f64, f64)>,
    kernels: Vec<&'static str>,
}

/// Weights of one type in one piece of memory larger than the last cache, activations, and the probe.
struct Operands<A> {
    weights: Vec<A>,
    at: usize,
    x: Vec<A>,
    y: Vec<f32>,
    probe: Probe,
}

impl<A: Element> Operands<A> {
    fn new(engine: &Engine, smoke: bool) -> Self {
        let largest = SHAPES.iter().map(|(n, k, _)| n * k).max().unwrap_or(0);
        let cold = if smoke { 0 } else { 256 << 20 };
        // Ordinary values of both signs; what they are does not matter to the time.
        let value = |i: usize| A::from_f32((i.wrapping_mul(2_654_435_761) >> 8 & 2047) as f32 / 1024.0 - 1.0);
        let compute = compute_dtype(engine, A::DTYPE, A::DTYPE);
        Operands {
            weights: (0..largest.max(cold / size_of::<A>())).map(value).collect(),
            at: 0,
            x: (0..1024 * 8192).map(value).collect(),
            y: vec![0.0; 1024 * 32000],
            probe: Probe::new(if smoke { 1 << 20 } else { 256 << 20 }, compute),
        }
    }

    /// `iters` products, each with the next weights.
    fn time(&mut self, e: &Engine, c: &mut Cell, iters: u64, weight: for<'a> fn(Mat<'a, A>) -> Weight<'a>) -> Duration {
        let (gflops, read) = self.probe.speed(e);
        c.limits.push((gflops.unwrap_or(f64::NAN), read.unwrap_or(f64::NAN)));
        e.take_used();
        let size = c.n * c.k;
        let mut all = Duration::ZERO;
        for _ in 0..iters {
            if self.at + size > self.weights.len() {
                self.at = 0;
            }
            let w = weight(Mat::new(&self.weights[self.at..][..size], c.n, c.k));
            self.at += size;
            let y = MatMut::new(&mut self.y[..c.m * c.n], c.m, c.n);
            let start = Instant::now();
            e.linear(Mat::new(&self.x[..c.m * c.k], c.m, c.k), w, Output::Store(y)).expect("the shapes fit");
            all += start.elapsed();
        }
        c.samples.push(all.as_secs_f64() / iters as f64);
        c.kernels = e.take_used();
        all
    }
}

fn main() -> ExitCode {
    let args = CriterionArgs::parse(std::env::args().skip(1));
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(400))
        .configure_from_args();
    let knobs = RunKnobs::from_env().unwrap_or_else(|e| e.exit());
    let done = knobs.engine.engine().map(|engine| run(&mut criterion, &args, &engine));
    criterion.final_summary();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(criterion: &mut Criterion, args: &CriterionArgs, engine: &Engine) {
    let smoke = !args.runs() || args.test();
    let mut cells = Vec::new();
    measure::<bf16>(criterion, engine, smoke, &mut cells, of_bf16);
    measure::<f32>(criterion, engine, smoke, &mut cells, of_f32);
    if !smoke && !cells.is_empty() {
        println!("\n{}", table(engine, &cells));
    }
}

fn of_bf16(m: Mat<'_, bf16>) -> Weight<'_> {
    Weight::BF16(m)
}

fn of_f32(m: Mat<'_, f32>) -> Weight<'_> {
    Weight::F32(m)
}

fn measure<A: Element>(
    criterion: &mut Criterion,
    engine: &Engine,
    smoke: bool,
    cells: &mut Vec<Cell>,
    weight: for<'a> fn(Mat<'a, A>) -> Weight<'a>,
) {
    let full = std::env::var("TTFT_SHAPES").is_ok_and(|v| v == "full");
    // Filled on first use: listing and filtering cost nothing.
    let mut operands = None;
    let mut group = criterion.benchmark_group("gemm");
    group.sampling_mode(SamplingMode::Flat);
    for m in ROWS {
        for (n, k, _) in SHAPES {
            if !full && !quick(m, n, k) {
                continue;
            }
            let mut c = Cell { dtype: A::DTYPE, m, n, k, samples: vec![], limits: vec![], kernels: vec![] };
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            group.bench_function(format!("{}/m{m}/n{n}k{k}", A::DTYPE), |b| {
                let o = operands.get_or_insert_with(|| Operands::<A>::new(engine, smoke));
                b.iter_custom(|iters| o.time(engine, &mut c, iters, weight));
            });
            if !c.samples.is_empty() {
                cells.push(c);
            }
        }
    }
    group.finish();
}

/// Rates by shape, with what bounds them.
fn table(engine: &Engine, cells: &[Cell]) -> Table {
    let mut t = Table::new();
    t.load_style(presets::ASCII_MARKDOWN);
    t.set_header(["weights", "M", "N x K", "ms", "GFLOP/s", "% of peak", "GB/s", "% of read", "kernel"]);
    for c in cells {
        let median = |mut x: Vec<f64>| {
            x.sort_by(f64::total_cmp);
            x[x.len() / 2]
        };
        let time = median(c.samples.clone());
        let (flops, bytes) = ((2 * c.m * c.n * c.k) as f64, (c.n * c.k * c.dtype.size()) as f64);
        let peak = median(c.limits.iter().map(|l| l.0).collect());
        let read = median(c.limits.iter().map(|l| l.1).collect());
        t.add_row([
            c.dtype.name().to_owned(),
            c.m.to_string(),
            format!("{} x {}", c.n, c.k),
            format!("{:.3}", time * 1e3),
            format!("{:.0}", flops / time / 1e9),
            format!("{:.0}", 100.0 * flops / time / 1e9 / peak),
            format!("{:.1}", bytes / time / 1e9),
            format!("{:.0}", 100.0 * bytes / time / 1e9 / read),
            c.kernels.join(", "),
        ]);
    }
    println!(
        "ISA {}, {} threads; medians; weights cold; peak and read bandwidth measured around each sample",
        engine.isa(),
        engine.threads()
    );
    t
}
