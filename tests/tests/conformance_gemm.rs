//! Every GEMM and few-row kernel of every ISA level of this machine, against f64, over shapes around every tile edge,
//! operands flush against guard pages.

use half::{bf16, f16};
use proptest::prelude::*;
use ttft_kernels::{
    Backend, DType, Element, Engine, Format, Isa, Mat, MatMut, Mul, Options, Output, Product, Weight,
    guard::{Flush, Guarded},
    kernels_of,
};
use ttft_tests::{EPS, cases, dot_bound, engine, isas, small, threads, values};

/// What `linear` writes to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Out {
    Store,
    Bias,
    Add,
    SwiGlu,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// Elements between rows of x and of y beyond their columns.
    pad: usize,
    out: Out,
    w: DType,
    flush: Flush,
}

enum Stored {
    F32(Guarded<f32>),
    F16(Guarded<f16>),
    BF16(Guarded<bf16>),
}

impl Stored {
    fn new(dtype: DType, data: &[f32], flush: Flush) -> Stored {
        match dtype {
            DType::F32 => Stored::F32(Guarded::new(data, flush)),
            DType::F16 => Stored::F16(Guarded::new(&data.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>(), flush)),
            DType::BF16 => {
                Stored::BF16(Guarded::new(&data.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>(), flush))
            }
        }
    }

    fn weight(&self, n: usize, k: usize) -> Weight<'_> {
        self.weight_by(n, k, 1)
    }

    /// Every `step`-th row.
    fn weight_by(&self, n: usize, k: usize, step: usize) -> Weight<'_> {
        let all = if n > 0 { (n - 1) * step + 1 } else { 0 };
        match self {
            Stored::F32(d) => Weight::F32(Mat::new(d.as_slice(), all, k).rows_step(0, n, step)),
            Stored::F16(d) => Weight::F16(Mat::new(d.as_slice(), all, k).rows_step(0, n, step)),
            Stored::BF16(d) => Weight::BF16(Mat::new(d.as_slice(), all, k).rows_step(0, n, step)),
        }
    }
}

/// Exact `x W^T` and the bound on an f32 evaluation of it, for each element.
fn oracle(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<(f64, f64)> {
    let dot = |i: usize, j: usize| {
        let (mut s, mut a) = (0.0, 0.0);
        for (x, w) in x[i * k..][..k].iter().zip(&w[j * k..][..k]) {
            let p = f64::from(*x) * f64::from(*w);
            s += p;
            a += p.abs();
        }
        (s, dot_bound(k, a))
    };
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

/// Runs one case and compares every element; the gaps between rows must stay as they were.
fn check<A: Element>(e: &Engine, c: Case) {
    check_by::<A>(e, c, 1);
}

/// [`check`], with every `step`-th row of a matrix for W, the others of which are NaN.
fn check_by<A: Element>(e: &Engine, c: Case, step: usize) {
    let Case { m, n, k, pad, out, w: dtype, flush } = c;
    let seed = (m * 31 + n * 7 + k) as u64;
    let (xs, ws) = (values(seed, m * k, A::DTYPE), values(seed + 1, n * k, dtype));
    let bias = values(seed + 2, n, DType::F32);
    let cols = if out == Out::SwiGlu { n / 2 } else { n };
    let y0 = values(seed + 3, m * (cols + pad), DType::BF16);

    // What lies between the rows of x must not matter.
    let at = |i: usize| if i % (k + pad) < k { xs[i / (k + pad) * k + i % (k + pad)] } else { f32::NAN };
    let padded: Vec<A> = (0..m * (k + pad)).map(|i| A::from_f32(at(i))).collect();
    let xg = Guarded::new(&padded, flush);
    let x = Mat::new(xg.as_slice(), m, k + pad).cols_at(0, k);
    // What is gated and what it is multiplied with are two matrices.
    let (first, second) = ws.split_at(cols * k);
    let spread = |w: &[f32]| -> Vec<f32> {
        let row = |(i, row): (usize, &[f32])| {
            let between = if i > 0 { (step - 1) * k } else { 0 };
            std::iter::repeat_n(f32::NAN, between).chain(row.to_vec()).collect::<Vec<_>>()
        };
        w.chunks_exact(k).enumerate().flat_map(row).collect()
    };
    let [wg, vg] = [first, second].map(|w| Stored::new(dtype, &spread(w), flush));
    let mut y32 = Guarded::new(&y0, flush);
    let mut ya = Guarded::new(&y0.iter().map(|v| A::from_f32(*v)).collect::<Vec<_>>(), flush);
    let y = MatMut::new(y32.as_mut_slice(), m, cols + pad).cols_at(0, cols);
    let target = match out {
        Out::Store => Output::Store(y),
        Out::Bias => Output::Bias(y, &bias),
        Out::Add => Output::Add(y),
        Out::SwiGlu => {
            Output::SwiGlu(MatMut::new(ya.as_mut_slice(), m, cols + pad).cols_at(0, cols), vg.weight_by(cols, k, step))
        }
    };
    e.linear(x, wg.weight_by(cols, k, step), target).unwrap();

    let exact = oracle(&xs, &ws, m, n, k);
    for (at, before) in y0.iter().enumerate() {
        let (i, j, before) = (at / (cols + pad), at % (cols + pad), f64::from(*before));
        let found = f64::from(if out == Out::SwiGlu { ya.as_slice()[at].to_f32() } else { y32.as_slice()[at] });
        let (want, bound) = if j >= cols {
            (before, 0.0)
        } else {
            let (s, b) = exact[i * n + j];
            match out {
                Out::Store => (s, b),
                Out::Bias => {
                    // The bias may be added first, last or in between: it takes part in every rounding.
                    let t = f64::from(bias[j]);
                    (s + t, b + dot_bound(k, t.abs()) + EPS * (s + t).abs())
                }
                Out::Add => (s + before, b + EPS * (b + (s + before).abs())),
                Out::SwiGlu => {
                    let (t, bt) = exact[i * n + j + cols];
                    let silu = |x: f64| x / (1.0 + (-x).exp());
                    let want = silu(s) * t;
                    // |silu'| <= 1.1; exp within 2 ulp and a few more roundings; then the rounding to A.
                    let last = if A::DTYPE == DType::BF16 { 1.0 / 256.0 } else { EPS };
                    let inner = 1.1 * b * (t.abs() + bt) + silu(s).abs() * bt + 16.0 * EPS * want.abs();
                    (want, inner + last * (want.abs() + inner) + f64::from(f32::MIN_POSITIVE))
                }
            }
        };
        assert!(
            (found - want).abs() <= bound,
            "{c:?} at [{i}][{j}]: expected {want}, found {found}, bound {bound:e}, kernels {:?}",
            e.take_used()
        );
    }
}

fn all_types(e: &Engine, base: Case) {
    for w in [DType::F32, DType::F16, DType::BF16] {
        check::<f32>(e, Case { w, ..base });
        check::<bf16>(e, Case { w, ..base });
    }
}

/// Sizes just below, at and above a tile edge.
fn around(edge: usize) -> [usize; 3] {
    [edge.saturating_sub(1).max(1), edge, edge + 1]
}

#[test]
fn every_kernel_around_its_tile_edges() {
    for isa in isas() {
        for kernel in kernels_of(isa).into_iter().filter(|k| k.isa == isa) {
            for &threads in threads(&[1, 2]) {
                let e = Engine::new(&Options {
                    isa: Some(isa),
                    threads: Some(threads),
                    gemm_kernel: Some(kernel.name.to_owned()),
                    ..Options::default()
                })
                .unwrap();
                for m in around(kernel.mr).into_iter().chain([2 * kernel.mr + 1]) {
                    for n in around(kernel.nr).into_iter().chain([5 * kernel.nr + 2]) {
                        for k in [1, 2, 3, 17] {
                            let flush = if (m + n + k) % 2 == 0 { Flush::End } else { Flush::Start };
                            let c = Case { m, n, k, pad: (m + k) % 3, out: Out::Store, w: DType::BF16, flush };
                            check::<bf16>(&e, c);
                            if k == 17 {
                                all_types(&e, Case { out: Out::Add, ..c });
                                all_types(&e, Case { n: n + n % 2, out: Out::SwiGlu, ..c });
                                all_types(&e, Case { out: Out::Bias, ..c });
                            }
                        }
                    }
                }
                // Around one call's longest K, and across several calls.
                for k in around(kernel.kc).into_iter().chain([2 * kernel.kc + 3]) {
                    let c =
                        Case { m: kernel.mr + 1, n: 2, k, pad: 1, out: Out::Store, w: DType::BF16, flush: Flush::End };
                    check::<bf16>(&e, c);
                    all_types(&e, Case { m: 2, out: Out::Bias, ..c });
                }
                // Rows of whole vectors, which tiles use as they lie or copy in the shadow of the multiply-adds: around the
                // stretches of the loop, over several chunks of K, with tiles that lack rows at the end of W.
                for (i, k) in [32, 96, 128, 160, 2 * kernel.kc, 2 * kernel.kc + 32].into_iter().enumerate() {
                    for n in around(kernel.nr).into_iter().chain([1, 5 * kernel.nr + 2]) {
                        for m in [1, kernel.mr, 2 * kernel.mr + 1] {
                            let out = [Out::Store, Out::Bias, Out::Add, Out::SwiGlu][(i + n + m) % 4];
                            let flush = if (i + m) % 2 == 0 { Flush::End } else { Flush::Start };
                            let n = if out == Out::SwiGlu { n + n % 2 } else { n };
                            let c = Case { m, n, k, pad: i % 3, out, w: DType::BF16, flush };
                            check::<bf16>(&e, c);
                            check::<f32>(&e, Case { w: DType::F32, ..c });
                        }
                    }
                }
                assert!(e.take_used().contains(&kernel.name), "{} was not exercised", kernel.name);
            }
        }
    }
}

/// Tile units take whole tiles: every number of rows of x, and numbers of features and elements around tiles and pairs of them, rows
/// of W one after another and not, on any number of threads.
#[test]
fn tile_units_around_every_edge() {
    for isa in isas().into_iter().filter(|i| [Isa::Amx, Isa::AmxPlain].contains(i)) {
        for (at, &threads) in threads(&[1, 2, 3, 7]).iter().enumerate() {
            let e = engine(isa, threads, Backend::Ours);
            for m in (1..=40).chain([63, 64, 65, 130, 300]) {
                for (i, n) in [1, 15, 16, 17, 31, 32, 33, 64, 65, 118].into_iter().enumerate() {
                    // One thread count for each, all of them for the shapes taken together.
                    if (m + i) % 4 != at && !small() {
                        continue;
                    }
                    for (j, k) in [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 130].into_iter().enumerate() {
                        let out = [Out::Store, Out::Bias, Out::Add, Out::SwiGlu][(m + i + j) % 4];
                        let flush = if (m + j) % 2 == 0 { Flush::End } else { Flush::Start };
                        let n = if out == Out::SwiGlu { n + n % 2 } else { n };
                        let c = Case { m, n, k, pad: (i + j) % 3, out, w: DType::BF16, flush };
                        check_by::<bf16>(&e, c, 1 + (m + i + j) % 3);
                    }
                }
            }
            let used = e.take_used();
            let tiles = kernels_of(isa).into_iter().filter(|k| k.isa == isa);
            tiles.for_each(|k| assert!(used.contains(&k.name), "{} was not chosen: {used:?}", k.name));
        }
    }
}

/// Products of BF16 are the tile unit's from two rows on; one row is streamed. F32 that is asked for is multiplied in F32.
#[test]
fn tile_units_take_products_of_bf16_alone() {
    for isa in isas().into_iter().filter(|i| [Isa::Amx, Isa::AmxPlain].contains(i)) {
        let e = engine(isa, 2, Backend::Ours);
        let tiles: Vec<_> = kernels_of(isa).into_iter().filter(|k| k.isa == isa).map(|k| k.name).collect();
        for m in [1, 2, 3, 16, 40, 200] {
            for w in [DType::F32, DType::F16, DType::BF16] {
                let c = Case { m, n: 40, k: 64, pad: 0, out: Out::Store, w, flush: Flush::End };
                check::<f32>(&e, c);
                assert!(e.take_used().iter().all(|k| !tiles.contains(k)), "f32 by {w:?}, {m} rows");
                check::<bf16>(&e, c);
                let used = e.take_used();
                let by_tiles = used.iter().all(|k| tiles.contains(k));
                assert_eq!(by_tiles, w == DType::BF16 && m > 1, "bf16 by {w:?}, {m} rows: {used:?}");
            }
        }
    }
}

#[test]
fn threads_share_rows_and_features() {
    for isa in isas() {
        // Groups of rows with one thread each, with several that pack x together, with unequal numbers; one group whose
        // threads pack all of x each; more threads than tiles.
        for (threads, m, n, k) in
            [(2, 130, 40, 70), (4, 130, 31, 64), (3, 130, 53, 40), (3, 200, 26, 33), (2, 40, 514, 32), (7, 65, 5, 48)]
        {
            let e = engine(isa, threads, Backend::Ours);
            for out in [Out::Store, Out::Bias, Out::Add, Out::SwiGlu] {
                let n = if out == Out::SwiGlu { n + n % 2 } else { n };
                let c = Case { m, n, k, pad: 1, out, w: DType::BF16, flush: Flush::End };
                check::<bf16>(&e, c);
                check::<f32>(&e, Case { w: DType::F32, ..c });
            }
        }
        // More of x than one pass takes.
        let e = engine(isa, 2, Backend::Ours);
        let c = Case { m: 270, n: 7, k: 8200, pad: 1, out: Out::Bias, w: DType::F32, flush: Flush::End };
        check::<f32>(&e, c);
        check::<bf16>(&e, Case { k: 16_416, out: Out::Add, w: DType::BF16, ..c });
    }
}

/// Both products of a pair are what they are alone, whatever their forms, and however few rows of W one asks for at a time.
fn check_beside<A: Element>(e: &Engine, w: DType, (m, n, k): (usize, usize, usize), few: (usize, usize, usize)) {
    let stored = |n: usize, k: usize, seed| Stored::new(w, &values(seed, n * k, w), Flush::End);
    let x =
        |m: usize, k: usize, seed| -> Vec<A> { values(seed, m * k, A::DTYPE).into_iter().map(A::from_f32).collect() };
    let (x, y, w, v) = (x(m, k, 1), x(few.0, few.2, 2), stored(n, k, 3), stored(2 * few.1, few.2, 4));
    let bias = values(5, n.max(few.1), DType::F32);
    for both in 0..4 {
        // By columns from `at` on; both alone, or one beside the other.
        let run = |beside: bool| {
            let (mut main, mut out) = (
                Guarded::new(&vec![0.5f32; m * n], Flush::End),
                Guarded::new(&vec![0.25f32; few.0 * few.1], Flush::End),
            );
            let mut gated = Guarded::new(&vec![A::default(); few.0 * few.1], Flush::Start);
            let mut at = 0;
            while at < few.1 {
                let cols = (few.1 - at).min(if beside { few.1.div_ceil(2) } else { few.1 });
                let to = MatMut::new(main.as_mut_slice(), m, n);
                let to = if both == 1 { Output::Bias(to, &bias[..n]) } else { Output::Store(to) };
                let many = Product { x: Mat::new(&x, m, k), w: w.weight(n, k), out: to };
                let v = v.weight(2 * few.1, few.2);
                let to = match both {
                    0 => Output::Store(MatMut::new(out.as_mut_slice(), few.0, few.1)),
                    1 => Output::Bias(MatMut::new(out.as_mut_slice(), few.0, few.1), &bias[..few.1]),
                    2 => Output::Add(MatMut::new(out.as_mut_slice(), few.0, few.1)),
                    _ => Output::SwiGlu(MatMut::new(gated.as_mut_slice(), few.0, few.1), v.rows_at(few.1, few.1)),
                };
                let few = Product { x: Mat::new(&y, few.0, few.2), w: v.rows_at(0, few.1), out: to }.cols_at(at, cols);
                if beside {
                    e.linear_beside(many, few).unwrap();
                } else {
                    e.linear(many.x, many.w, many.out).unwrap();
                    e.linear(few.x, few.w, few.out).unwrap();
                }
                at += cols;
            }
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (bits(main.as_slice()), bits(out.as_slice()), gated.as_slice().to_vec())
        };
        assert!(run(false) == run(true), "{both}, {m} x {n} x {k} beside {few:?} on {} threads", e.threads());
    }
}

#[test]
fn a_product_of_few_rows_beside_one_of_many() {
    for isa in isas() {
        for &threads in threads(&[1, 2, 5]) {
            let e = engine(isa, threads, Backend::Ours);
            // One slice and many, wide rows and narrow, several rows; two passes over W; fewer tiles than threads.
            for (many, few) in [
                ((70, 300, 256), (1, 700, 1024)),
                ((130, 96, 96), (1, 31, 5000)),
                ((64, 200, 4100), (3, 260, 512)),
                ((70, 7, 64), (2, 40, 70)),
            ] {
                for w in [DType::F32, DType::BF16] {
                    check_beside::<bf16>(&e, w, many, few);
                    check_beside::<f32>(&e, w, many, few);
                }
                assert!(e.take_used().len() > 1);
            }
            check_beside::<bf16>(&e, DType::BF16, (270, 7, 16_416), (1, 50, 64));
            // Neither is of many rows, both are.
            check_beside::<f32>(&e, DType::F16, (1, 40, 64), (1, 50, 64));
            check_beside::<f32>(&e, DType::F32, (140, 40, 64), (150, 50, 64));
        }
    }
}

#[test]
fn few_rows_of_every_type() {
    for isa in isas() {
        let e = engine(isa, 2, Backend::Ours);
        for m in (1..=9).chain([24, 31, 60]) {
            for n in [1, 2, 3, 5, 6, 7, 12, 64, 131] {
                for k in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 250] {
                    let flush = if (n + k) % 2 == 0 { Flush::End } else { Flush::Start };
                    all_types(&e, Case { m, n, k, pad: m % 2, out: Out::Store, w: DType::F32, flush });
                }
            }
            for out in [Out::Bias, Out::Add, Out::SwiGlu] {
                all_types(&e, Case { m, n: 46, k: 97, pad: 3, out, w: DType::F32, flush: Flush::End });
            }
        }
        // K around the stretch that a tile works on, W around a task.
        for (m, n, k) in [(5, 7, 1023), (2, 13, 1025), (7, 5, 2047), (1, 7, 2049), (3, 12, 4099), (4, 800, 200)] {
            for out in [Out::Store, Out::Add, Out::SwiGlu] {
                all_types(&e, Case { m, n: n + n % 2, k, pad: 1, out, w: DType::F32, flush: Flush::End });
            }
        }
        println!("{isa}: {:?}", e.take_used());
    }
}

/// Each few-row kernel, whatever the choice would be: numbers of rows around its tiles and groups, of x and of W, K that ends
/// within 16 bytes.
#[test]
fn every_few_row_kernel_around_its_edges() {
    for isa in isas() {
        let rows = ttft_kernels::isas().iter().find(|r| r.isa == isa).unwrap();
        for kernel in rows.dot {
            let options = Options {
                isa: Some(isa),
                threads: Some(2),
                gemm_kernel: Some(kernel.name.to_owned()),
                ..Options::default()
            };
            let e = Engine::new(&options).unwrap();
            for m in (1..=9).chain([12, 15, 16, 17, 33]) {
                for n in [1, 2, 5, 6, 7, 8, 13, 50] {
                    for k in [1, 3, 4, 5, 7, 8, 9, 15, 31, 32, 33, 70] {
                        let flush = if (m + n + k) % 2 == 0 { Flush::End } else { Flush::Start };
                        let out = [Out::Store, Out::Bias, Out::Add, Out::SwiGlu][(m + n + k) % 4];
                        let n = if out == Out::SwiGlu { n + n % 2 } else { n };
                        let (x, Format::Elements(w)) = kernel.takes();
                        let c = Case { m, n, k, pad: m % 2, out, w, flush };
                        if x == DType::F32 {
                            check::<f32>(&e, c);
                        }
                        check::<bf16>(&e, c);
                        let used = e.take_used();
                        assert_eq!(used, [kernel.name], "{c:?}");
                    }
                }
            }
        }
    }
}

/// Kernels that multiply in f32 keep subnormal operands and results; those that multiply in BF16 count them as zero.
#[test]
fn subnormal_numbers_follow_one_policy() {
    for isa in isas() {
        let row = ttft_kernels::isas().iter().find(|r| r.isa == isa).unwrap();
        let gemm = row.gemm.iter().map(|k| (k.name, DType::BF16, k.mul == Mul::Bf16));
        let dot = row.dot.iter().map(|k| {
            let (x, Format::Elements(w)) = k.takes();
            (k.name, w, (x, w) == (DType::BF16, DType::BF16))
        });
        for (name, dtype, flushes) in gemm.chain(dot) {
            let options =
                Options { isa: Some(isa), threads: Some(2), gemm_kernel: Some(name.to_owned()), ..Options::default() };
            let e = Engine::new(&options).unwrap();
            let (m, n, k) = (5, 13, 64);
            // A subnormal operand and a normal product; a normal operand and a subnormal sum.
            for (x, w) in [(2f32.powi(-130), 2f32.powi(15)), (2f32.powi(-125), 2f32.powi(-14))] {
                let (xs, ws) = (vec![bf16::from_f32(x); m * k], Stored::new(dtype, &vec![w; n * k], Flush::End));
                let mut y = vec![f32::NAN; m * n];
                e.linear(Mat::new(&xs, m, k), ws.weight(n, k), Output::Store(MatMut::new(&mut y, m, n))).unwrap();
                let want = if flushes { 0.0 } else { k as f32 * x * w };
                assert!(flushes || want > 0.0);
                assert_eq!(y, vec![want; m * n], "{name}: {x:e} by {w:e}");
                assert_eq!(e.take_used(), [name]);
            }
            // No thread's control register says otherwise.
            e.pool().run(|t| {
                let half = std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
                assert!(half > 0.0 && half * std::hint::black_box(2.0) > 0.0, "thread {t}");
            });
        }
    }
}

#[test]
fn the_gemm_crate_agrees() {
    let e = engine(Isa::best(), 2, Backend::Gemm);
    for (m, n, k) in [(1, 2, 1), (5, 34, 70), (33, 130, 129), (64, 258, 40)] {
        for out in [Out::Store, Out::Bias, Out::Add, Out::SwiGlu] {
            all_types(&e, Case { m, n, k, pad: 2, out, w: DType::F32, flush: Flush::End });
        }
    }
    assert_eq!(e.take_used(), ["gemm_crate_f32xf32_f32"]);
}

#[test]
fn empty_dimensions_are_no_work() {
    for backend in [Backend::Ours, Backend::Gemm] {
        let e = engine(Isa::best(), 2, backend);
        let w = [0.0f32; 6];
        let none = Output::Store(MatMut::new(&mut [], 0, 2));
        e.linear::<f32>(Mat::new(&[], 0, 3), Weight::F32(Mat::new(&w, 2, 3)), none).unwrap();
        let mut y = [7.0f32; 6];
        let zero = Output::Store(MatMut::new(&mut y, 3, 2));
        e.linear::<f32>(Mat::new(&[], 3, 0), Weight::F32(Mat::new(&[], 2, 0)), zero).unwrap();
        assert_eq!(y, [0.0; 6], "a sum over nothing is zero");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let e = engine(Isa::best(), 1, Backend::Ours);
    let (x, w) = ([0.0f32; 6], [0.0f32; 6]);
    let mut y = [0.0f32; 4];
    let mut refusal = |wn, wk, ym, yn, bias: Option<&[f32]>| {
        let y = MatMut::new(&mut y, ym, yn);
        let out = match bias {
            Some(b) => Output::Bias(y, b),
            None => Output::Store(y),
        };
        e.linear(Mat::new(&x, 2, 3), Weight::F32(Mat::new(&w, wn, wk)), out).unwrap_err().to_string()
    };
    assert_eq!(refusal(3, 2, 2, 2, None), "linear: columns of x (K): expected 2, found 3");
    assert_eq!(refusal(2, 3, 1, 4, None), "linear: rows of y (M): expected 2, found 1");
    assert_eq!(refusal(2, 3, 2, 2, Some(&[0.0])), "linear: length of the bias (N): expected 2, found 1");
}

#[test]
fn unknown_kernels_and_isas_name_what_there_is() {
    let bad = Engine::new(&Options { gemm_kernel: Some("gemm_fast".into()), ..Options::default() }).unwrap_err();
    assert!(bad.to_string().contains(kernels_of(Isa::best())[0].name), "{bad}");
    let unknown = Isa::parse("sse9").unwrap_err().to_string();
    assert!(unknown.contains("portable"), "{unknown}");
    for lacking in Isa::ALL.into_iter().filter(|i| !i.available()) {
        let e = Isa::parse(lacking.name()).unwrap_err().to_string();
        assert!(e.contains("not available") && e.contains("portable"), "{e}");
    }
    for threads in [0, 1025] {
        let e = Engine::new(&Options { threads: Some(threads), ..Options::default() }).unwrap_err().to_string();
        assert_eq!(e, format!("{threads} threads asked for; give 1 to 1024"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        m in 1usize..100, n in 1usize..140, k in 1usize..300, pad in 0usize..5, out in 0usize..4,
        w in 0usize..3, wide in any::<bool>(), threads in 1usize..4, start in any::<bool>(),
    ) {
        let out = [Out::Store, Out::Bias, Out::Add, Out::SwiGlu][out];
        let c = Case {
            m, n: if out == Out::SwiGlu { n + n % 2 } else { n }, k, pad, out,
            w: [DType::F32, DType::F16, DType::BF16][w],
            flush: if start { Flush::Start } else { Flush::End },
        };
        for isa in isas() {
            let e = engine(isa, threads, Backend::Ours);
            if wide { check::<f32>(&e, c) } else { check::<bf16>(&e, c) }
        }
    }
}
