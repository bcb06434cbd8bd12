//! `y = x W^T`: packing, blocking and threads around the micro-kernels of [`crate::contract`].
//!
//! x is packed once into panels that all threads share. W is cut into blocks of tiles; a thread takes a block and runs
//! every panel of x against it, while the micro-kernel fetches the thread's next block between its multiply-adds: kernels
//! that work on rows of W as they lie prefetch it, the others pack it (a row copy). So weights are read from memory exactly
//! once.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use half::{bf16, slice::HalfFloatSliceExt};

use super::{SharedMut, dot, library};
use crate::{
    backend::vector::{UNROLL, looks},
    contract::{Ahead, Copier, Drain, Epilogues, GemmKernel, InPlace, Lines, Micro, Mul, Unit, UnitShape},
    engine::{Backend, Engine, Output},
    registry, tuning,
    view::{DType, Element, Mat, Weight, with_weight},
};

/// Which rows of W one task computes: `n` output features from `n0`, in a second matrix half `F` rows below too for SwiGLU.
pub(super) struct Split {
    /// Output features.
    pub n: usize,
    /// Row distance of the second half, if there is one.
    pub second: Option<usize>,
}

impl Split {
    pub fn of<A>(n: usize, out: &Output<'_, A>) -> Split {
        match out {
            Output::SwiGlu(_) => Split { n: n / 2, second: Some(n / 2) },
            _ => Split { n, second: None },
        }
    }

    pub fn halves(&self) -> usize {
        1 + usize::from(self.second.is_some())
    }
}

/// `y`, shared by the threads of a region: each writes other columns.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Store(SharedMut<f32>, Option<&'a [f32]>),
    Add(SharedMut<f32>),
    SwiGluF32(SharedMut<f32>),
    SwiGluBf16(SharedMut<u16>),
}

impl<'a> Target<'a> {
    /// The target and its row stride.
    pub fn of<A: Element>(out: &'a mut Output<'_, A>) -> (Target<'a>, usize) {
        match out {
            Output::Store(y) => (Target::Store(SharedMut::new(y.data_mut()), None), y.stride()),
            Output::Bias(y, b) => (Target::Store(SharedMut::new(y.data_mut()), Some(b)), y.stride()),
            Output::Add(y) => (Target::Add(SharedMut::new(y.data_mut())), y.stride()),
            Output::SwiGlu(y) => {
                let stride = y.stride();
                match A::DTYPE {
                    DType::BF16 => (Target::SwiGluBf16(SharedMut::new(bytemuck::cast_slice_mut(y.data_mut()))), stride),
                    _ => (Target::SwiGluF32(SharedMut::new(bytemuck::cast_slice_mut(y.data_mut()))), stride),
                }
            }
        }
    }
}

impl Target<'_> {
    /// The lines of `y[m0..m0 + cols][n0..n0 + rows]`, to be fetched within so many looks.
    fn lines(&self, m0: usize, n0: usize, cols: usize, rows: usize, stride: usize, looks: usize) -> Lines {
        let (at, len) = (m0 * stride + n0, (cols - 1) * stride + rows);
        let (y, size): (*const u8, usize) = match self {
            Target::Store(y, _) | Target::Add(y) | Target::SwiGluF32(y) => (y.ptr(at, len).cast(), 4),
            Target::SwiGluBf16(y) => (y.ptr(at, len).cast(), 2),
        };
        Lines::new(y, rows * size, cols, stride * size, looks)
    }
}

pub fn linear<A: Element>(e: &Engine, x: Mat<'_, A>, w: Weight<'_>, out: Output<'_, A>) {
    if w.k() == 0 {
        return library::linear(e, &library::GEMM, x, w, out);
    }
    match e.backend {
        Backend::Gemm => library::linear(e, &library::GEMM, x, w, out),
        #[cfg(all(target_os = "macos", feature = "accelerate"))]
        Backend::Accelerate => library::linear(e, &library::ACCELERATE, x, w, out),
        Backend::Ours => match e.forced.filter(|k| accepts(k, A::DTYPE, w.dtype())) {
            Some(k) => blocked(e, k, x, w, out),
            None if dot::forced(e, A::DTYPE, w.dtype()).is_some() => dot::linear(e, x, w, out),
            None => match choose(e, x.rows(), A::DTYPE, w, Split::of(w.n(), &out).halves()) {
                Some(k) => blocked(e, k, x, w, out),
                None => dot::linear(e, x, w, out),
            },
        },
    }
}

/// Whether a kernel can pack these types.
pub(super) fn accepts(k: &GemmKernel, x: DType, w: DType) -> bool {
    match k.mul {
        Mul::F32 => true,
        Mul::Bf16 => x == DType::BF16 && w == DType::BF16,
    }
}

/// The kernel of the strongest level that can serve these types, with the least padded work for `m` rows; none if a few-row
/// kernel does less.
fn choose(e: &Engine, m: usize, x: DType, w: Weight<'_>, halves: usize) -> Option<&'static GemmKernel> {
    if m <= tuning::dot_rows(e.isa, x, w.dtype()) {
        return None;
    }
    let able: Vec<_> = registry::kernels_of(e.isa).into_iter().filter(|k| accepts(k, x, w.dtype())).collect();
    let isa = able[0].isa;
    let cost = |k: &'static GemmKernel| tuning::tile_cost(k, m, Source::new(k, w).in_place.is_some(), halves);
    let best = able
        .into_iter()
        .filter(|k| k.isa == isa)
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
        .expect("every level has a kernel for every type: the portable one");
    let dot = m.next_multiple_of(4) as f64 * tuning::dot_cost(e.isa);
    (m > tuning::DOT_ROWS_MAX || cost(best) <= dot).then_some(best)
}

/// Calls the typed packing function of `k`.
///
/// # Safety
/// As `contract::PackX`, `src` taken from `x` at element `at` of row `m`.
unsafe fn pack_x<A: Element>(
    k: &GemmKernel,
    x: &Mat<'_, A>,
    m: usize,
    rows: usize,
    at: usize,
    len: usize,
    dst: *mut u8,
) {
    let src = x.data()[m * x.stride() + at..].as_ptr();
    // SAFETY: the caller's promise; `A` is f32 or bf16 (sealed), the latter a transparent u16.
    unsafe {
        match (A::DTYPE, k.pack_x_f32) {
            (DType::BF16, _) => (k.pack_x_bf16)(src.cast(), x.stride(), rows, len, dst),
            (_, Some(pack)) => pack(src.cast(), x.stride(), rows, len, dst),
            (_, None) => unreachable!("accepts() lets only BF16 reach a BF16 kernel"),
        }
    }
}

/// A kernel's functions for the type of W, and where W's elements are.
struct Source<'a> {
    micro: Micro,
    /// If W can be used as it lies.
    in_place: Option<InPlace>,
    /// If W can be packed by whole vectors.
    drain: Option<Drain>,
    w: Weight<'a>,
    k: &'static GemmKernel,
}

impl<'a> Source<'a> {
    fn new(k: &'static GemmKernel, w: Weight<'a>) -> Source<'a> {
        let (micro, in_place, drain) = match (&w, &k.w_f32, &k.w_f16) {
            (Weight::BF16(_), ..) => (k.w_bf16.micro, k.w_bf16.in_place, k.w_bf16.drain),
            (Weight::F32(_), Some(f), _) => (f.micro, f.in_place, f.drain),
            (Weight::F16(_), _, Some(f)) => (f.micro, f.in_place, f.drain),
            _ => unreachable!("accepts() lets only BF16 reach a BF16 kernel"),
        };
        // Rows that end in part of a vector are packed between blocks, whole rows at a time, as are those of kernels without
        // a queue.
        let whole = w.k().is_multiple_of(k.lanes * k.ku);
        Source { micro, in_place: in_place.filter(|_| whole), drain: drain.filter(|_| whole), w, k }
    }

    /// Address of element `at` of row `n`, after checking that it and the rest of `rows` rows from there are inside W.
    fn at(&self, n: usize, rows: usize, at: usize) -> *const u8 {
        with_weight!(self.w, t => {
            assert!(rows > 0 && rows <= self.k.nr && n + rows <= t.rows() && at < t.cols());
            t.data()[n * t.stride() + at..].as_ptr().cast()
        })
    }

    /// Bytes between two rows.
    fn stride_bytes(&self) -> usize {
        with_weight!(self.w, t => t.stride()) * self.w.dtype().size()
    }

    /// Address and bytes of whole rows, to prefetch.
    fn span(&self, n: usize, rows: usize) -> (*const u8, usize) {
        with_weight!(self.w, t => {
            let s = &t.data()[n * t.stride()..(n + rows - 1) * t.stride() + t.cols()];
            (s.as_ptr().cast(), size_of_val(s))
        })
    }

    /// Packs rows `n..n + rows`, elements `at..at + len`.
    ///
    /// # Safety
    /// `dst` is writable for `tile_bytes`, 64-byte aligned; the CPU has the kernel's ISA.
    unsafe fn pack(&self, n: usize, rows: usize, at: usize, len: usize, dst: *mut u8) {
        assert!(len <= self.k.kc && at + len <= self.w.k());
        let (src, stride) = (self.at(n, rows, at), self.stride_bytes() / self.w.dtype().size());
        // SAFETY: `Source::at` checked the source; half's types are transparent u16.
        unsafe {
            match (&self.w, &self.k.w_f32, &self.k.w_f16) {
                (Weight::BF16(_), ..) => (self.k.w_bf16.pack)(src.cast(), stride, rows, len, dst),
                (Weight::F32(_), Some(f), _) => (f.pack)(src.cast(), stride, rows, len, dst),
                (Weight::F16(_), _, Some(f)) => (f.pack)(src.cast(), stride, rows, len, dst),
                _ => unreachable!("accepts() lets only BF16 reach a BF16 kernel"),
            }
        }
    }
}

/// Elements of a line of y in f32.
const LINE: usize = 16;

fn blocked<A: Element>(e: &Engine, k: &'static GemmKernel, x: Mat<'_, A>, w: Weight<'_>, mut out: Output<'_, A>) {
    e.used.note(k.name);
    let (m, kk) = (x.rows(), w.k());
    let split = Split::of(w.n(), &out);
    let (target, y_stride) = Target::of(&mut out);
    let epilogues = &registry::row(e.isa).epilogues;

    let chunks = kk.div_ceil(k.kc);
    let chunk_len = |c: usize| (kk - c * k.kc).min(k.kc);
    let panels = m.div_ceil(k.mr);
    let chunk_bytes = k.panel_bytes(k.kc);
    let panel_bytes = chunk_bytes * chunks;

    // Pack x: one task for each panel and chunk.
    let mut shared = e.scratch.shared();
    let packed = SharedMut::new(shared.get(panels * panel_bytes));
    e.pool.for_each(panels * chunks, |t, _| {
        let (p, c) = (t / chunks, t % chunks);
        let rows = k.mr.min(m - p * k.mr);
        // SAFETY: each (panel, chunk) is one task and has its own place; rows and columns lie inside x; the engine
        // checked the ISA, and `registry::kernels_of` gives kernels of that level or below.
        unsafe {
            let dst = packed.slice(p * panel_bytes + c * chunk_bytes, chunk_bytes);
            pack_x(k, &x, p * k.mr, rows, c * k.kc, chunk_len(c), dst.as_mut_ptr());
        }
    });

    // Blocks of W: up to `most` tiles of each half, by a group of chunks of K. Of packed ones two are in a thread's buffer: one
    // computed, one being packed.
    let src = Source::new(k, w);
    let halves = split.halves();
    let all_tiles = split.n.div_ceil(k.nr);
    let per_vec = k.lanes * k.ku;
    let group = src.drain.map_or(chunks, |_| tuning::block_chunks(panels * panel_bytes).min(chunks));
    let groups = chunks.div_ceil(group);
    let in_group = |g: usize| g * group..chunks.min((g + 1) * group);
    let most = (e.block_bytes / (group * k.tile_bytes * halves)).clamp(1, all_tiles);
    // Where blocks begin at whole vectors of y, each of its lines is written once.
    let unit = (1..=LINE).find(|u| (u * k.nr).is_multiple_of(LINE)).unwrap_or(1).min(most);
    let most = most / unit * unit;
    let block_bytes = if src.in_place.is_some() { 0 } else { halves * most * group * k.tile_bytes };
    // Accumulators of a panel; all panels keep theirs from one group of chunks to the next.
    let half_acc = most * k.nr * k.mr;
    let panel_acc = halves * half_acc;
    let acc_len = if groups > 1 { panels * panel_acc } else { panel_acc };

    let next = AtomicUsize::new(0);
    // A thread starts with few tiles, since nothing hides their fetching, and shrinks its claims near the end.
    let claim = |first: bool| {
        let left = all_tiles.saturating_sub(next.load(Relaxed));
        let want = if first { 1 } else { (left / (2 * e.threads())).clamp(1, most) }.next_multiple_of(unit).min(most);
        let t0 = next.fetch_add(want, Relaxed);
        (t0 < all_tiles).then(|| t0..(t0 + want).min(all_tiles))
    };

    e.pool.run(|thread| {
        let mut scratch = e.scratch.thread(thread);
        let bytes = scratch.get(2 * block_bytes + acc_len * 4);
        let (w_pack, acc) = bytes.split_at_mut(2 * block_bytes);
        let (acc, w_pack) = (acc.as_mut_ptr().cast::<f32>(), w_pack.as_mut_ptr());
        // SAFETY: both halves of the buffer are `block_bytes` long.
        let mut buffers = [w_pack, unsafe { w_pack.add(block_bytes) }];
        // Tile t of a block, in its c-th chunk of a group.
        let tile_at = |h: usize, t: usize, c: usize| ((h * most + t) * group + c) * k.tile_bytes;
        let mut units: Vec<Unit> = Vec::with_capacity(halves * most);

        // The rows of tile t of a block that starts at tile t0: first row of W and count.
        let rows_of = |h: usize, t: usize| {
            let n = t * k.nr;
            (h * split.second.unwrap_or(0) + n, k.nr.min(split.n - n))
        };
        let pack_block = |block: &Range<usize>, g: usize, buffer: *mut u8| {
            for (i, t) in block.clone().enumerate() {
                for h in 0..halves {
                    for (at, c) in in_group(g).enumerate() {
                        let (n, rows) = rows_of(h, t);
                        // SAFETY: the tile's place lies inside this thread's buffer.
                        unsafe { src.pack(n, rows, c * k.kc, chunk_len(c), buffer.add(tile_at(h, i, at))) };
                    }
                }
            }
        };

        let Some(first) = claim(true) else { return };
        let (mut block, mut g) = (first, 0);
        if src.in_place.is_none() {
            pack_block(&block, g, buffers[0]);
        }
        loop {
            let next = if g + 1 < groups { Some((block.clone(), g + 1)) } else { claim(false).map(|b| (b, 0)) };
            units.clear();
            let turns = panels
                * block.len()
                * halves
                * in_group(g).map(|c| chunk_len(c).div_ceil(k.ku) / UNROLL).sum::<usize>();
            if let (Some((next, g)), Some(_)) = (&next, src.drain) {
                for h in 0..halves {
                    for (i, t) in next.clone().enumerate() {
                        let (n, rows) = rows_of(h, t);
                        // Inside the other half of the buffer, or never written.
                        let dst = buffers[1].wrapping_add(tile_at(h, i, 0));
                        units.push(Unit { src: src.at(n, rows, g * group * k.kc), rows, dst });
                    }
                }
            }
            let (prefetch, bytes) = match (&next, src.drain) {
                (Some((b, _)), None) => src.span(b.start * k.nr, (b.len() * k.nr).min(split.n - b.start * k.nr)),
                _ => (std::ptr::null(), 0),
            };
            let step = bytes.div_ceil((turns * UNROLL).max(1)).min(64);
            let of = in_group(next.as_ref().map_or(0, |n| n.1));
            let shape = UnitShape {
                src_stride: src.stride_bytes(),
                chunks: of.len(),
                vecs: k.kc / per_vec,
                last_vecs: chunk_len(of.end - 1) / per_vec,
                chunk_stride: k.tile_bytes,
            };
            let mut ahead = Ahead { queue: Copier::new(&units, shape, turns), prefetch, step, ..Ahead::nothing() };

            let (n0, rows) = (block.start * k.nr, (block.len() * k.nr).min(split.n - block.start * k.nr));
            let last_group = g + 1 == groups;
            for p in 0..panels {
                let (m0, cols) = (p * k.mr, k.mr.min(m - p * k.mr));
                // SAFETY: every panel has its accumulators, if there is more than one group.
                let acc = unsafe { acc.add(if groups > 1 { p * panel_acc } else { 0 }) };
                if let (Target::Store(_, Some(bias)), 0) = (target, g) {
                    for (i, b) in bias[n0..n0 + rows].iter().enumerate() {
                        // SAFETY: `rows * mr` accumulators are inside the buffer.
                        unsafe { std::slice::from_raw_parts_mut(acc.add(i * k.mr), k.mr) }.fill(*b);
                    }
                }
                if last_group {
                    // What `finish` writes soon is fetched in the shadow of the multiply-adds.
                    let steps = in_group(g).map(|c| looks(chunk_len(c).div_ceil(k.ku))).sum::<usize>();
                    ahead.own = target.lines(m0, n0, cols, rows, y_stride, steps * halves * block.len());
                }
                for (at, c) in in_group(g).enumerate() {
                    let steps = chunk_len(c).div_ceil(k.ku);
                    let accumulate = c > 0 || matches!(target, Target::Store(_, Some(_)));
                    for h in 0..halves {
                        for t in 0..block.len() {
                            // SAFETY: panel and tile were packed by this kernel for this chunk's length, or `rows` of W from
                            // `w` are inside it (`Source::at` checked) with whole vectors from `c * kc` on; the accumulator
                            // tile is inside the buffer; no thread writes `packed` any more; the queue's units were
                            // checked by `Source::at` and lie in the other half of the buffer, if they are packed.
                            unsafe {
                                let panel = packed.slice(p * panel_bytes + c * chunk_bytes, chunk_bytes).as_ptr();
                                let acc = acc.add(h * half_acc + t * k.nr * k.mr);
                                if let Some(in_place) = src.in_place {
                                    let (n, rows) = rows_of(h, block.start + t);
                                    let w = src.at(n, rows, c * k.kc);
                                    in_place(steps, panel, w, src.stride_bytes(), rows, acc, accumulate, &mut ahead);
                                } else {
                                    let tile = buffers[0].add(tile_at(h, t, at));
                                    (src.micro)(steps, panel, tile, acc, accumulate, &mut ahead);
                                }
                            }
                        }
                    }
                }
                if last_group {
                    // SAFETY: the accumulators of `rows` features by `cols` rows are computed; blocks of columns are
                    // disjoint.
                    unsafe { finish(epilogues, target, acc, half_acc, k.mr, rows, cols, m0, n0, y_stride) };
                }
            }
            let Some((next_block, next_g)) = next else { break };
            match (src.in_place, src.drain) {
                (Some(_), _) => {}
                // SAFETY: as for the kernel's queue above.
                (None, Some(drain)) => unsafe { drain(&mut ahead.queue) },
                (None, None) => pack_block(&next_block, next_g, buffers[1]),
            }
            buffers.swap(0, 1);
            (block, g) = (next_block, next_g);
        }
    });
}

/// Moves accumulators `[rows][mr]` (and the second half behind them) to `y[m0..m0 + cols][n0..n0 + rows]`.
///
/// # Safety
/// `acc` holds them; no other thread touches these elements of y; the CPU has the ISA of `e`.
#[allow(clippy::too_many_arguments)]
unsafe fn finish(
    e: &Epilogues,
    target: Target<'_>,
    acc: *mut f32,
    half_acc: usize,
    mr: usize,
    rows: usize,
    cols: usize,
    m0: usize,
    n0: usize,
    stride: usize,
) {
    let len = (cols - 1) * stride + rows;
    // SAFETY: `SharedMut::ptr` checks that the last element is inside y; the rest is the caller's promise.
    unsafe {
        match target {
            Target::Store(y, _) => (e.store)(acc, mr, rows, cols, y.ptr(m0 * stride + n0, len), stride),
            Target::Add(y) => (e.add)(acc, mr, rows, cols, y.ptr(m0 * stride + n0, len), stride),
            Target::SwiGluF32(y) => {
                (e.silu_mul)(rows * mr, acc, acc.add(half_acc));
                (e.store)(acc, mr, rows, cols, y.ptr(m0 * stride + n0, len), stride);
            }
            Target::SwiGluBf16(y) => {
                (e.silu_mul)(rows * mr, acc, acc.add(half_acc));
                (e.store_bf16)(acc, mr, rows, cols, y.ptr(m0 * stride + n0, len), stride);
            }
        }
    }
}

/// The rows of x as f32, in `buffer` if they are not already.
pub(super) fn widen<'a, A: Element>(x: Mat<'a, A>, buffer: &'a mut [u8]) -> Mat<'a, f32> {
    if let Some(x) = x.cast_f32() {
        return x;
    }
    let buffer: &mut [f32] = &mut bytemuck::cast_slice_mut(buffer)[..x.rows() * x.cols()];
    for (r, y) in buffer.chunks_exact_mut(x.cols().max(1)).enumerate() {
        widen_row(x.row(r), y);
    }
    Mat::new(buffer, x.rows(), x.cols())
}

/// One row as f32.
pub(super) fn widen_row<A: Element>(x: &[A], y: &mut [f32]) {
    match A::DTYPE {
        DType::BF16 => HalfFloatSliceExt::convert_to_f32_slice(bytemuck::cast_slice::<A, bf16>(x), y),
        _ => y.copy_from_slice(bytemuck::cast_slice(x)),
    }
}
