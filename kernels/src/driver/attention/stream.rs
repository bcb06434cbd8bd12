//! Few rows: the cache is read once, in place, each key for all rows of its head.

use std::marker::PhantomData;

use super::asked::Asked;
use crate::{
    contract::{STREAM_KEYS as KEYS, STREAM_ROWS as QUAD, StreamKernel},
    isa::kernel_name,
    levels::{self, dispatch},
    shared::SharedMut,
    simd::{self, Kernel, Vector, larger, load, load_exact, store},
    team::Team,
    tuning,
    view::Element,
};

/// Quads that share one pass over the cache.
const QUADS: usize = 4;
/// Keys that are worth a task of their own: fewer where threads would have none.
const SPLIT: usize = 512;
const SPLIT_FEW: usize = 128;
/// Scores of one block and one quad, filled up to a whole vector.
const SCORES: usize = KEYS * QUAD + 16;

pub(super) fn streams<A: Element>(e: &Team, c: &Asked<'_, A>) {
    let kernel = levels::stream_kernel(e.isa(), A::DTYPE, c.d);
    e.used.note(kernel.map_or(kernel_name!(e.isa(), A, "attention_stream"), |k| k.name));
    let (d, total) = (c.d, c.shape.past + c.shape.n);
    let sequences = c.shape.batch * c.k.heads();
    let row_chunks = c.rows().div_ceil(QUAD * QUADS);
    // Fewer heads than threads: the cache is cut along its length, too, and the parts are merged.
    let splits = splits(sequences * row_chunks, total, e.threads());
    let span = total.div_ceil(splits);
    let splits = total.div_ceil(span);
    // A row's part of the result: its maximum, its sum, and O unnormalised.
    let part = d + 2;
    let team = e.take("attention");
    let mut shared = team.shared();
    let len = if splits == 1 { 0 } else { sequences * splits * c.rows() * part };
    let parts: &mut [f32] = &mut bytemuck::cast_slice_mut(shared.get(len * 4))[..len];
    let merged = SharedMut::new(parts);
    let places = match kernel {
        Some(_) => (0..d).collect(),
        None => dispatch(e.isa(), Places::<A>(d, PhantomData)),
    };

    // Parts of one head, of one chunk of its rows, of one span: short ones are taken several at a time.
    let units = sequences * row_chunks * splits;
    let some = (tuning::STREAM_TASK_BYTES / (2 * span * d * size_of::<A>())).clamp(1, units.div_ceil(4 * e.threads()));
    let unit = |u: usize, thread: usize| {
        let (split, rest) = (u % splits, u / splits);
        let (chunk, s) = (rest % row_chunks, rest / row_chunks);
        let (b, h) = (s / c.k.heads(), s % c.k.heads());
        let rows = chunk * QUAD * QUADS..c.rows().min((chunk + 1) * QUAD * QUADS);
        let quads = rows.len().div_ceil(QUAD);
        let (first, end) = (split * span, total.min((split + 1) * span).min(c.limit(b, rows.end - 1)));

        let padded = d.next_multiple_of(16);
        let (q_len, o_len) = (quads * QUAD * padded, quads * QUAD * d);
        let mut scratch = team.thread(thread);
        let floats: &mut [f32] = bytemuck::cast_slice_mut(scratch.get((q_len + o_len + SCORES) * 4));
        let (q, floats) = floats.split_at_mut(q_len);
        let (o, scores) = floats.split_at_mut(o_len);
        q.fill(0.0);
        o.fill(0.0);
        for (i, r) in rows.clone().enumerate() {
            let query = c.queries(b, h, r, 1);
            match kernel {
                Some(_) => {
                    let quad: &mut [A] = bytemuck::cast_slice_mut(&mut q[i / QUAD * QUAD * padded..][..QUAD * padded]);
                    for (to, x) in quad.chunks_exact_mut(8 * QUAD).zip(query.chunks_exact(8)) {
                        to[i % QUAD * 8..][..8].copy_from_slice(x);
                    }
                }
                // In f32, in the order of `places`, filled up with zeros to whole vectors.
                None => places.iter().zip(query).for_each(|(at, x)| q[i * padded + at] = x.to_f32()),
            }
        }
        let mut stats = [([f32::NEG_INFINITY; QUAD], [0f32; QUAD]); QUADS];
        let (keys, values) = (c.k.head(c.cached(b), h).data(), c.v.head(c.cached(b), h).data());
        for k0 in (first..end).step_by(KEYS) {
            let n = KEYS.min(end - k0);
            let (keys, values) = (&keys[k0 * d..][..n * d], &values[k0 * d..][..n * d]);
            let quads = q.chunks_exact(QUAD * padded).zip(o.chunks_exact_mut(QUAD * d)).zip(&mut stats);
            for (i, ((q, o), stats)) in quads.enumerate() {
                // Keys of this block that each row sees; rows that only fill the quad may see them all.
                let see = std::array::from_fn(|r| c.limit(b, rows.start + i * QUAD + r).saturating_sub(k0).min(n));
                let scores = &mut scores[..SCORES];
                dispatch(e.isa(), Stream { kernel, q, padded, keys, values, scores, o, stats, see, d, scale: c.scale });
            }
        }
        for (i, r) in rows.enumerate() {
            let (max, sum) = (stats[i / QUAD].0[i % QUAD], stats[i / QUAD].1[i % QUAD]);
            let o = &o[i * d..][..d];
            // SAFETY: each (sequence, row, split) belongs to one task, which is given out once; without splits, so does the row of the
            // output. `slice` checks the bounds.
            unsafe {
                if splits == 1 {
                    let out = c.outputs(b, h, r, 1);
                    match kernel {
                        Some(_) => dispatch(e.isa(), Normalise { o, factor: 1.0 / sum, out }),
                        None => out.iter_mut().zip(&places).for_each(|(y, at)| *y = A::from_f32(o[*at] / sum)),
                    }
                } else {
                    let p = merged.slice(((s * splits + split) * c.rows() + r) * part, part);
                    (p[0], p[1]) = (max, sum);
                    p[2..].iter_mut().zip(&places).for_each(|(p, at)| *p = o[*at]);
                }
            }
        }
    };
    team.for_each(units.div_ceil(some), |t, thread| {
        (t * some..units.min((t + 1) * some)).for_each(|u| unit(u, thread));
    });
    if splits > 1 {
        let (rows, parts) = (sequences * c.rows(), &*parts);
        // SAFETY: the region that wrote the parts is over; each row is merged once.
        let row = |i: usize| unsafe { merge(c, parts, splits, (i / c.rows(), i % c.rows())) };
        // Lines that other cores wrote come slowly, so that many are worth a region.
        if len * 4 < tuning::MERGED_BYTES { (0..rows).for_each(row) } else { team.for_each(rows, |i, _| row(i)) }
    }
}

/// Parts that the cache of each of so many units is cut into, of `total` keys.
fn splits(units: usize, total: usize, threads: usize) -> usize {
    let least = if units < threads { SPLIT_FEW } else { SPLIT };
    if threads == 1 { 1 } else { (4 * threads).div_ceil(units).min(total.div_ceil(least)) }
}

/// `out = o * factor`.
struct Normalise<'a, A> {
    o: &'a [f32],
    factor: f32,
    out: &'a mut [A],
}

impl<A: Element> Kernel for Normalise<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let factor = v.splat_f32s(self.factor);
        for (y, o) in self.out.chunks_mut(V::LANES).zip(self.o.chunks(V::LANES)) {
            store(v, y, v.mul_f32s(load(v, o), factor));
        }
    }
}

/// Puts the parts `[sequence][split][row][max, sum, o..]` of row `r` of sequence `s` together.
///
/// # Safety
/// No other thread touches this row of the output.
unsafe fn merge<A: Element>(c: &Asked<'_, A>, parts: &[f32], splits: usize, (s, r): (usize, usize)) {
    let (rows, part) = (c.rows(), c.d + 2);
    let of_row = &parts[s * splits * rows * part..][..splits * rows * part];
    let each = || of_row.chunks_exact(part).skip(r).step_by(rows);
    let max = each().fold(f32::NEG_INFINITY, |m, p| if p[0] > m { p[0] } else { m });
    let (mut sum, mut o) = (0.0, vec![0f32; c.d]);
    // A part that saw no key has no weight.
    for p in each().filter(|p| p[1] != 0.0) {
        let weight = (p[0] - max).exp2();
        sum += weight * p[1];
        o.iter_mut().zip(&p[2..]).for_each(|(o, p)| *o += weight * p);
    }
    // SAFETY: the caller's promise.
    let out = unsafe { c.outputs(s / c.k.heads(), s % c.k.heads(), r, 1) };
    out.iter_mut().zip(o).for_each(|(y, o)| *y = A::from_f32(o / sum));
}

/// Where vectors of f32 keep each of so many features of a query or an output: as [`simd::load_pair`] loads those of keys and
/// values.
struct Places<A>(usize, PhantomData<A>);

impl<A: Element> Kernel for Places<A> {
    type Output = Vec<usize>;
    #[inline(always)]
    fn run<V: Vector>(self, _: V) -> Vec<usize> {
        let pair = 2 * V::LANES;
        let paired = self.0 / pair * pair;
        let place = |i| if i < paired { i / pair * pair + simd::place_in_pair::<V, A>(i % pair) } else { i };
        (0..self.0).map(place).collect()
    }
}

/// One block of keys and values `[n][d]` for one quad of rows: scores, probabilities, and their product with the values.
struct Stream<'a, A> {
    kernel: Option<&'static StreamKernel>,
    /// `[QUAD][padded]`, or as the kernel wants it.
    q: &'a [f32],
    padded: usize,
    keys: &'a [A],
    values: &'a [A],
    scores: &'a mut [f32],
    /// `[QUAD][d]`.
    o: &'a mut [f32],
    /// Maxima and sums.
    stats: &'a mut ([f32; QUAD], [f32; QUAD]),
    see: [usize; QUAD],
    d: usize,
    scale: f32,
}

impl<A: Element> Kernel for Stream<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Stream { kernel, q, padded, keys, values, scores, o, stats, see, d, scale } = self;
        let (lanes, n) = (V::LANES, keys.len() / d);
        let factors = match kernel {
            Some(k) => {
                assert!(q.len() * 2 >= QUAD * d && scores.len() >= QUAD * KEYS && d.is_multiple_of(k.features));
                assert!((1..=KEYS).contains(&n) && keys.len() == n * d && values.len() == n * d && o.len() == QUAD * d);
                let keys = keys.as_ptr().cast();
                // SAFETY: shapes as asserted; `levels::stream_kernel` gives the kernel to BF16 alone, whose bits are u16, and
                // of levels that the engine's ISA, which it checked, builds on.
                unsafe { (k.scores)(q.as_ptr().cast(), keys, n, d, scores.as_mut_ptr(), values.as_ptr().cast()) };
                softmax::<V, 4>(v, scores, n, see, stats, scale)
            }
            None => {
                // Two keys at a time share the loads of q.
                for (pair, s) in keys.chunks(2 * d).zip(scores.chunks_exact_mut(2 * QUAD)) {
                    ahead(v, pair, keys.len());
                    let (a, b) = (&pair[..d], &pair[pair.len() - d..]);
                    for (s, x) in s.chunks_exact_mut(QUAD).zip(dots(v, q, padded, a, b)) {
                        s.copy_from_slice(&x);
                    }
                }
                softmax::<V, 1>(v, scores, n, see, stats, scale)
            }
        };
        for (o, &f) in o.chunks_exact_mut(d).zip(&factors) {
            if f != 1.0 {
                o.iter_mut().for_each(|o| *o *= f);
            }
        }

        if let Some(k) = kernel {
            let next = keys.as_ptr_range().end.cast();
            // SAFETY: the assertions on shapes hold for this call too; it is the same kernel, of BF16 and this CPU.
            return unsafe { (k.weigh)(scores.as_ptr(), values.as_ptr().cast(), n, d, o.as_mut_ptr(), next) };
        }
        let mut at = 0;
        if V::REGISTERS >= 32 {
            while at + 4 * lanes <= d {
                weigh::<V, A, 4>(v, scores, values, o, d, at);
                at += 4 * lanes;
            }
        }
        while at + 2 * lanes <= d {
            weigh::<V, A, 2>(v, scores, values, o, d, at);
            at += 2 * lanes;
        }
        while at < d {
            weigh_part(v, scores, values, o, d, at);
            at += lanes;
        }
    }
}

/// Probabilities, unnormalised, from scores `[n / RUN][QUAD][RUN]`, in place; those that a row does not see, and what fills up the
/// last vector, become 0. Maxima and sums are kept; what the rows so far are to be multiplied by.
#[inline(always)]
fn softmax<V: Vector, const RUN: usize>(
    v: V,
    scores: &mut [f32],
    n: usize,
    see: [usize; QUAD],
    stats: &mut ([f32; QUAD], [f32; QUAD]),
    scale: f32,
) -> [f32; QUAD] {
    let (lanes, low) = (V::LANES, f32::NEG_INFINITY);
    let filled = n.next_multiple_of(RUN) * QUAD;
    let scores = &mut scores[..filled.next_multiple_of(lanes)];
    scores[filled..].fill(low);
    for (r, &see) in see.iter().enumerate() {
        for j in see..n.next_multiple_of(RUN) {
            scores[(j / RUN * QUAD + r) * RUN + j % RUN] = low;
        }
    }

    // A vector holds a whole number of quads.
    let row = |lane: usize| lane / RUN % QUAD;
    let mut m = [v.splat_f32s(low); QUAD];
    for (i, s) in scores.chunks_exact(lanes).enumerate() {
        m[i % QUAD] = larger(v, m[i % QUAD], load_exact(v, s));
    }
    let m = larger(v, larger(v, m[0], m[1]), larger(v, m[2], m[3]));
    let mut most = [low; QUAD];
    lanes_of(v, &m).iter().enumerate().for_each(|(l, &x)| most[row(l)] = most[row(l)].max(x));
    let (mut bases, mut factors) = ([0f32; QUAD], [0f32; QUAD]);
    for r in 0..QUAD {
        let m = (most[r] * scale).max(stats.0[r]);
        // Where all scores so far are -inf there is no maximum to subtract.
        bases[r] = if m > low { -m } else { 0.0 };
        factors[r] = if stats.0[r] == m { 1.0 } else { (stats.0[r] + bases[r]).exp2() };
        stats.0[r] = m;
    }
    let base: [f32; 16] = std::array::from_fn(|l| bases[row(l)]);
    let (scale, base) = (v.splat_f32s(scale), load_exact(v, &base[..lanes]));
    let mut sums = [v.splat_f32s(0.0); QUAD];
    for (i, s) in scores.chunks_exact_mut(lanes).enumerate() {
        let x = v.mul_add(load_exact(v, s), scale, base);
        // A kernel rounds them to BF16.
        let p = if RUN > 1 { simd::exp2_nonpos_coarse(v, x) } else { simd::exp2_nonpos(v, x) };
        store(v, s, p);
        sums[i % QUAD] = v.add_f32s(sums[i % QUAD], p);
    }
    let sum = v.add_f32s(v.add_f32s(sums[0], sums[1]), v.add_f32s(sums[2], sums[3]));
    let mut new = [0f32; QUAD];
    lanes_of(v, &sum).iter().enumerate().for_each(|(l, x)| new[row(l)] += x);
    for r in 0..QUAD {
        stats.1[r] = stats.1[r] * factors[r] + new[r];
    }
    factors
}

/// The lanes of a vector.
#[inline(always)]
fn lanes_of<V: Vector>(_: V, x: &V::F32s) -> &[f32] {
    bytemuck::cast_slice(std::slice::from_ref(x))
}

/// Prefetches the rows that lie `distance` elements after `rows`.
#[inline(always)]
fn ahead<V: Vector, A: Element>(v: V, rows: &[A], distance: usize) {
    for line in rows.chunks(64 / size_of::<A>()) {
        v.prefetch_l2(line.as_ptr().wrapping_add(distance).cast());
    }
}

/// The products of two keys with the queries `[QUAD][padded]`.
#[inline(always)]
fn dots<V: Vector, A: Element>(v: V, q: &[f32], padded: usize, a: &[A], b: &[A]) -> [[f32; QUAD]; 2] {
    let lanes = V::LANES;
    let mut acc = [[v.splat_f32s(0.0); QUAD]; 2];
    let [q0, q1, q2, q3]: [&[f32]; QUAD] = std::array::from_fn(|r| &q[r * padded..][..padded]);
    let pair = 2 * lanes;
    let queries =
        q0.chunks_exact(pair).zip(q1.chunks_exact(pair)).zip(q2.chunks_exact(pair)).zip(q3.chunks_exact(pair));
    for ((((q0, q1), q2), q3), (a, b)) in queries.zip(a.chunks_exact(pair).zip(b.chunks_exact(pair))) {
        let (a, b) = (simd::load_pair(v, a), simd::load_pair(v, b));
        for (r, q) in [q0, q1, q2, q3].into_iter().enumerate() {
            for ((q, a), b) in q.chunks_exact(lanes).zip(a).zip(b) {
                let q = load_exact(v, q);
                acc[0][r] = v.mul_add(a, q, acc[0][r]);
                acc[1][r] = v.mul_add(b, q, acc[1][r]);
            }
        }
    }
    for at in (a.len() / pair * pair..a.len()).step_by(lanes) {
        let (a, b) = (load(v, &a[at..]), load(v, &b[at..]));
        for (r, q) in [q0, q1, q2, q3].into_iter().enumerate() {
            let q = load_exact(v, &q[at..at + lanes]);
            acc[0][r] = v.mul_add(a, q, acc[0][r]);
            acc[1][r] = v.mul_add(b, q, acc[1][r]);
        }
    }
    [v.sums(acc[0]), v.sums(acc[1])]
}

/// `o[r][at..] += p[j][r] * values[j][at..]` for `C` vectors of features, an even number.
#[inline(always)]
fn weigh<V: Vector, A: Element, const C: usize>(v: V, p: &[f32], values: &[A], o: &mut [f32], d: usize, at: usize) {
    let lanes = V::LANES;
    let mut acc = [[v.splat_f32s(0.0); C]; QUAD];
    for (row, p) in values.chunks_exact(d).zip(p.as_chunks::<QUAD>().0) {
        let row = &row[at..at + C * lanes];
        ahead(v, row, values.len());
        let mut x = [v.splat_f32s(0.0); C];
        for (x, row) in x.chunks_exact_mut(2).zip(row.chunks_exact(2 * lanes)) {
            x.copy_from_slice(&simd::load_pair(v, row));
        }
        for (acc, &p) in acc.iter_mut().zip(p) {
            let p = v.splat_f32s(p);
            for (acc, &x) in acc.iter_mut().zip(&x) {
                *acc = v.mul_add(p, x, *acc);
            }
        }
    }
    for (acc, o) in acc.iter().zip(o.chunks_exact_mut(d)) {
        for (&acc, o) in acc.iter().zip(o[at..].chunks_exact_mut(lanes)) {
            let y = v.add_f32s(load_exact(v, o), acc);
            store(v, o, y);
        }
    }
}

/// [`weigh`] for the features from `at` to the end, fewer than two vectors.
#[inline(always)]
fn weigh_part<V: Vector, A: Element>(v: V, p: &[f32], values: &[A], o: &mut [f32], d: usize, at: usize) {
    let mut acc = [v.splat_f32s(0.0); QUAD];
    for (row, p) in values.chunks_exact(d).zip(p.as_chunks::<QUAD>().0) {
        let x = load(v, &row[at..]);
        for (acc, &p) in acc.iter_mut().zip(p) {
            *acc = v.mul_add(v.splat_f32s(p), x, *acc);
        }
    }
    for (&acc, o) in acc.iter().zip(o.chunks_exact_mut(d)) {
        let y = v.add_f32s(load(v, &o[at..]), acc);
        store(v, &mut o[at..], y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_cut_where_heads_are_few() {
        assert_eq!(splits(4, 1024, 1), 1);
        assert_eq!(splits(4, 1024, 2), 2);
        assert_eq!(splits(4, 256, 2), 1, "too short to be worth it");
        // Four heads for 16 threads.
        assert!(4 * splits(4, 1024, 16) >= 16 && 4 * splits(4, 256, 16) >= 8);
        assert_eq!(splits(64, 4096, 16), 1);
    }
}
