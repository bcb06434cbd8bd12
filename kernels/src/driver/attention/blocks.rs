//! Many rows, on the GEMM micro-kernels.

use std::ops::Range;

use super::asked::Asked;
use crate::{
    contract::{Ahead, GemmKernel, Mul},
    isa::kernel_name,
    levels::{self, dispatch},
    simd::{self, Kernel, Vector, larger, load, load_exact, store},
    team::Team,
    tuning,
    view::{DType, Element},
};

/// Rows of a panel, at most.
const MAX_MR: usize = 64;

/// The GEMM kernel of the strongest level that takes these types, that takes least time; `None` if heads are longer
/// than one call of it can multiply.
pub fn choose<A: Element>(e: &Team, c: &Asked<'_, A>) -> Option<&'static GemmKernel> {
    let able = levels::gemm_kernels(e.isa()).filter(|k| k.takes(A::DTYPE, A::DTYPE.into()));
    if let Some(k) = e.kernels.gemm.filter(|k| k.takes(A::DTYPE, A::DTYPE.into())) {
        return Some(k).filter(|k| c.d <= k.kc && k.mr <= MAX_MR);
    }
    let cost = |k: &GemmKernel| {
        let features = c.d.next_multiple_of(k.nr) + c.d;
        let panels = c.shape.batch * c.k.heads() * c.rows().div_ceil(k.mr);
        let rows = levels::of(k.isa).tuning.tile_cost(k, c.rows(), false, 1);
        rows * features as f64 * unevenness(panels, e.threads())
    };
    let isa = able.clone().next()?.isa;
    able.filter(|k| k.isa == isa && c.d <= k.kc && k.mr <= MAX_MR).min_by(|a, b| cost(a).total_cmp(&cost(b)))
}

/// How much longer so many panels take than their share of each thread, where they do not go round.
fn unevenness(panels: usize, threads: usize) -> f64 {
    if panels < 2 * threads { (panels.div_ceil(threads) * threads) as f64 / panels as f64 } else { 1.0 }
}

/// Panels of a task: enough tasks to balance, enough panels in each to repay the packing of K and V. Of four to eight tasks for each
/// thread, six wait least where packing a key takes a seventh of the time that a panel has for it.
fn per_task(sequences: usize, panels: usize, threads: usize) -> usize {
    (sequences * panels).div_ceil(6 * threads).clamp(1, tuning::ATTENTION_PANELS).min(panels)
}

/// Sequence and panels of the `t`-th task. The last rows see most keys: they go first, so that no long task is left for the end.
fn task(t: usize, sequences: usize, panels: usize, per_task: usize) -> (usize, Range<usize>) {
    let task = panels.div_ceil(per_task) - 1 - t / sequences;
    (t % sequences, task * per_task..panels.min((task + 1) * per_task))
}

/// Bytes of a panel of queries of `d` features, to where the next one begins.
fn q_bytes(k: &GemmKernel, d: usize) -> usize {
    k.panel_bytes(d).next_multiple_of(64)
}

/// Byte offsets of the parts of a thread's buffer, each on a cache line.
struct Layout(usize);

impl Layout {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(64);
        at
    }
}

/// What one task of [`blocks`] works in: pointers into its thread's buffer.
struct Work {
    /// A panel's rows of q, then of the output: `[mr][d]` of A.
    rows: *mut u8,
    /// Packed panels of q.
    q: *mut u8,
    /// One slab of V in panel layout, for transposing.
    slab: *mut u8,
    /// V^T, `[d][kb]` of the multiply type.
    vt: *mut u8,
    k_tiles: *mut u8,
    v_tiles: *mut u8,
    /// S^T, then P^T: `[kb][mr]`.
    s: *mut f32,
    /// P^T as a panel, where it is not S^T itself.
    p: *mut u8,
    /// O^T, `[panel][d][mr]`, features padded to whole tiles.
    o: *mut f32,
    /// Maxima and sums of the rows, `[panel][2][mr]`.
    stats: *mut f32,
}

pub fn blocks<A: Element>(e: &Team, k: &'static GemmKernel, c: &Asked<'_, A>) {
    e.used.note(k.name);
    e.used.note(kernel_name!(e.isa(), A, "attention_blocks"));
    let total = c.shape.past + c.shape.n;
    let kb = tuning::attention_keys(k);
    let kb = kb.min(total.next_multiple_of(k.mr));
    let panels = c.rows().div_ceil(k.mr);
    let sequences = c.shape.batch * c.k.heads();
    let per_task = per_task(sequences, panels, e.threads());
    let tasks = panels.div_ceil(per_task);

    let (k_tiles, v_tiles) = (kb.div_ceil(k.nr), c.d.div_ceil(k.nr));
    let d_pad = v_tiles * k.nr;
    let (k_tile_bytes, v_tile_bytes) = ((k.tile_bytes)(c.d), (k.tile_bytes)(kb));
    let team = e.take("attention");
    team.for_each(sequences * tasks, |t, thread| {
        let (s, Range { start: first, end: last }) = task(t, sequences, panels, per_task);
        let mut l = Layout(0);
        let at = [
            l.take(k.mr * c.d * size_of::<A>()),
            l.take(per_task * q_bytes(k, c.d)),
            l.take(k.panel_bytes(c.d)),
            l.take(c.d * kb * k.mul.size()),
            l.take(k_tiles * k_tile_bytes),
            l.take(v_tiles * v_tile_bytes),
            l.take(k_tiles * k.nr * k.mr * 4),
            l.take(k.panel_bytes(kb)),
            l.take(per_task * d_pad * k.mr * 4),
            l.take(per_task * 2 * k.mr * 4),
        ];
        let mut scratch = team.thread(thread);
        let base = scratch.get(l.0).as_mut_ptr();
        // SAFETY: all offsets lie inside the buffer, which `scratch` keeps to this thread for the task.
        let [rows, q, slab, vt, kt, vtt, sp, p, o, stats] = at.map(|at| unsafe { base.add(at) });
        let w =
            Work { rows, q, slab, vt, k_tiles: kt, v_tiles: vtt, s: sp.cast(), p, o: o.cast(), stats: stats.cast() };
        let block = Block { e, k, c, w, kb, d_pad, k_tile_bytes, v_tile_bytes, b: s / c.k.heads(), h: s % c.k.heads() };
        // SAFETY: the buffer is laid out as `Work` says, for `per_task` panels and blocks of `kb` keys; `choose` took a
        // kernel of the engine's level or below, with `d <= kc`; `kb <= kc`.
        unsafe { block.run(first, last) };
    });
}

/// One task: panels of rows of one KV head of one sequence, against all keys that they see.
struct Block<'a, 'b, A> {
    e: &'a Team,
    k: &'static GemmKernel,
    c: &'a Asked<'b, A>,
    w: Work,
    kb: usize,
    d_pad: usize,
    k_tile_bytes: usize,
    v_tile_bytes: usize,
    b: usize,
    h: usize,
}

impl<A: Element> Block<'_, '_, A> {
    /// # Safety
    /// `w` is laid out for `last - first` panels; this task alone writes their rows of the output.
    unsafe fn run(&self, first: usize, last: usize) {
        let (k, c, w, mr) = (self.k, self.c, &self.w, self.k.mr);
        let pack_x = k.pack_x(A::DTYPE);
        // Nothing is packed ahead, so the type that a micro-kernel would pack does not matter.
        let micro = k.weights(k.mul.dtype().into()).micro;
        let mut ahead = Ahead::nothing();
        let (q_bytes, o_len) = (q_bytes(k, c.d), self.d_pad * mr);
        let row_range = |p: usize| p * mr..c.rows().min((p + 1) * mr);
        for p in first..last {
            // SAFETY: `rows` holds `mr` rows of `d` elements, and the p-th panel's place is inside `q`.
            unsafe {
                for (r, heads) in self.runs(row_range(p)) {
                    let to = w.rows.cast::<A>().add((r - p * mr) * c.d);
                    let from = c.queries(self.b, self.h, r, heads);
                    std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
                }
                pack_x(w.rows, c.d * size_of::<A>(), row_range(p).len(), c.d, w.q.add((p - first) * q_bytes));
            }
        }
        // Keys that the last row sees: all that any row here needs.
        let end = c.limit(self.b, row_range(last - 1).end - 1);
        for k0 in (0..end).step_by(self.kb) {
            let keys = self.kb.min(end - k0);
            // SAFETY: `k0 + keys <= past + n`, which the caches hold (`Engine::attention` checked).
            unsafe { self.pack_block(k0, keys) };
            for p in first..last {
                let rows = row_range(p);
                let see = c.limit(self.b, rows.end - 1).saturating_sub(k0).min(keys);
                if see == 0 {
                    continue;
                }
                let i = p - first;
                let steps = c.d.div_ceil(k.ku);
                // SAFETY: panels and tiles were packed above; S has room for whole tiles of keys, O for whole tiles of
                // features; all parts are 64-byte aligned, whole tiles of `nr * mr` floats among them.
                unsafe {
                    let q = w.q.add(i * q_bytes).cast_const();
                    for t in 0..see.div_ceil(k.nr) {
                        let tile = w.k_tiles.add(t * self.k_tile_bytes).cast_const();
                        micro(steps, q, tile, w.s.add(t * k.nr * mr), false, &mut ahead);
                    }
                    let o = w.o.add(i * o_len);
                    let stats = std::slice::from_raw_parts_mut(w.stats.add(i * 2 * mr), 2 * mr);
                    dispatch(
                        k.isa,
                        Softmax {
                            s: std::slice::from_raw_parts_mut(w.s, see * mr),
                            p: std::slice::from_raw_parts_mut(w.p, k.panel_bytes(self.kb)),
                            o: std::slice::from_raw_parts_mut(o, c.d * mr),
                            stats,
                            mr,
                            ku: k.ku,
                            fill: k.fill,
                            mul: k.mul,
                            scale: c.scale,
                            k0,
                            limit: c.limit(self.b, rows.start),
                            place: rows.start % c.group,
                            group: c.group,
                        },
                    );
                    let panel = if k.mul == Mul::F32 && k.ku == 1 { w.s.cast::<u8>() } else { w.p };
                    for t in 0..self.d_pad / k.nr {
                        let tile = w.v_tiles.add(t * self.v_tile_bytes).cast_const();
                        micro(see.div_ceil(k.ku), panel, tile, o.add(t * k.nr * mr), k0 > 0, &mut ahead);
                    }
                }
            }
        }
        let epilogues = &self.e.level.epilogues;
        for p in first..last {
            let i = p - first;
            let rows = row_range(p);
            // SAFETY: O holds `d` features of `mr` rows for this panel, `rows` room for `mr` rows of `d` elements; the
            // rows of the output belong to this task.
            unsafe {
                let o = w.o.add(i * o_len);
                let sums = std::slice::from_raw_parts(w.stats.add((i * 2 + 1) * mr), mr);
                dispatch(k.isa, Normalise { o: std::slice::from_raw_parts_mut(o, c.d * mr), sums });
                match A::DTYPE {
                    DType::BF16 => (epilogues.store_bf16)(o, mr, c.d, rows.len(), w.rows.cast(), c.d),
                    _ => (epilogues.store)(o, mr, c.d, rows.len(), w.rows.cast(), c.d),
                }
                for (r, heads) in self.runs(rows) {
                    let from = w.rows.cast::<A>().add((r - p * mr) * c.d);
                    let from = std::slice::from_raw_parts(from, heads * c.d);
                    c.outputs(self.b, self.h, r, heads).copy_from_slice(from);
                }
            }
        }
    }

    /// The rows as runs of heads of one query, which lie side by side: the first row and the number of heads.
    fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let (group, end) = (self.c.group, rows.end);
        let run = move |r: usize| (r, (group - r % group).min(end - r));
        std::iter::successors((rows.start < end).then(|| run(rows.start)), move |(r, n)| {
            (r + n < end).then(|| run(r + n))
        })
    }

    /// Packs keys and values `k0..k0 + keys` into tiles: K by rows of keys, V by rows of features.
    ///
    /// # Safety
    /// The caches hold these positions; `w` is laid out for `kb >= keys` keys.
    unsafe fn pack_block(&self, k0: usize, keys: usize) {
        let (k, d, w) = (self.k, self.c.d, &self.w);
        let pack_x = k.pack_x(A::DTYPE);
        let (kh, vh) = (self.c.k.head(self.b, self.h), self.c.v.head(self.b, self.h));
        assert!(k0 + keys <= kh.rows() && keys <= self.kb);
        for t in 0..keys.div_ceil(k.nr) {
            let rows = k.nr.min(keys - t * k.nr);
            // SAFETY: rows `k0 + t * nr ..` are inside the head by the assertion; tile `t` is inside `k_tiles`.
            unsafe {
                let src = kh.row(k0 + t * k.nr).as_ptr();
                (k.weights(A::DTYPE.into()).pack)(
                    src.cast(),
                    d * size_of::<A>(),
                    rows,
                    d,
                    w.k_tiles.add(t * self.k_tile_bytes),
                );
            }
        }
        for j in (0..keys).step_by(k.mr) {
            let rows = k.mr.min(keys - j);
            // SAFETY: rows `k0 + j ..` are inside the head by the assertion; a slab is one panel of `mr` keys by `d` features; its columns `j..j + mr` of V^T are
            // inside `vt`, since kb is a multiple of mr.
            unsafe {
                pack_x(vh.row(k0 + j).as_ptr().cast(), d * size_of::<A>(), rows, d, w.slab);
                let slab = std::slice::from_raw_parts(w.slab, k.panel_bytes(d));
                match k.mul {
                    Mul::F32 => {
                        let vt = std::slice::from_raw_parts_mut(w.vt.cast::<f32>(), d * self.kb);
                        unpack_slab(bytemuck::cast_slice(slab), vt, j, k.mr, k.ku, self.kb);
                    }
                    Mul::Bf16 => {
                        let vt = std::slice::from_raw_parts_mut(w.vt.cast::<u16>(), d * self.kb);
                        let slab: &[u16] = bytemuck::cast_slice(slab);
                        if k.ku == 2 {
                            dispatch(k.isa, SplitPairs { slab, vt, j, mr: k.mr, kb: self.kb, d });
                        } else {
                            unpack_slab(slab, vt, j, k.mr, k.ku, self.kb);
                        }
                    }
                }
            }
        }
        for t in 0..d.div_ceil(k.nr) {
            let rows = k.nr.min(d - t * k.nr);
            // SAFETY: `rows` rows of V^T from `t * nr` on are inside `vt`; their first `keys` columns are written.
            unsafe {
                let (stride, dst) = (self.kb * k.mul.size(), w.v_tiles.add(t * self.v_tile_bytes));
                (k.weights(k.mul.dtype().into()).pack)(w.vt.add(t * k.nr * stride), stride, rows, keys, dst);
            }
        }
    }
}

/// Columns `j..j + mr` of V^T `[d][kb]` from a panel `[d/ku][mr][ku]`.
fn unpack_slab<T: Copy>(slab: &[T], vt: &mut [T], j: usize, mr: usize, ku: usize, kb: usize) {
    for (f, row) in vt.chunks_exact_mut(kb).enumerate() {
        let from = &slab[f / ku * mr * ku..][..mr * ku];
        if ku == 1 {
            row[j..j + mr].copy_from_slice(from);
        } else {
            row[j..j + mr].iter_mut().zip(from.iter().skip(f % ku).step_by(ku)).for_each(|(y, x)| *y = *x);
        }
    }
}

/// [`unpack_slab`] for pairs of 16 bits: the low and the high halves of each lane.
struct SplitPairs<'a> {
    slab: &'a [u16],
    vt: &'a mut [u16],
    j: usize,
    mr: usize,
    kb: usize,
    d: usize,
}

impl Kernel for SplitPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let low = v.splat_u32s(0xffff);
        for (f, pairs) in self.slab.chunks_exact(2 * self.mr).enumerate().take(self.d.div_ceil(2)) {
            for (at, x) in pairs.chunks_exact(2 * V::LANES).enumerate() {
                let x: V::U32s = bytemuck::pod_read_unaligned(bytemuck::cast_slice(x));
                let col = self.j + at * V::LANES;
                let halves = [v.and_u32s(x, low), v.shr_u32s(x, v.splat_u32s(16))];
                for (h, x) in halves.into_iter().enumerate().take(self.d - 2 * f) {
                    let to = &mut self.vt[(2 * f + h) * self.kb + col..][..V::LANES];
                    bytemuck::cast_slice_mut::<u16, u8>(to).copy_from_slice(bytemuck::bytes_of(&v.narrow(x)));
                }
            }
        }
    }
}

/// The online softmax of one panel against one block of keys: from S^T `[keys][mr]` to P^T, in place or as the panel `p`
/// of the multiply type; maxima and sums kept; O^T rescaled where a maximum has grown.
struct Softmax<'a> {
    s: &'a mut [f32],
    p: &'a mut [u8],
    o: &'a mut [f32],
    stats: &'a mut [f32],
    mr: usize,
    ku: usize,
    /// Keys that the panel `p` is filled up to a multiple of, by probabilities of 0.
    fill: usize,
    mul: Mul,
    scale: f32,
    /// The first key of the block; 0 for the first block.
    k0: usize,
    /// Keys that the panel's first row sees, from the start of the sequence.
    limit: usize,
    /// The place of the panel's first row in its group: each group sees one key more than the one before.
    place: usize,
    group: usize,
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Softmax { s, p, o, stats, mr, k0, .. } = self;
        let lanes = V::LANES;
        let keys = s.len() / mr;
        let open = self.limit.saturating_sub(k0).min(keys);
        let (first, low) = (k0 == 0, v.splat_f32s(f32::NEG_INFINITY));
        let scale = v.splat_f32s(self.scale);
        let (maxima, sums) = stats.split_at_mut(mr);
        let mut factors = [1f32; MAX_MR];
        let mut grown = false;
        for at in (0..mr).step_by(lanes) {
            if open < keys {
                let mut limits = [0u32; 16];
                for (i, l) in limits[..lanes].iter_mut().enumerate() {
                    *l = (self.limit + (self.place + at + i) / self.group) as u32;
                }
                let limits: V::U32s = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&limits[..lanes]));
                for (j, s) in s.chunks_exact_mut(mr).enumerate().skip(open) {
                    let s = &mut s[at..at + lanes];
                    let seen = v.greater_than_u32s(limits, v.splat_u32s((k0 + j) as u32));
                    store(v, s, v.select_f32s(seen, load(v, s), low));
                }
            }
            let mut m = [low; 4];
            let (fours, rest) = s.split_at(keys / 4 * 4 * mr);
            for s in fours.chunks_exact(4 * mr) {
                for (i, m) in m.iter_mut().enumerate() {
                    *m = larger(v, *m, load(v, &s[i * mr + at..][..lanes]));
                }
            }
            for s in rest.chunks_exact(mr) {
                m[0] = larger(v, m[0], load(v, &s[at..at + lanes]));
            }
            let m = v.mul_f32s(larger(v, larger(v, m[0], m[1]), larger(v, m[2], m[3])), scale);
            let (old, sum) = match first {
                true => (low, v.splat_f32s(0.0)),
                false => (load(v, &maxima[at..at + lanes]), load(v, &sums[at..at + lanes])),
            };
            let m = larger(v, old, m);
            // Where all scores so far are -inf there is no maximum to subtract.
            let base = v.neg_f32s(v.select_f32s(v.greater_than_f32s(m, low), m, v.splat_f32s(0.0)));
            let factor = simd::exp2_nonpos(v, v.add_f32s(old, base));
            store(v, &mut maxima[at..at + lanes], m);
            store(v, &mut factors[at..at + lanes], factor);
            grown |= v.reduce_min_f32s(factor) < 1.0;
            let columns = Columns::<V> { mr, at, scale, base };
            let new = match (self.mul, self.ku) {
                (Mul::F32, 1) => columns.exp(v, s),
                (Mul::Bf16, 2) => columns.exp_pairs(v, s, p),
                _ => {
                    let sum = columns.exp(v, s);
                    columns.interleave(v, s, p, self.mul, self.ku);
                    sum
                }
            };
            let sum = v.mul_add(sum, factor, new);
            store(v, &mut sums[at..at + lanes], sum);
        }
        if self.mul == Mul::Bf16 {
            let (filled, all) = (keys.next_multiple_of(self.ku), keys.next_multiple_of(self.fill));
            p[2 * filled * mr..2 * all * mr].fill(0);
        }
        if grown && !first {
            for o in o.chunks_exact_mut(mr) {
                for (o, f) in o.chunks_exact_mut(lanes).zip(factors.chunks_exact(lanes)) {
                    let y = v.mul_f32s(load(v, o), load(v, f));
                    store(v, o, y);
                }
            }
        }
    }
}

/// One vector of rows of S^T: its columns `at..at + lanes`.
struct Columns<V: Vector> {
    mr: usize,
    at: usize,
    scale: V::F32s,
    base: V::F32s,
}

impl<V: Vector> Columns<V> {
    /// `2^(s * scale + base)` in place; its sum over the keys.
    #[inline(always)]
    fn exp(&self, v: V, s: &mut [f32]) -> V::F32s {
        let mut sums = [v.splat_f32s(0.0); 2];
        for (j, s) in s.chunks_exact_mut(self.mr).enumerate() {
            let s = &mut s[self.at..self.at + V::LANES];
            let p = simd::exp2_nonpos(v, v.mul_add(load(v, s), self.scale, self.base));
            store(v, s, p);
            sums[j % 2] = v.add_f32s(sums[j % 2], p);
        }
        v.add_f32s(sums[0], sums[1])
    }

    /// `2^(s * scale + base)`, rounded to BF16, to the panel `[keys/2][mr][2]`; its sum over the keys.
    #[inline(always)]
    fn exp_pairs(&self, v: V, s: &[f32], p: &mut [u8]) -> V::F32s {
        let (mr, at, lanes) = (self.mr, self.at, V::LANES);
        let zero = v.splat_f32s(0.0);
        let mut sums = [zero; 2];
        for (s, p) in s.chunks(2 * mr).zip(p.chunks_exact_mut(4 * mr)) {
            let mut e = [zero; 2];
            for (u, s) in s.chunks_exact(mr).enumerate() {
                let x = v.mul_add(load(v, &s[at..at + lanes]), self.scale, self.base);
                e[u] = simd::exp2_nonpos_coarse(v, x);
                sums[u] = v.add_f32s(sums[u], e[u]);
            }
            let pair = simd::to_bf16_pairs(v, e);
            p[4 * at..4 * (at + lanes)].copy_from_slice(bytemuck::bytes_of(&pair));
        }
        v.add_f32s(sums[0], sums[1])
    }

    /// The columns, in the multiply type, to the panel `[keys/ku][mr][ku]`; the last step is filled up with zeros.
    #[inline(always)]
    fn interleave(&self, v: V, s: &[f32], p: &mut [u8], mul: Mul, ku: usize) {
        let (mr, at, lanes) = (self.mr, self.at, V::LANES);
        for (i, s) in s.chunks(ku * mr).enumerate() {
            for u in 0..ku {
                let x = if u * mr < s.len() { load_exact(v, &s[u * mr + at..][..lanes]) } else { v.splat_f32s(0.0) };
                match mul {
                    Mul::Bf16 => {
                        scatter::<u16>(bytemuck::bytes_of(&simd::to_bf16(v, x)), p, (i * mr + at) * ku + u, ku)
                    }
                    Mul::F32 => scatter::<u32>(bytemuck::bytes_of(&x), p, (i * mr + at) * ku + u, ku),
                }
            }
        }
    }
}

/// Elements of `x` to every `step`-th element of `p` from `at` on.
#[inline(always)]
fn scatter<T: bytemuck::Pod>(x: &[u8], p: &mut [u8], at: usize, step: usize) {
    let p = bytemuck::cast_slice_mut::<u8, T>(p);
    for (p, x) in p[at..].iter_mut().step_by(step).zip(x.chunks_exact(size_of::<T>())) {
        *p = bytemuck::pod_read_unaligned(x);
    }
}

/// Divides O^T `[d][mr]` by the rows' sums.
struct Normalise<'a> {
    o: &'a mut [f32],
    sums: &'a [f32],
}

impl Kernel for Normalise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        for (at, sums) in self.sums.chunks_exact(V::LANES).enumerate() {
            let f = v.div_f32s(v.splat_f32s(1.0), load(v, sums));
            for o in self.o.chunks_exact_mut(self.sums.len()) {
                let o = &mut o[at * V::LANES..][..V::LANES];
                let y = v.mul_f32s(load(v, o), f);
                store(v, o, y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::balance::end;

    /// Heads of OpenELM-1.1B: four query heads to a KV head, of which layers have three to eight. Where panels are few, they do not
    /// share out evenly; else threads end together.
    #[test]
    fn threads_end_together_where_heads_are_few() {
        let group: usize = 4;
        let (mut all_late, mut cases) = (0.0, 0);
        for (kv_heads, mr) in (3..=8).flat_map(|h| [16, 32, 48, 64].map(|mr| (h, mr))) {
            for n in [64, 128, 256, 512, 1024] {
                for threads in [1, 2, 4, 8, 16] {
                    let panels = (n * group).div_ceil(mr);
                    let some = per_task(kv_heads, panels, threads);
                    // Keys that each panel sees, in tasks that cover every panel once.
                    let sees = |p: usize| ((p + 1) * mr).min(n * group).div_ceil(group);
                    let tasks: Vec<usize> = (0..kv_heads * panels.div_ceil(some))
                        .map(|t| task(t, kv_heads, panels, some).1.map(sees).sum())
                        .collect();
                    let all: usize = kv_heads * (0..panels).map(sees).sum::<usize>();
                    assert_eq!(tasks.iter().sum::<usize>(), all);
                    let share = all as f64 / threads as f64;
                    // No thread can be done before the longest panel is.
                    let late = end(threads, false, &tasks) as f64 / share.max(sees(panels - 1) as f64);
                    let most = if kv_heads * panels >= 16 * threads { 1.05 } else { 1.15 };
                    assert!(late <= most, "{kv_heads} heads, {n} tokens, panels of {mr}, {threads} threads: {late:.3}");
                    (all_late, cases) = (all_late + late - 1.0, cases + 1);
                }
            }
        }
        assert!(all_late / f64::from(cases) < 0.02, "{}", all_late / f64::from(cases));
    }

    #[test]
    fn panels_that_do_not_go_round_count_for_more() {
        assert_eq!(
            [(16, 16), (8, 16), (17, 16), (32, 16), (1, 1), (5, 2)].map(|(p, t)| unevenness(p, t)),
            [1.0, 2.0, 32.0 / 17.0, 1.0, 1.0, 1.0]
        );
    }
}
