//! Row-wise operations of every ISA level of this machine against f64: over vector tails, strides, types and threads, with
//! operands flush against guard pages.

use std::sync::LazyLock;

use half::{bf16, f16};
use proptest::prelude::*;
use ttft_kernels::{
    Backend, DType, Element, Engine, Format, HeadCache, HeadProjection, HeadsOut, Isa, Mat, MatMut, Positions,
    RopeTable, Weight, edges,
    guard::{Flush, Guarded},
    reference,
};
use ttft_tests::{EPS, cases, dot_bound, engine, isas, threads, values};

/// Lengths around the vectors of every ISA, unrolled or not, and around the blocks of argmax; rows enough to share.
const LENGTHS: [usize; 22] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 511, 513, 1100];

/// A matrix between guard pages, `pad` elements between its rows.
struct Rows<T> {
    data: Guarded<T>,
    rows: usize,
    cols: usize,
    pad: usize,
}

impl<T: bytemuck::Pod> Rows<T> {
    /// Rows of `x`; `gap` fills what lies between them.
    fn new(x: &[T], cols: usize, pad: usize, gap: T) -> Self {
        let flush = if pad.is_multiple_of(2) { Flush::End } else { Flush::Start };
        let padded: Vec<T> = x.chunks_exact(cols).flat_map(|r| r.iter().copied().chain(vec![gap; pad])).collect();
        Rows { data: Guarded::new(&padded, flush), rows: x.len() / cols, cols, pad }
    }

    fn mat(&self) -> Mat<'_, T> {
        Mat::new(self.data.as_slice(), self.rows, self.cols + self.pad).cols_at(0, self.cols)
    }

    fn mat_mut(&mut self) -> MatMut<'_, T> {
        MatMut::new(self.data.as_mut_slice(), self.rows, self.cols + self.pad).cols_at(0, self.cols)
    }
}

/// An output of NaN, with NaN between its rows.
fn output<A: Element>(rows: usize, cols: usize, pad: usize) -> Rows<A> {
    let nan = A::from_f32(f32::NAN);
    Rows::new(&vec![nan; rows * cols], cols, pad, nan)
}

/// Compares every element of `y` with `want`, within `bound` before the rounding to A; the gaps must still be NaN.
fn compare<A: Element>(y: &Rows<A>, want: &[f64], bound: impl Fn(usize) -> f64, what: &str) {
    let stride = y.cols + y.pad;
    for (at, found) in y.data.as_slice().iter().enumerate() {
        let (r, c, found) = (at / stride, at % stride, f64::from(found.to_f32()));
        if c >= y.cols {
            assert!(found.is_nan(), "{what}: written between rows, after row {r}");
            continue;
        }
        let (want, b) = (want[r * y.cols + c], bound(r * y.cols + c));
        let b = b + if A::DTYPE == DType::BF16 { (want.abs() + b) / 256.0 } else { 0.0 };
        assert!((found - want).abs() <= b, "{what} at [{r}][{c}]: expected {want:e}, found {found:e}, bound {b:e}");
    }
}

/// Every ISA level on 1, 2 and 3 threads.
fn engines(f: impl Fn(&Engine)) {
    for isa in isas() {
        for &threads in threads(&[1, 2, 3]) {
            f(&engine(isa, threads, Backend::Ours));
        }
    }
}

fn rms_norm<A: Element>(e: &Engine, rows: usize, cols: usize, pad: usize) {
    let (x, w) = (values(cols as u64, rows * cols, DType::F32), values(7, cols, DType::F32));
    let mut y = output::<A>(rows, cols, pad);
    let wg = Guarded::new(&w, Flush::End);
    e.rms_norm(Rows::new(&x, cols, pad, f32::NAN).mat(), wg.as_slice(), 1e-6, y.mat_mut()).unwrap();
    let want = reference::rms_norm(&reference::widen(&x), &reference::widen(&w), f64::from(1e-6f32));
    // The sum of squares, halved by the root; mean, eps, root, quotient, two products.
    let rel = dot_bound(cols, 1.0) / 2.0 + 6.0 * EPS;
    compare(&y, &want, |i| want[i].abs() * rel, &format!("rms_norm {} [{rows}, {cols}]", e.isa()));
}

fn convert<A: Element>(e: &Engine, rows: usize, cols: usize, pad: usize) {
    let x = values(cols as u64, rows * cols, DType::F32);
    let mut y = output::<A>(rows, cols, pad);
    e.convert(Rows::new(&x, cols, pad, f32::NAN).mat(), y.mat_mut()).unwrap();
    for r in 0..rows {
        let want: Vec<A> = x[r * cols..][..cols].iter().map(|x| A::from_f32(*x)).collect();
        assert_eq!(y.mat().row(r), want, "convert {} [{rows}, {cols}], row {r}", e.isa());
    }
}

/// Of `silu(a) * b`: an exponential within 1.25 ulp, which are 2.5 times [`EPS`], sum, quotient and product, and what these errors do to
/// each other. Where e^-a, above e^88, counts as infinite, the result is zero instead of less than `89 b / MAX`.
fn silu_bound(want: f64, b: f64) -> f64 {
    want.abs() * 6.0 * EPS + 89.0 * b / f64::from(f32::MAX)
}

fn silu_mul<A: Element>(e: &Engine, rows: usize, cols: usize, pad: usize) {
    let scale = |(i, x): (usize, f32)| x * [1.0, 10.0, 150.0][i % 3];
    let ab: Vec<f32> = values(cols as u64, rows * 2 * cols, DType::F32).into_iter().enumerate().map(scale).collect();
    let mut y = output::<A>(rows, cols, pad);
    e.silu_mul(Rows::new(&ab, 2 * cols, pad, f32::NAN).mat(), y.mat_mut()).unwrap();
    let want = reference::silu_mul(&reference::widen(&ab), cols);
    compare(&y, &want, |i| silu_bound(want[i], 150.0), &format!("silu_mul {} [{rows}, {cols}]", e.isa()));
}

fn softmax(e: &Engine, rows: usize, cols: usize, pad: usize) {
    let scale = |(i, x): (usize, f32)| x * [1.0, 30.0, 200.0][i / cols % 3];
    let x: Vec<f32> = values(cols as u64, rows * cols, DType::F32).into_iter().enumerate().map(scale).collect();
    let mut y = Rows::new(&x, cols, pad, f32::NAN);
    e.softmax(y.mat_mut());
    let want = reference::softmax(&reference::widen(&x), cols);
    // x - max is rounded (by up to 400 u), and what is below the normal numbers is 0.
    let rel = 2.0 * 400.0 * EPS + dot_bound(cols, 1.0) + 8.0 * EPS;
    let tiny = f64::from(f32::MIN_POSITIVE);
    compare(&y, &want, |i| want[i] * rel + tiny, &format!("softmax {} [{rows}, {cols}]", e.isa()));
}

fn argmax(e: &Engine, rows: usize, cols: usize, pad: usize) {
    // Few different values, so that ties abound; NaN and infinities among them.
    let odd = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 1.5, 1.5, f32::INFINITY];
    let value = |(i, x): (usize, f32)| match i % 11 {
        0..=2 => odd[(x.to_bits() % 5) as usize],
        3 if i % 77 == 3 => f32::INFINITY,
        _ => -(x.to_bits() as f32 % 9.0) - 1.0,
    };
    let x: Vec<f32> = values(cols as u64, rows * cols, DType::F32).into_iter().enumerate().map(value).collect();
    let mut y = vec![u32::MAX; rows];
    e.argmax(Rows::new(&x, cols, pad, f32::INFINITY).mat(), &mut y).unwrap();
    assert_eq!(y, reference::argmax(&reference::widen(&x), cols), "argmax {} [{rows}, {cols}]", e.isa());
}

#[test]
fn rows_of_every_length() {
    engines(|e| {
        for (i, cols) in LENGTHS.into_iter().enumerate() {
            let pad = i % 4;
            for rows in [1, 3] {
                rms_norm::<f32>(e, rows, cols, pad);
                rms_norm::<bf16>(e, rows, cols, pad);
                convert::<f32>(e, rows, cols, pad);
                convert::<bf16>(e, rows, cols, pad);
                silu_mul::<f32>(e, rows, cols, pad);
                silu_mul::<bf16>(e, rows, cols, pad);
                softmax(e, rows, cols, pad);
                argmax(e, rows, cols, pad);
            }
        }
    });
}

/// Subnormal numbers are kept, whatever the level; what an exponential makes of them is zero.
#[test]
fn subnormal_numbers_are_kept() {
    let tiny: Vec<f32> =
        (0..67u32).map(|i| f32::from_bits(1 << (i % 23)) * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    engines(|e| {
        let (m, mut y, mut z) = (Mat::new(&tiny, 1, 67), vec![f32::NAN; 67], vec![bf16::ZERO; 67]);
        e.convert(m, MatMut::new(&mut y, 1, 67)).unwrap();
        assert_eq!(y, tiny, "{}", e.isa());
        e.convert(m, MatMut::new(&mut z, 1, 67)).unwrap();
        assert!(tiny.iter().zip(&z).all(|(x, z)| bf16::from_f32(*x) == *z), "{}", e.isa());
        assert!(z.iter().any(|z| z.to_f32() != 0.0));
        e.embed(Weight::F32(m), &[0], MatMut::new(&mut y, 1, 67)).unwrap();
        assert_eq!(y, tiny, "{}", e.isa());
        // The mean square vanishes beside eps = 1: each element is multiplied by its weight alone.
        e.rms_norm(m, &[2.0; 67], 1.0, MatMut::new(&mut y, 1, 67)).unwrap();
        assert!(tiny.iter().zip(&y).all(|(x, y)| 2.0 * x == *y), "{}", e.isa());
        let mut p = [0.0, -88.0, -100.0];
        e.softmax(MatMut::new(&mut p, 1, 3));
        assert_eq!(p, [1.0, 0.0, 0.0], "{}", e.isa());
    });
}

#[test]
fn rows_shared_among_threads() {
    engines(|e| {
        // More elements than one thread takes alone, in odd numbers of rows.
        for (rows, cols) in [(1025, 70), (67, 2048), (100_003, 1)] {
            rms_norm::<bf16>(e, rows, cols, 1);
            convert::<bf16>(e, rows, cols, 1);
            silu_mul::<f32>(e, rows, cols, 1);
            softmax(e, rows, cols, 1);
            argmax(e, rows, cols, 1);
        }
    });
}

#[test]
fn largest_of_long_rows() {
    engines(|e| {
        // One largest element, at every place that matters: block edges, tails, ends.
        let n = 32_000;
        let mut x = vec![-1.0; n];
        for at in [0, 1, 511, 512, 513, 15_999, n - 17, n - 1] {
            x[at] = 2.0;
            let mut y = [0];
            e.argmax(Mat::new(&x, 1, n), &mut y).unwrap();
            assert_eq!(y, [at as u32], "{}", e.isa());
            x[at] = -1.0;
        }
        for only in [f32::NAN, f32::NEG_INFINITY] {
            let mut y = [9];
            e.argmax(Mat::new(&[only; 600], 1, 600), &mut y).unwrap();
            assert_eq!(y, [0], "{}: nothing but {only}", e.isa());
        }
    });
}

#[test]
fn softmax_of_special_rows() {
    engines(|e| {
        let low = f32::NEG_INFINITY;
        let mut x = [low, 0.0, low, 0.0, 1e30, -1e30, 7.0, f32::NAN];
        e.softmax(MatMut::new(&mut x, 4, 2));
        assert_eq!(x[..6], [0.0, 1.0, 0.0, 1.0, 1.0, 0.0], "{}", e.isa());
        assert!(x[6].is_nan() && x[7].is_nan(), "{}: NaN takes its row", e.isa());
        e.softmax(MatMut::new(&mut [], 3, 0));
    });
}

#[test]
fn embedding_rows_are_exact() {
    engines(|e| {
        for (vocab, d) in [(5, 1), (9, 7), (300, 33), (40, 2048)] {
            let table = values(d as u64, vocab * d, DType::F32);
            let ids: Vec<u32> = (0..37u32).map(|i| i * 31 % vocab as u32).chain([vocab as u32 - 1, 0]).collect();
            let t16: Vec<f16> = table.iter().map(|x| f16::from_f32(*x)).collect();
            let tb: Vec<bf16> = table.iter().map(|x| bf16::from_f32(*x)).collect();
            let (g32, g16, gb) =
                (Guarded::new(&table, Flush::End), Guarded::new(&t16, Flush::End), Guarded::new(&tb, Flush::Start));
            let weights = [
                Weight::F32(Mat::new(g32.as_slice(), vocab, d)),
                Weight::F16(Mat::new(g16.as_slice(), vocab, d)),
                Weight::BF16(Mat::new(gb.as_slice(), vocab, d)),
            ];
            for w in weights {
                let mut y = output::<f32>(ids.len(), d, 2);
                e.embed(w, &ids, y.mat_mut()).unwrap();
                for (r, &id) in ids.iter().enumerate() {
                    let at = |j: usize| id as usize * d + j;
                    let want: Vec<f32> = match w.format() {
                        Format::F32 => (0..d).map(|j| table[at(j)]).collect(),
                        Format::F16 => (0..d).map(|j| t16[at(j)].to_f32()).collect(),
                        Format::BF16 => (0..d).map(|j| tb[at(j)].to_f32()).collect(),
                    };
                    assert_eq!(y.mat().row(r), want, "{} {:?} row {r}", e.isa(), w.format());
                }
            }
        }
        let out = &mut [0.0; 2];
        let err = e.embed(Weight::F32(Mat::new(&[0.0; 6], 3, 2)), &[3], MatMut::new(out, 1, 2)).unwrap_err();
        assert_eq!(err.to_string(), "token id 3 (row 0) is outside the vocabulary of 3");
    });
}

#[derive(Clone, Copy, Debug)]
struct Heads {
    batch: usize,
    n: usize,
    heads: usize,
    d: usize,
    start: usize,
    norm: bool,
    rope: bool,
    pad: usize,
}

/// To rows and to a cache; the rest of the cache must stay as it was.
fn heads<A: Element>(e: &Engine, c: Heads) {
    let Heads { batch, n, heads, d, start, norm, rope, pad } = c;
    let (rows, cols) = (batch * n, heads * d);
    let x = values((n * d) as u64, rows * cols, DType::F32);
    let w = values(3, d, DType::F32);
    let table = rope.then(|| RopeTable::new(d, 1e4, start + n));
    let src = Rows::new(&x, cols, pad, f32::NAN);
    let (norm, rotate) = (norm.then_some(&w[..]), table.as_ref().map(|t| (t, Positions::From(start))));
    let mut y = output::<A>(rows, cols, pad);
    e.heads(src.mat(), batch, d, norm, 1e-6, rotate, HeadsOut::Rows(y.mat_mut())).unwrap();
    let capacity = start + n + 2;
    let mut cache = HeadCache::<A>::new(batch, heads, capacity, d);
    e.heads(src.mat(), batch, d, norm, 1e-6, rotate, HeadsOut::Cache(&mut cache, start)).unwrap();

    let (x, w64) = (reference::widen(&x), reference::widen(&w));
    let norm64 = norm.map(|_| (&w64[..], f64::from(1e-6f32)));
    let plain = reference::heads(&x, (n, heads, d), norm64, None);
    let want = reference::heads(&x, (n, heads, d), norm64, rope.then_some((1e4, start)));
    let rel = if norm.is_some() { dot_bound(d, 1.0) / 2.0 + 6.0 * EPS } else { 0.0 };
    let what = format!("heads {} {c:?}", e.isa());
    compare(
        &y,
        &want,
        |i| {
            // Both members of a pair carry the norm's error; sine, cosine, products and sum add theirs.
            let partner = if i % d < d / 2 { i + d / 2 } else { i - d / 2 };
            if rope { (plain[i].abs() + plain[partner].abs()) * (rel + 4.0 * EPS) } else { want[i].abs() * rel }
        },
        &what,
    );
    for b in 0..batch {
        for h in 0..heads {
            let head = cache.head(b, h);
            for p in 0..capacity {
                let expected = match p.checked_sub(start).filter(|i| *i < n) {
                    Some(i) => y.mat().row(b * n + i)[h * d..][..d].to_vec(),
                    None => vec![A::default(); d],
                };
                assert_eq!(head.row(p), expected, "{what}: cache [{b}][{h}][{p}]");
            }
        }
    }
}

#[test]
fn heads_stand_where_they_are_put() {
    engines(|e| {
        // Each row as if it alone stood at its position.
        let (batch, n, heads, d) = (2, 3, 2, 34);
        let x = values(5, batch * n * heads * d, DType::F32);
        let at = [0, 4, 9, 2, 3, 11];
        let table = RopeTable::new(d, 1e4, 12);
        let run = |x: &[f32], batch: usize, at: Positions<'_>| {
            let (rows, cols) = (x.len() / (heads * d), heads * d);
            let mut y = vec![0f32; x.len()];
            let out = HeadsOut::Rows(MatMut::new(&mut y, rows, cols));
            e.heads(Mat::new(x, rows, cols), batch, d, None, 1e-6, Some((&table, at)), out).map(|()| y)
        };
        let found = run(&x, batch, Positions::Each(&at)).unwrap();
        for (r, (x, found)) in x.chunks_exact(heads * d).zip(found.chunks_exact(heads * d)).enumerate() {
            assert_eq!(run(x, 1, Positions::From(at[r] as usize)).unwrap(), found, "{} row {r}", e.isa());
        }
        for (at, what) in [(vec![0; 5], "expected 6, found 5"), (vec![0, 1, 2, 3, 4, 12], "expected 13, found 12")] {
            let e = run(&x, batch, Positions::Each(&at)).unwrap_err().to_string();
            assert!(e.contains(what), "{e}");
        }
    });
}

#[test]
fn heads_of_the_models() {
    engines(|e| {
        for d in [2, 6, 16, 30, 34, 64, 80, 128] {
            for (norm, rope) in [(true, true), (true, false), (false, true), (false, false)] {
                let c = Heads { batch: 2, n: 3, heads: 3, d, start: 5, norm, rope, pad: d % 3 };
                heads::<f32>(e, c);
                heads::<bf16>(e, c);
            }
        }
        // Odd heads have no rotation; many rows are shared among threads.
        heads::<bf16>(e, Heads { batch: 1, n: 2, heads: 2, d: 33, start: 0, norm: true, rope: false, pad: 0 });
        heads::<bf16>(e, Heads { batch: 3, n: 67, heads: 5, d: 64, start: 1, norm: true, rope: true, pad: 1 });
    });
}

/// `(heads, K)` of each product; keys and values of each, the keys normed, rotated and kept.
fn projections<A: Element, X: Element>(e: &Engine, (batch, n, d): (usize, usize, usize), sizes: &[(usize, usize)]) {
    let rows = batch * n;
    let norm = values(3, d, DType::F32);
    let table = RopeTable::new(d, 1e4, n);
    let of = |seed: usize, len: usize| -> Vec<X> {
        values(seed as u64, len, X::DTYPE).into_iter().map(X::from_f32).collect()
    };
    struct Operands<A, X> {
        x: Vec<X>,
        w: Vec<f32>,
        bias: Vec<f32>,
        cache: HeadCache<A>,
        keep: Vec<f32>,
    }
    let operands = |i: usize, (heads, k): (usize, usize)| Operands::<A, X> {
        x: of(i + 1, rows * k),
        w: values(i as u64 + 100, heads * d * k, DType::F32),
        bias: values(i as u64 + 200, heads * d, DType::F32),
        cache: HeadCache::<A>::new(batch, heads, n + 2, d),
        keep: vec![f32::NAN; rows * heads * d],
    };
    let mut all: Vec<_> = sizes.iter().flat_map(|&s| [s, s]).enumerate().map(|(i, s)| operands(i, s)).collect();
    let key = |i: usize| i.is_multiple_of(2);
    let mut products: Vec<_> = all
        .iter_mut()
        .enumerate()
        .map(|(i, o)| {
            let k = o.x.len() / rows;
            HeadProjection {
                x: Mat::new(&o.x, rows, k),
                w: Weight::F32(Mat::new(&o.w, o.bias.len(), k)),
                bias: &o.bias,
                norm: key(i).then_some(&norm[..]),
                rope: key(i).then_some(&table),
                cache: &mut o.cache,
                keep: key(i).then_some(&mut o.keep[..]),
            }
        })
        .collect();
    e.project_heads(batch, 1e-6, &mut products).unwrap();

    let norm = reference::widen(&norm);
    for (i, o) in all.iter().enumerate() {
        let (cols, k) = (o.bias.len(), o.x.len() / rows);
        let mut y = reference::linear(&reference::widen(&o.x), &reference::widen(&o.w), k);
        y.iter_mut().enumerate().for_each(|(at, y)| *y += f64::from(o.bias[at % cols]));
        let bound = dot_bound(k + 1, k as f64 + 1.0);
        let what = format!("{} {batch} x {n}, d {d}, product {i}: {cols} x {k}", e.isa());
        for (at, (found, want)) in o.keep.iter().zip(&y).enumerate() {
            assert!(found.is_nan() != key(i), "{what}: kept at {at}");
            assert!(!key(i) || (f64::from(*found) - want).abs() <= bound, "{what} at {at}: {want}, kept {found}");
        }
        // A norm divides an error by the root mean square, which errs as well; a rotation adds those of a pair.
        let eps = f64::from(1e-6f32);
        let plain = reference::heads(&y, (n, cols / d, d), Some((&norm, eps)), None);
        let roots: Vec<f64> =
            y.chunks_exact(d).map(|y| (y.iter().map(|y| y * y).sum::<f64>() / d as f64 + eps).sqrt()).collect();
        let rel = dot_bound(d, 1.0) / 2.0 + 6.0 * EPS;
        let normed = |at: usize| {
            let share = bound / roots[at / d];
            norm[at % d].abs() * share + plain[at].abs() * (share / (1.0 - share) + rel)
        };
        let rotated = |at: usize| {
            let pair = at / d * d + (at + d / 2) % d;
            normed(at) + normed(pair) + 4.0 * EPS * (plain[at].abs() + plain[pair].abs())
        };
        let want = match key(i) {
            true => reference::heads(&y, (n, cols / d, d), Some((&norm, eps)), Some((1e4, 0))),
            false => y,
        };
        for (r, want) in want.chunks_exact(cols).enumerate() {
            for (at, want) in want.iter().enumerate() {
                let found = f64::from(o.cache.head(r / n, at / d).row(r % n)[at % d].to_f32());
                let bound = if key(i) { rotated(r * cols + at) } else { bound };
                let bound = bound + if A::DTYPE == DType::BF16 { (want.abs() + bound) / 256.0 } else { 0.0 };
                assert!((found - want).abs() <= bound, "{what} at [{r}][{at}]: expected {want}, found {found}");
            }
        }
        for (b, h) in (0..batch).flat_map(|b| (0..cols / d).map(move |h| (b, h))) {
            let beyond = (n..n + 2).flat_map(|p| o.cache.head(b, h).row(p));
            assert!(beyond.into_iter().all(|x| x.to_f32() == 0.0), "{what}: written past the last position");
        }
    }
}

#[test]
fn projections_are_products_then_heads() {
    engines(|e| {
        projections::<f32, f32>(e, (2, 5, 16), &[(3, 40), (1, 16)]);
        projections::<bf16, bf16>(e, (2, 5, 16), &[(3, 40), (1, 16)]);
        // Exact factors, a product that is rounded once.
        projections::<bf16, f32>(e, (2, 5, 16), &[(3, 40), (1, 16)]);
        projections::<bf16, f32>(e, (1, 63, 64), &[(5, 96)]);
        // One product, to be shared by its heads; rows around those of a task.
        projections::<bf16, bf16>(e, (1, 63, 64), &[(5, 96)]);
        let rows = edges::PROJECTION_ROWS;
        for n in [rows - 1, rows, rows + 1, 2 * rows + 1] {
            projections::<f32, f32>(e, (1, n, 6), &[(2, 33), (3, 8)]);
        }
        projections::<bf16, bf16>(e, (3, 100, 8), &[(2, 64), (3, 64), (4, 32)]);
        assert!(e.project_heads::<f32, f32>(1, 1e-6, &mut []).is_ok());
    });
}

#[test]
fn projections_that_do_not_fit_are_refused() {
    let e = engine(Isa::Portable, 1, Backend::Ours);
    static SHORT: LazyLock<RopeTable> = LazyLock::new(|| RopeTable::new(4, 1e4, 2));
    let (x, w, bias) = (vec![0.0; 6 * 8], vec![0.0; 8 * 8], vec![0.0; 8]);
    let with = |batch: usize, change: &dyn Fn(&mut HeadProjection<'_, f32>)| {
        let mut cache = HeadCache::new(2, 2, 3, 4);
        let (x, w) = (Mat::new(&x, 6, 8), Weight::F32(Mat::new(&w, 8, 8)));
        let mut p = HeadProjection { x, w, bias: &bias, norm: None, rope: None, cache: &mut cache, keep: None };
        change(&mut p);
        e.project_heads(batch, 1e-6, &mut [p]).map_err(|e| e.to_string())
    };
    assert_eq!(with(2, &|_| ()), Ok(()));
    let refused = |batch: usize, what: &str, change: &dyn Fn(&mut HeadProjection<'_, f32>)| {
        let e = with(batch, change).unwrap_err();
        assert!(e.contains("project_heads") && e.contains(what), "{e}");
    };
    refused(0, "batch", &|_| ());
    refused(4, "rows modulo batch", &|_| ());
    refused(1, "batch of the cache", &|_| ());
    refused(2, "columns of x", &|p| p.x = p.x.cols_at(0, 7));
    refused(2, "bias", &|p| p.bias = &p.bias[1..]);
    refused(2, "heads of the cache", &|p| (p.w, p.bias) = (p.w.rows_at(0, 4), &p.bias[..4]));
    refused(2, "norm weight", &|p| p.norm = Some(&[1.0; 3]));
    refused(2, "positions of the RoPE table", &|p| p.rope = Some(&SHORT));
}

#[test]
fn unrotating_undoes_the_rotation() {
    let (d, n) = (64, 200);
    let table = RopeTable::new(d, 1e4, n);
    let x = values(1, n * d, DType::F32);
    engines(|e| {
        let mut y = vec![0.0; n * d];
        e.heads(
            Mat::new(&x, n, d),
            1,
            d,
            None,
            1e-6,
            Some((&table, Positions::From(0))),
            HeadsOut::Rows(MatMut::new(&mut y, n, d)),
        )
        .unwrap();
        for (p, (y, x)) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
            table.unrotate(p, y);
            for (i, (y, &at)) in y.iter().zip(x).enumerate() {
                // Of a pair whose magnitudes add up to m, either rotation errs by two products and a sum of at most sqrt(2) m, and the
                // second turns the first one's errors; sine and cosine are rounded, so that their squares do not add up to 1.
                let m = f64::from(at.abs() + x[(i + d / 2) % d].abs());
                let bound = (2.0 * 3.0 * 2f64.sqrt() + 2.0) * EPS * m;
                assert!(f64::from((y - at).abs()) <= bound, "{} position {p}: {at} became {y}", e.isa());
            }
        }
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let e = engine(isas()[0], 1, Backend::Ours);
    let x = vec![0.0f32; 24];
    let m = || Mat::new(&x, 4, 6);
    let (mut y, mut c) = (vec![0.0f32; 24], HeadCache::<f32>::new(2, 2, 2, 3));
    let table = RopeTable::new(2, 1e4, 1);
    let mut errors = vec![
        e.rms_norm(m(), &x[..5], 1e-6, MatMut::new(&mut y, 4, 6)),
        e.rms_norm(m(), &x[..6], 1e-6, MatMut::new(&mut y, 6, 4)),
        e.convert(m(), MatMut::new(&mut y[..20], 4, 5)),
        e.silu_mul(m(), MatMut::new(&mut y[..16], 4, 4)),
        e.argmax(m(), &mut [0; 3]),
        e.argmax(Mat::new(&x[..0], 3, 0), &mut [0; 3]),
        e.embed(Weight::F32(m()), &[0, 1], MatMut::new(&mut y[..12], 1, 12)),
    ];
    errors.push(e.heads(m(), 3, 3, None, 1e-6, None, HeadsOut::Cache(&mut c, 0)));
    errors.push(e.heads(m(), 2, 4, None, 1e-6, None, HeadsOut::Cache(&mut c, 0)));
    errors.push(e.heads(m(), 2, 3, Some(&x[..2]), 1e-6, None, HeadsOut::Cache(&mut c, 0)));
    errors.push(e.heads(m(), 2, 3, None, 1e-6, None, HeadsOut::Cache(&mut c, 1)));
    errors.push(e.heads(m(), 2, 2, None, 1e-6, Some((&table, Positions::From(0))), HeadsOut::Cache(&mut c, 0)));
    for (i, r) in errors.into_iter().enumerate() {
        let text = r.expect_err(&format!("case {i}")).to_string();
        assert!(text.contains("expected") && text.contains("found"), "case {i}: {text}");
    }
    e.heads(m(), 2, 3, None, 1e-6, None, HeadsOut::Cache(&mut c, 0)).unwrap();
}

/// Where e^-a passes from the largest finite number to infinity, and far beyond on either side.
#[test]
fn silu_at_the_ends_of_the_exponential() {
    let edge = (-88.722_84f32).to_bits();
    let near = (edge - 8..edge + 8).map(f32::from_bits);
    let a: Vec<f32> = near.chain([-87.336_54, -87.4, -1e4, f32::MIN, 1e4, -0.0]).collect();
    let ab: Vec<f32> = a.iter().flat_map(|a| [*a, 1.0]).collect();
    engines(|e| {
        let mut y = output::<f32>(a.len(), 1, 1);
        e.silu_mul(Mat::new(&ab, a.len(), 2), y.mat_mut()).unwrap();
        for (r, a) in a.iter().enumerate() {
            let (found, want) = (f64::from(y.mat().row(r)[0]), reference::silu(f64::from(*a)));
            assert!((found - want).abs() <= silu_bound(want, 1.0), "{} silu({a:e}): {found:e}, {want:e}", e.isa());
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_rows(rows in 1..40usize, cols in 1..900usize, pad in 0..4usize, threads in 1..4usize) {
        for isa in isas() {
            let e = engine(isa, threads, Backend::Ours);
            rms_norm::<bf16>(&e, rows, cols, pad);
            convert::<bf16>(&e, rows, cols, pad);
            silu_mul::<bf16>(&e, rows, cols, pad);
            softmax(&e, rows, cols, pad);
            argmax(&e, rows, cols, pad);
            let half = cols / 8 + 1;
            let (norm, rope) = (rows % 2 == 0, cols % 3 > 0);
            heads::<bf16>(&e, Heads { batch: 1 + cols % 2, n: rows, heads: 1 + cols % 5, d: 2 * half, start: pad, norm, rope, pad });
        }
    }
}
