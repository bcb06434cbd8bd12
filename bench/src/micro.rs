//! What the micro-benchmarks share: which cells they take, the machine's limits around every sample, contenders timed in
//! turn, and the table at the end.
//!
//! `bench/benches/common` puts it under criterion, which keeps the first contender's figures.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use comfy_table::{Table, presets};
use half::bf16;
use std::cell::RefCell;

use ttft_kernels::{DType, Element, Engine, Mat, MatMut, Output, Pool, Weight, peak::Fastest};

use crate::{console, knobs::RunKnobs, pages::Pages};

/// Set to `full`, takes every cell of a benchmark's list; the default is what a plain `cargo bench` has time for.
pub const SHAPES: &str = "TTFT_SHAPES";

/// Bytes that operands called cold rotate through, and that the probe of the bandwidth reads: several times the last cache.
const COLD: usize = 256 << 20;

/// Pause before a contender: the threads of the one before it spin no longer, then.
const SETTLE: Duration = Duration::from_millis(1);

/// How a micro-benchmark runs.
#[derive(Debug)]
pub struct Setup {
    /// What computes.
    pub engine: Engine,
    /// What the engine was asked to be.
    pub knobs: RunKnobs,
    /// Every cell of the list, not only the quick ones.
    pub full: bool,
    /// Each cell once, untimed, on little memory.
    pub smoke: bool,
}

impl Setup {
    /// As the environment says.
    ///
    /// # Errors
    /// A variable that does not parse; an engine that this CPU cannot have.
    pub fn from_env(smoke: bool) -> Result<Setup> {
        let knobs = RunKnobs::from_env()?;
        let full = std::env::var(SHAPES).is_ok_and(|v| v == "full");
        let engine = knobs.engine.engine()?;
        #[cfg(feature = "peers")]
        rayon::ThreadPoolBuilder::new().num_threads(engine.threads()).build_global()?;
        Ok(Setup { engine, knobs, full, smoke })
    }

    /// Bytes that cold operands rotate through.
    pub fn cold(&self) -> usize {
        if self.smoke { 0 } else { COLD }
    }
}

/// An ordinary value of either sign for place `i`; what it is does not matter to the time.
pub fn value<A: Element>(i: usize) -> A {
    A::from_f32((i.wrapping_mul(2_654_435_761) >> 8 & 2047) as f32 / 1024.0 - 1.0)
}

/// `[N, K]` of the weights of OpenELM-1.1B: proj_1, proj_2, qkv_proj and out_proj of the last layer; qkv_proj, then
/// out_proj and proj_2, of the first; the output head.
pub const WEIGHTS: [(usize, usize); 7] =
    [(16384, 2048), (2048, 8192), (3072, 2048), (2048, 2048), (1536, 2048), (2048, 1024), (32000, 2048)];

/// Most rows of activations that [`Products`] holds.
pub const MOST_ROWS: usize = 1024;

/// Another library's `y = x W^T`, on so many threads.
pub type PeerProduct<A> = fn(Mat<'_, A>, Mat<'_, A>, MatMut<'_, f32>, usize);

/// Element types of a product's activations and weights.
pub trait Operand: Element {
    /// The matrix as weights.
    fn weight(m: Mat<'_, Self>) -> Weight<'_>;

    /// Other libraries that multiply this type, if the feature `peers` brought them in.
    fn peers() -> Vec<(&'static str, PeerProduct<Self>)> {
        Vec::new()
    }
}

impl Operand for f32 {
    fn weight(m: Mat<'_, f32>) -> Weight<'_> {
        Weight::F32(m)
    }

    #[cfg(feature = "peers")]
    fn peers() -> Vec<(&'static str, PeerProduct<f32>)> {
        ttft_kernels::peers::PEERS.iter().map(|p| (p.name, p.product)).collect()
    }
}

impl Operand for bf16 {
    fn weight(m: Mat<'_, bf16>) -> Weight<'_> {
        Weight::BF16(m)
    }
}

/// Memory for a benchmark, which ends in words if there is too little.
fn pages<T: bytemuck::Pod>(len: usize, value: impl Fn(usize) -> T) -> Pages<T> {
    Pages::new(len, value).unwrap_or_else(|e| {
        console::end(Err(e.context("too little memory for this benchmark")));
        std::process::exit(1)
    })
}

/// Matrices of any shape out of one piece of memory larger than the last cache: each is cold, as weights are in a forward
/// pass.
#[derive(Debug)]
pub struct Cold<A> {
    data: Pages<A>,
    at: usize,
}

impl<A: Element> Cold<A> {
    /// Room for matrices of up to `largest` elements.
    pub fn new(setup: &Setup, largest: usize) -> Cold<A> {
        Cold { data: pages(largest.max(setup.cold() / size_of::<A>()), value), at: 0 }
    }

    /// The next matrix of `rows x cols`.
    pub fn next(&mut self, rows: usize, cols: usize) -> Mat<'_, A> {
        let size = rows * cols;
        let data = self.data.as_slice();
        if self.at + size > data.len() {
            self.at = 0;
        }
        self.at += size;
        Mat::new(&data[self.at - size..self.at], rows, cols)
    }
}

/// Operands of `y = x W^T` up to the largest of [`WEIGHTS`], W cold, x and y warm.
#[derive(Debug)]
pub struct Products<A> {
    weights: Cold<A>,
    x: Vec<A>,
    y: Pages<f32>,
}

impl<A: Operand> Products<A> {
    /// Writes them once.
    pub fn new(setup: &Setup) -> Products<A> {
        let most = |f: fn(&(usize, usize)) -> usize| WEIGHTS.iter().map(f).max().unwrap_or(0);
        Products {
            weights: Cold::new(setup, most(|(n, k)| n * k)),
            x: (0..MOST_ROWS * most(|w| w.1)).map(value).collect(),
            y: pages(MOST_ROWS * most(|w| w.0), |_| 0.0),
        }
    }

    /// The time of `product(x, W, y)` with the next weights.
    pub fn time(
        &mut self,
        (m, n, k): (usize, usize, usize),
        product: impl FnOnce(Mat<'_, A>, Mat<'_, A>, MatMut<'_, f32>),
    ) -> Duration {
        let (x, w) = (Mat::new(&self.x[..m * k], m, k), self.weights.next(n, k));
        let y = MatMut::new(&mut self.y.as_mut_slice()[..m * n], m, n);
        time(|| product(x, w, y))
    }

    /// The time of the engine's product with the next weights.
    pub fn linear(&mut self, e: &Engine, shape: (usize, usize, usize)) -> Duration {
        self.time(shape, |x, w, y| e.linear(x, A::weight(w), Output::Store(y)).expect("the shapes fit"))
    }
}

/// What the machine reached at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// GFLOP/s of multiply-adds.
    pub gflops: f64,
    /// GB/s of reading memory.
    pub gb_s: f64,
}

/// Measures the machine in some milliseconds. Unlike [`crate::machine::Probe`] it keeps its memory: nobody counts it here.
#[derive(Debug)]
pub struct Gauge {
    memory: Pages<u8>,
    /// What is fastest for each type that was asked for.
    fastest: RefCell<Vec<(DType, Fastest)>>,
}

impl Gauge {
    /// Writes its memory once.
    pub fn new(setup: &Setup) -> Gauge {
        Gauge { memory: pages(setup.cold().max(1 << 20), |_| 1), fastest: RefCell::default() }
    }

    /// The speed now, of multiply-adds in `dtype`.
    pub fn speed(&self, engine: &Engine, dtype: DType) -> Speed {
        let (memory, mut known) = (self.memory.as_slice(), self.fastest.borrow_mut());
        let fastest = match known.iter().find(|f| f.0 == dtype) {
            Some(f) => f.1,
            None => {
                known.push((dtype, Fastest::find(engine, dtype, memory)));
                known[known.len() - 1].1
            }
        };
        Speed { gflops: fastest.gflops(engine, 3, 2), gb_s: fastest.read_gb_s(engine, memory) }
    }
}

/// The samples of one cell: of each contender its seconds, taken in turn, and the machine's speed before each turn.
#[derive(Clone, Debug, Default)]
pub struct Series {
    turns: Vec<(Speed, Vec<f64>)>,
}

impl Series {
    /// Adds a turn: seconds of every contender.
    pub fn push(&mut self, speed: Speed, seconds: Vec<f64>) {
        self.turns.push((speed, seconds));
    }

    /// Drops all but the last `n` turns: what came before was warm-up.
    pub fn keep_last(&mut self, n: usize) {
        self.turns.drain(..self.turns.len().saturating_sub(n));
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Median seconds of contender `i`.
    pub fn seconds(&self, i: usize) -> f64 {
        median(self.turns.iter().map(|(_, s)| s[i]))
    }

    /// How many times as long as contender `j` contender `i` took: the median over turns of their ratio.
    pub fn ratio(&self, i: usize, j: usize) -> f64 {
        median(self.turns.iter().map(|(_, s)| s[i] / s[j]))
    }

    /// Median speed of the machine.
    pub fn speed(&self) -> Speed {
        let of = |f: fn(&Speed) -> f64| median(self.turns.iter().map(|(s, _)| f(s)));
        Speed { gflops: of(|s| s.gflops), gb_s: of(|s| s.gb_s) }
    }
}

/// The median; NaN of nothing.
pub fn median(x: impl IntoIterator<Item = f64>) -> f64 {
    let mut x: Vec<f64> = x.into_iter().collect();
    x.sort_by(f64::total_cmp);
    match x.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => x[n / 2],
        n => (x[n / 2 - 1] + x[n / 2]) / 2.0,
    }
}

/// Mean time of a call of each of `n` contenders: `iters` calls of one, then of the next, starting with another every
/// `turn`. Contenders that are not alone get a pause and an untimed call first, so that their threads are awake and those
/// of the one before are not.
pub fn in_turn(n: usize, turn: usize, iters: u64, mut call: impl FnMut(usize) -> Duration) -> Vec<Duration> {
    let mut out = vec![Duration::ZERO; n];
    for i in (0..n).map(|i| (i + turn) % n) {
        if n > 1 {
            thread::sleep(SETTLE);
            call(i);
        }
        out[i] = (0..iters).map(|_| call(i)).sum::<Duration>() / u32::try_from(iters.max(1)).unwrap_or(u32::MAX);
    }
    out
}

/// The time of `f`.
pub fn time<T>(f: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    std::hint::black_box(f());
    start.elapsed()
}

/// Seconds of one empty parallel region while the threads are awake: what every region costs at least.
pub fn region_seconds(pool: &Pool) -> f64 {
    const REGIONS: u32 = 1000;
    let batch = || time(|| (0..REGIONS).for_each(|_| pool.run(|_| ()))).as_secs_f64() / f64::from(REGIONS);
    batch();
    median((0..9).map(|_| batch()))
}

/// Prints a table, unless it is empty, in the form that Markdown takes, under a line that says what computed.
pub fn print(setup: &Setup, what: &str, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut t = Table::new();
    t.load_style(presets::ASCII_MARKDOWN);
    t.set_header(header.iter().copied());
    rows.into_iter().for_each(|row| {
        t.add_row(row);
    });
    if !t.is_empty() {
        let e = &setup.engine;
        let (isa, threads, backend) = (e.isa(), e.threads(), e.backend().name());
        println!(
            "\nISA {isa}, {threads} threads, backend {backend}; {what}; medians; peak and read bandwidth measured around \
             each sample\n{t}"
        );
    }
}

/// `part` of `whole` in percent, without the sign.
pub fn percent(part: f64, whole: f64) -> String {
    format!("{:.0}", 100.0 * part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_pair_their_contenders() {
        let mut s = Series::default();
        assert!(s.is_empty() && s.seconds(0).is_nan());
        // The machine halves its speed in the last two turns; the ratio does not move.
        for (gflops, k) in [(50.0, 99.0), (100.0, 1.0), (100.0, 1.0), (50.0, 2.0), (50.0, 2.0)] {
            s.push(Speed { gflops, gb_s: 1.0 }, vec![3.0 * k, 2.0 * k]);
        }
        s.keep_last(4);
        assert_eq!((s.seconds(0), s.seconds(1), s.ratio(0, 1)), (4.5, 3.0, 1.5));
        assert_eq!(s.speed(), Speed { gflops: 75.0, gb_s: 1.0 });
    }

    #[test]
    fn contenders_take_turns() {
        let mut calls = Vec::new();
        let times = in_turn(3, 1, 2, |i| {
            calls.push(i);
            Duration::from_secs(i as u64)
        });
        assert_eq!(calls, [1, 1, 1, 2, 2, 2, 0, 0, 0]);
        assert_eq!(times, [0, 1, 2].map(Duration::from_secs));
        let mut alone = 0;
        in_turn(1, 7, 4, |_| {
            alone += 1;
            Duration::ZERO
        });
        assert_eq!(alone, 4);
    }

    #[test]
    fn cold_matrices_follow_one_another() {
        let mut cold = Cold::<f32> { data: pages(10, |i| i as f32), at: 0 };
        let first = |m: Mat<'_, f32>| m.row(0)[0];
        assert_eq!([first(cold.next(2, 2)), first(cold.next(1, 4)), first(cold.next(2, 2))], [0.0, 4.0, 0.0]);
    }
}
