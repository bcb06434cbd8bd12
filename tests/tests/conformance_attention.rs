//! Attention of every ISA level of this machine against f64: over panels, blocks of keys, groups, tails and threads, with
//! operands flush against guard pages and everything that must not be read poisoned with NaN.

use half::bf16;
use proptest::prelude::*;
use ttft_kernels::{
    AttnShape, Backend, DType, Element, Engine, HeadCache, Isa, Join, Mat, MatMut, Options, Query, edges,
    guard::{Flush, Guarded},
    kernels_of, reference,
};
use ttft_tests::{EPS, cases, dot_bound, engine, isas, threads, values};

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    n: usize,
    past: usize,
    kv_heads: usize,
    group: usize,
    d: usize,
    /// Positions of the cache after the last one in use.
    spare: usize,
    /// Elements between rows of q and of the output beyond their columns.
    pad: usize,
    /// Largest magnitude of q: how sharp the softmax is.
    sharp: f32,
    flush: Flush,
}

const PLAIN: Case =
    Case { batch: 1, n: 1, past: 0, kv_heads: 1, group: 1, d: 64, spare: 0, pad: 0, sharp: 4.0, flush: Flush::End };

/// A cache whose positions from `total` on are NaN.
fn cache<A: Element>(c: Case, seed: u64) -> (HeadCache<A>, Vec<f64>) {
    let (total, capacity) = (c.past + c.n, c.past + c.n + c.spare);
    let mut cache = HeadCache::new(c.batch, c.kv_heads, capacity, c.d);
    let mut flat = Vec::new();
    for b in 0..c.batch {
        for h in 0..c.kv_heads {
            let x = values(seed + (b * c.kv_heads + h) as u64, capacity * c.d, A::DTYPE);
            let mut head = cache.head_mut(b, h);
            for (t, x) in x.chunks_exact(c.d).enumerate() {
                let poison = |x: f32| if t < total { x } else { f32::NAN };
                head.row_mut(t).iter_mut().zip(x).for_each(|(y, x)| *y = A::from_f32(poison(*x)));
                flat.extend(x.iter().map(|x| f64::from(*x)));
            }
        }
    }
    (cache, flat)
}

/// The bound on an output, given it and the sum of the values' magnitudes by their probabilities, for queries, keys of `d` features
/// and at most so many of them.
fn bounds<A: Element>(q: &[f64], k: &[f64], d: usize, keys: usize) -> impl Fn(f64, f64) -> f64 + use<A> {
    // The relative error of a probability: its score's absolute error, twice (the maximum has one, too), then the
    // exponential's few ulp; P is rounded to BF16 where the ISA multiplies in BF16.
    let largest = |x: &[f64]| x.iter().fold(0f64, |m, x| m.max(x.abs()));
    let score = largest(q) * largest(k) * d as f64 / (d as f64).sqrt();
    let score_error = dot_bound(d, score) + 4.0 * EPS * score;
    let half = 1.0 / 512.0;
    let (p_rounding, out_rounding) = if A::DTYPE == DType::BF16 { (half + 8e-5, half) } else { (0.0, EPS) };
    let p_error = 2.0 * score_error + 8.0 * EPS + p_rounding;
    // What is below the normal numbers may be taken for zero: a probability, or a factor of a product. Values are below 1.
    let flushed = (keys + d) as f64 * f64::from(f32::MIN_POSITIVE);
    move |want, sum| {
        // Numerator and denominator each: the probabilities' error and that of the summation.
        let bound = sum * 2.0 * p_error + 2.0 * dot_bound(keys + 8, sum) + flushed;
        bound + out_rounding * (want.abs() + bound)
    }
}

fn check<A: Element>(e: &Engine, c: Case) {
    let seed = (c.n * 131 + c.past * 17 + c.d * 3 + c.group) as u64;
    let (k, k64) = cache::<A>(c, seed);
    let (v, v64) = cache::<A>(c, seed + 1000);
    let (rows, heads) = (c.batch * c.n, c.kv_heads * c.group);
    let (cols, stride) = (heads * c.d, heads * c.d + c.pad);
    let q: Vec<A> = values(seed + 2000, rows * cols, A::DTYPE).iter().map(|x| A::from_f32(x * c.sharp)).collect();
    let padded =
        |at: usize| if at % stride < cols { q[at / stride * cols + at % stride] } else { A::from_f32(f32::NAN) };
    let qg = Guarded::new(&(0..rows * stride).map(padded).collect::<Vec<A>>(), c.flush);
    let mut og = Guarded::new(&vec![A::from_f32(-7.0); rows * stride], c.flush);
    let shape = AttnShape { batch: c.batch, n: c.n, past: c.past };
    let out = MatMut::new(og.as_mut_slice(), rows, stride).cols_at(0, cols);
    e.attention(Mat::new(qg.as_slice(), rows, stride).cols_at(0, cols), &k, &v, shape, out).unwrap();

    let q64 = reference::widen(&q);
    let dims = (heads, c.kv_heads, k.capacity(), c.d);
    let want = reference::attention(&q64, &k64, &v64, shape, dims);
    let magnitudes = reference::attention(&q64, &k64, &v64.iter().map(|v| v.abs()).collect::<Vec<_>>(), shape, dims);
    let bound = bounds::<A>(&q64, &k64, c.d, c.past + c.n);
    for (at, found) in og.as_slice().iter().enumerate() {
        let (i, j) = (at / stride, at % stride);
        if j >= cols {
            assert_eq!(found.to_f32(), -7.0, "{c:?}: written between rows, at [{i}][{j}]");
            continue;
        }
        let (want, sum) = (want[i * cols + j], magnitudes[i * cols + j]);
        let bound = bound(want, sum);
        let found = f64::from(found.to_f32());
        assert!(
            (found - want).abs() <= bound,
            "{c:?} at [{i}][{j}]: expected {want}, found {found}, bound {bound:e}, kernels {:?}",
            e.take_used()
        );
    }
}

fn both(e: &Engine, c: Case) {
    check::<f32>(e, c);
    check::<bf16>(e, c);
}

/// Sizes just below, at and above an edge.
fn around(edge: usize) -> [usize; 3] {
    [edge.saturating_sub(1).max(1), edge, edge + 1]
}

#[test]
fn every_kernel_around_its_edges() {
    for isa in isas() {
        for kernel in kernels_of(isa).into_iter().filter(|k| k.isa == isa) {
            for &threads in threads(&[1, 2]) {
                let gemm_kernel = Some(kernel.name.to_owned());
                let e =
                    Engine::new(&Options { isa: Some(isa), threads: Some(threads), gemm_kernel, ..Options::default() })
                        .unwrap();
                // Rows around a panel, keys around a block, features around a tile.
                let (stream, block) = (edges::ATTENTION_STREAM_ROWS, edges::attention_keys(kernel));
                for n in around(kernel.mr).into_iter().chain([3 * kernel.mr + 1]).filter(|n| *n > stream) {
                    // The last key is the last of a block, or one more or less.
                    let ends = around(block).into_iter().chain([2 * block + 1]);
                    for past in ends.map(|end| end.saturating_sub(n)).chain([0]) {
                        both(&e, Case { n, past, d: 16, pad: 1, spare: n % 3, ..PLAIN });
                    }
                }
                for d in around(kernel.nr).into_iter().chain(around(2 * kernel.mr)) {
                    both(&e, Case { n: 20, past: 5, d, group: 2, flush: Flush::Start, ..PLAIN });
                }
                assert!(e.take_used().contains(&kernel.name), "{} was not exercised", kernel.name);
            }
        }
    }
}

#[test]
fn shapes_of_the_models() {
    for isa in isas() {
        for &threads in threads(&[1, 2, 3]) {
            let e = engine(isa, threads, Backend::Ours);
            // Prefill, continued prefill, a decode step, a batch of them.
            let base = Case { kv_heads: 3, group: 4, ..PLAIN };
            both(&e, Case { n: 130, ..base });
            both(&e, Case { n: 33, past: 100, batch: 2, d: 128, spare: 5, pad: 3, ..base });
            both(&e, Case { past: 299, spare: 1, ..base });
            both(&e, Case { past: 63, batch: 4, d: 128, ..base });
        }
    }
}

#[test]
fn few_rows_over_long_and_split_caches() {
    for isa in isas() {
        for &threads in threads(&[1, 2, 3]) {
            let e = engine(isa, threads, Backend::Ours);
            for past in [0, 1, 126, 127, 128, 511, 512, 1023, 1500, 2600] {
                both(&e, Case { past, d: 32, group: 3, ..PLAIN });
            }
            both(&e, Case { n: 2, past: 1022, group: 4, kv_heads: 2, d: 80, ..PLAIN });
            both(&e, Case { n: 3, past: 1200, group: 2, d: 33, pad: 2, flush: Flush::Start, ..PLAIN });
            let used = e.take_used();
            assert!(used.iter().any(|n| n.starts_with("attention_stream")), "{used:?}");
            assert!(!used.iter().any(|n| n.starts_with("attention_blocks")), "{used:?}");
        }
    }
}

#[test]
fn every_stream_kernel_around_its_edges() {
    for row in ttft_kernels::isas().iter().filter(|r| isas().contains(&r.isa)) {
        let Some(kernel) = row.stream else { continue };
        let e = engine(row.isa, 2, Backend::Ours);
        for d in [kernel.features, 2 * kernel.features, 3 * kernel.features, 4 * kernel.features, 5 * kernel.features] {
            // Keys around its groups of four and eight and around a block; rows around a quad; heads that share a task.
            let block = edges::STREAM_KEYS;
            for past in (0..9).chain([block - 2, block - 1, block, block + 2, 2 * block - 1, 2 * block]) {
                both(&e, Case { past, d, group: 4, kv_heads: 2, spare: past % 3, ..PLAIN });
            }
            for group in 1..=5 {
                both(&e, Case { past: 70, d, group, batch: 3, pad: 1, ..PLAIN });
            }
            both(&e, Case { n: 3, past: 127, d, group: 2, sharp: 300.0, flush: Flush::Start, ..PLAIN });
        }
        assert!(e.take_used().contains(&kernel.name), "{} was not exercised", kernel.name);
        // Heads of other lengths fall back on vectors of f32.
        both(&e, Case { past: 70, d: kernel.features + 8, group: 4, ..PLAIN });
        assert!(!e.take_used().contains(&kernel.name));
    }
}

#[test]
fn heads_longer_than_a_tile() {
    for isa in isas() {
        let e = engine(isa, 2, Backend::Ours);
        both(&e, Case { n: 37, past: 9, d: 1100, ..PLAIN });
    }
}

#[test]
fn scores_far_apart() {
    // Scores of many hundreds: most probabilities underflow, and the maximum moves from block to block.
    for isa in isas() {
        let e = engine(isa, 2, Backend::Ours);
        for n in [1, 200] {
            both(&e, Case { n, past: 250, sharp: 300.0, ..PLAIN });
        }
    }
}

#[test]
fn parallel_and_serial_agree_to_the_bit() {
    // Blocks of keys do not depend on the threads, so neither does any rounding.
    let c = Case { n: 100, past: 30, kv_heads: 2, group: 3, batch: 2, ..PLAIN };
    let (k, _) = cache::<f32>(c, 1);
    let (v, _) = cache::<f32>(c, 2);
    let q = values(3, c.batch * c.n * 6 * c.d, DType::F32);
    let shape = AttnShape { batch: c.batch, n: c.n, past: c.past };
    for isa in isas() {
        let run = |threads| {
            let mut out = vec![0.0; q.len()];
            let rows = c.batch * c.n;
            let y = MatMut::new(&mut out, rows, 6 * c.d);
            engine(isa, threads, Backend::Ours).attention(Mat::new(&q, rows, 6 * c.d), &k, &v, shape, y).unwrap();
            out
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{isa}");
    }
}

#[test]
fn a_nan_score_reaches_its_row_alone() {
    for isa in isas() {
        let e = engine(isa, 1, Backend::Ours);
        let (n, d) = (40, 64);
        let c = Case { n, ..PLAIN };
        let ((k, _), (v, _)) = (cache::<f32>(c, 1), cache::<f32>(c, 2));
        let mut q = values(3, n * d, DType::F32);
        q[17 * d] = f32::NAN;
        let mut out = vec![0.0; n * d];
        let shape = AttnShape { batch: 1, n, past: 0 };
        e.attention(Mat::new(&q, n, d), &k, &v, shape, MatMut::new(&mut out, n, d)).unwrap();
        for (r, row) in out.chunks_exact(d).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (r == 17)), "{isa}: row {r}");
        }
    }
}

/// Queries of any sequence that see any part of it, against the same queries one by one.
fn check_each<A: Element>(e: &Engine, c: Case, queries: &[Query]) {
    let ((k, k64), (v, v64)) = (cache::<A>(c, 1), cache::<A>(c, 2));
    let cols = c.kv_heads * c.group * c.d;
    let q: Vec<A> = values(3, queries.len() * cols, A::DTYPE).iter().map(|x| A::from_f32(*x)).collect();
    let mut out = vec![A::from_f32(f32::NAN); q.len()];
    let rows = queries.len();
    e.attention_each(Mat::new(&q, rows, cols), &k, &v, queries, MatMut::new(&mut out, rows, cols)).unwrap();
    let sequence = c.kv_heads * k.capacity() * c.d;
    for ((query, q), out) in queries.iter().zip(q.chunks_exact(cols)).zip(out.chunks_exact(cols)) {
        let of = |x: &[f64]| x[query.sequence * sequence..][..sequence].to_vec();
        let shape = AttnShape { batch: 1, n: 1, past: query.sees - 1 };
        let dims = (c.kv_heads * c.group, c.kv_heads, k.capacity(), c.d);
        let (q64, keys, values) = (reference::widen(q), of(&k64), of(&v64));
        let magnitudes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
        let bound = bounds::<A>(&q64, &keys, c.d, query.sees);
        let want = reference::attention(&q64, &keys, &values, shape, dims);
        let sums = reference::attention(&q64, &keys, &magnitudes, shape, dims);
        for ((want, sum), found) in want.iter().zip(sums).zip(out) {
            let (found, bound) = (f64::from(found.to_f32()), bound(*want, sum));
            assert!((want - found).abs() <= bound, "{} {c:?} {query:?}: {want} {found}, bound {bound:e}", e.isa());
        }
    }
}

#[test]
fn each_query_sees_what_it_says() {
    for isa in isas() {
        for threads in [1, 3] {
            let e = engine(isa, threads, Backend::Ours);
            let c = Case { batch: 3, n: 1, past: 299, kv_heads: 2, group: 3, d: 24, spare: 1, ..PLAIN };
            let query = |sequence, sees| Query { sequence, sees };
            let all = [query(0, 300), query(2, 1), query(1, 129), query(2, 128), query(2, 300), query(0, 2)];
            check_each::<f32>(&e, c, &all);
            check_each::<bf16>(&e, c, &all);
            check_each::<f32>(&e, Case { past: 1499, ..c }, &[query(1, 7), query(2, 1500)]);
            for (wrong, what) in [(query(3, 1), "batch"), (query(0, 0), "at least"), (query(0, 302), "capacity")] {
                let ((k, _), (v, _)) = (cache::<f32>(c, 1), cache::<f32>(c, 2));
                let (q, mut out) = ([0.0; 144], [0.0; 144]);
                let out = MatMut::new(&mut out, 1, 144);
                let error = e.attention_each(Mat::new(&q, 1, 144), &k, &v, &[wrong], out).unwrap_err().to_string();
                assert!(error.contains(what), "{error}");
            }
        }
    }
}

/// The weights of one query of each sequence, against the softmax of its scores.
fn check_weights<A: Element>(e: &Engine, c: Case) {
    let (k, k64) = cache::<A>(c, 1);
    let (heads, len, d) = (c.kv_heads * c.group, c.past + c.n, c.d);
    let q: Vec<A> = values(2, c.batch * heads * d, A::DTYPE).iter().map(|x| A::from_f32(x * c.sharp)).collect();
    let mut out = vec![f32::NAN; c.batch * heads * len];
    e.attention_weights(Mat::new(&q, c.batch, heads * d), &k, len, &mut out).unwrap();
    let q64 = reference::widen(&q);
    let score = f64::from(c.sharp) * (d as f64).sqrt();
    // A score's absolute error, twice (the maximum has one, too), is a probability's relative error.
    let error = 2.0 * (dot_bound(d, score) + 4.0 * EPS * score) + dot_bound(len, 1.0) + 8.0 * EPS;
    for (s, (q, out)) in q64.chunks_exact(d).zip(out.chunks_exact(len)).enumerate() {
        let head = s / heads * c.kv_heads + s % heads / c.group;
        let keys = &k64[head * k.capacity() * d..][..len * d];
        let scores: Vec<f64> = reference::linear(q, keys, d).iter().map(|s| s / (d as f64).sqrt()).collect();
        for (want, found) in reference::softmax(&scores, len).iter().zip(out) {
            let found = f64::from(*found);
            // A probability below the normal numbers is zero.
            let bound = want * error + f64::from(f32::MIN_POSITIVE);
            assert!((want - found).abs() <= bound, "{} {c:?}: {want} {found}", e.isa());
        }
    }
}

/// The scores of one query of each sequence, against the products.
fn check_scores<A: Element>(e: &Engine, c: Case) {
    let (k, k64) = cache::<A>(c, 1);
    let (heads, len, d) = (c.kv_heads * c.group, c.past + c.n, c.d);
    let q: Vec<A> = values(2, c.batch * heads * d, A::DTYPE).iter().map(|x| A::from_f32(*x)).collect();
    let mut out = vec![f32::NAN; c.batch * heads * len];
    e.attention_scores(Mat::new(&q, c.batch, heads * d), &k, len, &mut out).unwrap();
    for (s, (q, out)) in reference::widen(&q).chunks_exact(d).zip(out.chunks_exact(len)).enumerate() {
        let head = s / heads * c.kv_heads + s % heads / c.group;
        let keys = &k64[head * k.capacity() * d..][..len * d];
        let magnitudes = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
        let sums = reference::linear(&magnitudes(q), &magnitudes(keys), d);
        for ((want, sum), found) in reference::linear(q, keys, d).iter().zip(sums).zip(out) {
            let error = (want - f64::from(*found)).abs();
            assert!(error <= dot_bound(d, sum), "{} {c:?}: {want} {found}", e.isa());
        }
    }
}

#[test]
fn scores_are_the_products_alone() {
    for isa in isas() {
        for threads in [1, 2] {
            let e = engine(isa, threads, Backend::Ours);
            for (past, group, d, spare) in [(0, 1, 2, 0), (58, 4, 34, 2), (900, 6, 64, 3)] {
                let c = Case { batch: 2, past, kv_heads: 3, group, d, spare, ..PLAIN };
                check_scores::<f32>(&e, c);
                check_scores::<bf16>(&e, c);
            }
        }
    }
    let e = engine(Isa::best(), 1, Backend::Ours);
    let error =
        e.attention_scores(Mat::new(&[0.0; 4], 1, 4), &HeadCache::new(1, 2, 3, 2), 4, &mut [0.0; 8]).unwrap_err();
    assert!(error.to_string().contains("capacity"), "{error}");
}

/// A mean of so many terms, each addition rounded and the product with an inverse that is rounded itself; joined to what was
/// there. Windows that reach beyond either end or both, rows of less than a vector and of several spans.
#[test]
fn pooled_rows_are_joined_to_what_was_there() {
    for isa in isas() {
        for threads in [1, 3] {
            let e = engine(isa, threads, Backend::Ours);
            for (batch, heads, len, width) in [
                (1, 1, 1, 1),
                (2, 3, 5, 3),
                (1, 2, 7, 99),
                (3, 2, 40, 13),
                (2, 5, 300, 5),
                (2, 9, 1025, 31),
                (1, 4, 700, 601),
            ] {
                let x = values(5, batch * heads * len, DType::F32);
                let before = values(6, batch * len, DType::F32);
                let pooled = reference::pool(&reference::widen(&x), len, width);
                let magnitudes: Vec<f64> = x.iter().map(|x| f64::from(x.abs())).collect();
                let sums = reference::pool(&magnitudes, len, width);
                for join in [Join::Largest, Join::Sum] {
                    let mut out = before.clone();
                    e.pooled(&x, len, width, join, &mut out).unwrap();
                    for (b, (out, before)) in out.chunks_exact(len).zip(before.chunks_exact(len)).enumerate() {
                        for (t, (found, before)) in out.iter().zip(before).enumerate() {
                            let column =
                                |x: &[f64]| (0..heads).map(|h| x[(b * heads + h) * len + t]).collect::<Vec<_>>();
                            let (means, sums, before) = (column(&pooled), column(&sums), f64::from(*before));
                            let error = |sum: f64| dot_bound(width, sum) + 2.0 * EPS * sum;
                            let (want, bound) = match join {
                                Join::Largest => {
                                    let most = sums.iter().copied().fold(0.0, f64::max);
                                    (means.iter().copied().fold(before, f64::max), error(most))
                                }
                                Join::Sum => {
                                    let all: f64 = sums.iter().sum();
                                    let added = dot_bound(heads, before.abs() + all);
                                    (before + means.iter().sum::<f64>(), error(all) + added)
                                }
                            };
                            let off = (want - f64::from(*found)).abs();
                            assert!(
                                off <= bound,
                                "{isa} {batch} {heads} {len} {width} {join:?} {t}: {off:e}, {bound:e}"
                            );
                        }
                    }
                }
            }
        }
    }
    let e = engine(Isa::best(), 1, Backend::Ours);
    for (x, len, width, n, what) in [
        (6, 3, 2, 3, "width"),
        (6, 0, 3, 3, "at least"),
        (6, 3, 3, 4, "columns"),
        (7, 3, 3, 3, "input"),
        (6, 3, 3, 0, "at least"),
    ] {
        let error = e.pooled(&vec![0.0; x], len, width, Join::Sum, &mut vec![0.0; n]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn weights_are_the_softmax_of_the_scores() {
    for isa in isas() {
        for threads in [1, 2] {
            let e = engine(isa, threads, Backend::Ours);
            for (past, group, d, spare) in
                [(0, 1, 2, 0), (6, 3, 34, 1), (58, 4, 64, 2), (130, 5, 33, 0), (900, 6, 16, 3)]
            {
                let c = Case { batch: 2, past, kv_heads: 3, group, d, spare, ..PLAIN };
                check_weights::<f32>(&e, c);
                check_weights::<bf16>(&e, c);
            }
        }
    }
}

#[test]
fn weights_of_wrong_shapes_are_errors() {
    let e = engine(Isa::best(), 1, Backend::Ours);
    let k = HeadCache::<f32>::new(2, 2, 5, 3);
    let (q, mut out) = ([0.0; 24], [0.0; 48]);
    for (rows, cols, len, n, what) in [
        (1, 12, 5, 20, "batch"),
        (2, 9, 5, 30, "columns"),
        (2, 12, 6, 48, "capacity"),
        (2, 12, 5, 39, "output"),
        (2, 12, 0, 0, "at least"),
    ] {
        let q = Mat::new(&q[..rows * cols], rows, cols);
        let error = e.attention_weights(q, &k, len, &mut out[..n]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    e.attention_weights(Mat::new(&q, 2, 12), &k, 5, &mut out[..40]).unwrap();
    // Five equal weights: the exponentials and their sum are exact, the quotient and a product by it are rounded.
    let fifth = |x: &f32| (f64::from(*x) - 0.2).abs() <= 0.2 * 2.0 * EPS;
    assert!(out[..40].iter().all(fifth) && out[40..] == [0.0; 8]);
}

#[test]
fn gathered_positions_stand_side_by_side() {
    for threads in [1, 3] {
        let e = engine(Isa::best(), threads, Backend::Ours);
        for (heads, d, n) in [(1, 2, 1), (3, 5, 4), (4, 128, 90)] {
            let c = Case { batch: 3, past: 99, kv_heads: heads, d, spare: 0, ..PLAIN };
            let (from, _) = cache::<bf16>(c, 9);
            let mut to = HeadCache::<bf16>::new(3, heads, n + 2, d);
            let slots: Vec<u32> = (0..3 * n as u32).map(|i| (i * 37 + 11) % 100).collect();
            e.gather(&from, &slots, &mut to).unwrap();
            for (b, h) in (0..3).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                for (i, slot) in slots[b * n..][..n].iter().enumerate() {
                    assert_eq!(to.head(b, h).row(i), from.head(b, h).row(*slot as usize));
                }
                assert!(to.head(b, h).row(n).iter().all(|x| *x == bf16::ZERO), "beyond what was gathered");
            }
            for (slots, what) in [(vec![0; 3 * n + 9], "capacity"), (vec![100; 3], "source"), (vec![0; 4], "slots")] {
                let error = e.gather(&from, &slots, &mut to).unwrap_err().to_string();
                assert!(error.contains(what), "{error}");
            }
        }
        let (none, mut to) = (HeadCache::<bf16>::new(0, 2, 3, 4), HeadCache::<bf16>::new(0, 2, 3, 4));
        e.gather(&none, &[], &mut to).unwrap();
        assert!(e.gather(&none, &[0], &mut to).unwrap_err().to_string().contains("slots"), "of no sequence");
    }
}

fn case() -> impl Strategy<Value = Case> {
    (1..4usize, 1..120usize, 0..250usize, 1..4usize, 1..6usize, 1..140usize, 0..4usize, 0..3usize, any::<bool>())
        .prop_map(|(batch, n, past, kv_heads, group, d, spare, pad, end)| {
            let flush = if end { Flush::End } else { Flush::Start };
            Case { batch, n, past, kv_heads, group, d, spare, pad, sharp: 8.0, flush }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_shapes(c in case(), threads in 1..4usize) {
        for isa in isas() {
            both(&engine(isa, threads, Backend::Ours), c);
        }
    }
}
