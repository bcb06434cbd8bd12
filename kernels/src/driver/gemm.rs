//! `y = x W^T`: packing, blocking and threads around the micro-kernels of [`crate::contract`].
//!
//! Each thread has a share of its own: some rows of x, which it packs into panels, by some of the features. W is cut into
//! blocks of tiles; a thread takes a block of its share, or of another when that is done, and runs every panel of the share
//! against it, while the micro-kernel fetches the thread's next block between its multiply-adds: kernels that work on rows
//! of W as they lie prefetch it, the others pack it (a row copy). So weights are read from memory once for each group of
//! rows.

use std::{
    ops::Range,
    sync::atomic::{
        AtomicPtr, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::{
    dot::{self, Few},
    output::{Factors, Target},
};
use crate::{
    contract::{
        Ahead, Columns, Copier, Drain, Epilogues, Fetch, ForWeight, GemmKernel, InPlace, PackX, Unit, UnitShape,
    },
    cpu::cache::Caches,
    levels,
    micro::tile::{UNROLL, looks},
    operands::Product,
    pool::Turn,
    shared::SharedMut,
    team::Team,
    tuning,
    view::{Element, Mat, Stored},
};

/// A kernel, its functions for the format of W, and where W's rows are.
pub(super) struct Source<'a> {
    k: &'static GemmKernel,
    of: &'static ForWeight,
    /// If W can be used as it lies.
    in_place: Option<InPlace>,
    /// If W can be packed by whole vectors.
    drain: Option<Drain>,
    /// Both halves of a product of two matrices, else the same twice.
    w: [Stored<'a>; 2],
    halves: usize,
}

impl<'a> Source<'a> {
    /// For `rows` of x in a thread's share.
    pub fn new(k: &'static GemmKernel, factors: Factors<'a>, rows: usize) -> Source<'a> {
        let halves = factors.halves();
        let of = k.weights(factors.half(0).format());
        let w: [Stored<'a>; 2] = std::array::from_fn(|h| factors.half(h.min(halves - 1)).stored());
        // Rows that end in part of a vector are packed between blocks, whole rows at a time, as are those of kernels without
        // a queue.
        let whole = w[0].k.is_multiple_of(k.lanes * k.ku);
        let in_place = of.in_place.filter(|_| whole && rows < levels::of(k.isa).tuning.copy_from);
        Source { k, of, in_place, drain: of.drain.filter(|_| whole), w, halves }
    }

    pub fn works_in_place(&self) -> bool {
        self.in_place.is_some()
    }

    /// Rows of each half.
    fn n(&self) -> usize {
        self.w[0].n
    }

    /// Elements of a row, and bytes between two.
    fn row(&self) -> (usize, usize) {
        (self.w[0].k, self.w[0].stride)
    }

    /// Address of element `at` of row `n` of half `h`, after checking that it and the rest of `rows` rows from there are inside.
    fn at(&self, h: usize, n: usize, rows: usize, at: usize) -> *const u8 {
        assert!(rows <= self.k.nr);
        self.w[h].rows(n, rows, at).as_ptr()
    }

    /// Packs rows `n..n + rows` of half `h`, elements `at..at + len`.
    ///
    /// # Safety
    /// `dst` is writable for `tile_bytes`, 64-byte aligned; the CPU has the kernel's ISA.
    unsafe fn pack(&self, h: usize, n: usize, rows: usize, at: usize, len: usize, dst: *mut u8) {
        let (k, stride) = self.row();
        assert!(len <= self.k.kc && at + len <= k);
        // SAFETY: `Source::at` checked the rows, which are of the function's format.
        unsafe { (self.of.pack)(self.at(h, n, rows, at), stride, rows, len, dst) }
    }
}

/// Elements of a line of y in f32.
const LINE: usize = 16;

/// Units of tiles for each thread below which shares end at any tile: the half of one is then 6% of a share.
const FEW_UNITS: usize = 8;

/// How much longer a product takes than its tiles by `threads`, because a tile of W is one thread's: 1 where that is little.
pub(super) fn unevenness(k: &GemmKernel, n: usize, groups: usize, threads: usize) -> f64 {
    let tiles = n.div_ceil(k.nr) * groups;
    let longest = (tiles.div_ceil(threads) * threads) as f64 / tiles as f64;
    if longest > 1.05 { longest } else { 1.0 }
}

/// Tiles that a thread computes by some panels of x, unless others that have nothing left take them: it takes blocks from
/// the front, they from the back.
struct Share {
    panels: Range<usize>,
    /// First tile and end of what is left, in the low and high half.
    left: AtomicU64,
    /// The panels, once they are packed.
    x: AtomicPtr<u8>,
}

impl Share {
    fn new(panels: Range<usize>, tiles: Range<usize>) -> Share {
        let left = AtomicU64::new((tiles.end as u64) << 32 | tiles.start as u64);
        Share { panels, left, x: AtomicPtr::default() }
    }

    fn left(&self) -> Range<usize> {
        let left = self.left.load(Relaxed);
        (left & u64::from(u32::MAX)) as usize..(left >> 32) as usize
    }

    /// Takes as many tiles as `want` says of what is left: at least one, unless there are none.
    fn take(&self, front: bool, want: impl Fn(usize) -> usize) -> Option<Range<usize>> {
        let mut old = self.left.load(Relaxed);
        loop {
            let (start, end) = (old & u64::from(u32::MAX), old >> 32);
            if start >= end {
                return None;
            }
            let n = (want((end - start) as usize) as u64).clamp(1, end - start);
            let (taken, rest) =
                if front { (start..start + n, (start + n, end)) } else { (end - n..end, (start, end - n)) };
            // The tiles are the only thing that is handed over: what belongs to them is read-only or comes with `x`.
            match self.left.compare_exchange_weak(old, rest.1 << 32 | rest.0, Relaxed, Relaxed) {
                Ok(_) => return Some(taken.start as usize..taken.end as usize),
                Err(now) => old = now,
            }
        }
    }
}

/// Tiles of W by the panels of a share, over one group of chunks of K.
#[derive(Clone)]
struct Block {
    share: usize,
    tiles: Range<usize>,
    group: usize,
}

/// A product of few rows that threads compute besides: some rows of W each time that their weights have been fetched in the
/// shadow of the multiply-adds.
struct Beside<'a> {
    few: Few<'a>,
    /// The first row that nobody has taken.
    next: AtomicUsize,
    /// Rows taken at a time.
    rows: usize,
    /// Calls of a micro-kernel in which those of one matrix are fetched, and turns of its loop in them.
    calls: usize,
    turns: usize,
}

impl<'a> Beside<'a> {
    /// For `calls` calls in all, of so many turns each.
    fn new(few: Few<'a>, calls: usize, turns: usize) -> Beside<'a> {
        let (n, halves) = (few.n(), few.halves());
        let least = tuning::BESIDE_BYTES.div_ceil(few.rows(0, 0, 1).len());
        let rows = (n * halves).div_ceil(calls.max(1)).max(least).next_multiple_of(4).min(n);
        let calls = (calls * rows / (n * halves)).max(1);
        Beside { few, next: AtomicUsize::new(0), rows, calls, turns: turns * calls }
    }

    fn take(&self) -> Option<Range<usize>> {
        let start = self.next.fetch_add(self.rows, Relaxed);
        (start < self.few.n()).then(|| start..self.few.n().min(start + self.rows))
    }
}

/// A thread's part of a [`Beside`].
struct Side<'a> {
    beside: &'a Beside<'a>,
    turn: &'a Turn<'a>,
    thread: usize,
    /// The rows taken, of which the matrix `half` is being fetched, for so many calls more.
    taken: Option<Range<usize>>,
    half: usize,
    calls_left: usize,
    fetch: Fetch,
    room: &'a mut [f32],
}

impl<'a> Side<'a> {
    fn new(beside: &'a Beside<'a>, turn: &'a Turn<'a>, thread: usize, room: &'a mut [f32]) -> Side<'a> {
        let mut side = Side { beside, turn, thread, taken: None, half: 0, calls_left: 0, fetch: Fetch::NONE, room };
        side.take();
        side
    }

    fn take(&mut self) {
        (self.taken, self.half) = (self.beside.take(), 0);
        self.fetch();
    }

    fn fetch(&mut self) {
        self.calls_left = self.beside.calls;
        self.fetch = match &self.taken {
            Some(rows) => {
                let w = self.beside.few.rows(self.half, rows.start, rows.len());
                Fetch::new(w.as_ptr(), w.len(), self.beside.turns)
            }
            None => Fetch::NONE,
        };
    }

    /// After a call of a micro-kernel, which has left `fetch`.
    fn call(&mut self, fetch: Fetch) {
        self.fetch = fetch;
        if self.taken.is_none() {
            return;
        }
        self.calls_left -= 1;
        if self.calls_left > 0 {
            return;
        }
        self.half += 1;
        if self.half < self.beside.few.halves() { self.fetch() } else { self.compute() }
    }

    /// Computes the rows taken, and takes others.
    fn compute(&mut self) {
        if let Some(rows) = self.taken.take() {
            self.rows(rows, std::ptr::null());
        }
        self.take();
    }

    fn rows(&mut self, rows: Range<usize>, next: *const u8) {
        let (few, room) = (&self.beside.few, &mut *self.room);
        // SAFETY: `Beside::take` gives rows to one thread.
        self.turn.logged(self.thread, "few rows beside", || unsafe { few.compute(rows, room, next) });
    }

    /// Computes what it has taken, and `all` that is left.
    fn end(mut self, all: bool) {
        while let Some(rows) = self.taken.take() {
            let next = self.beside.few.rows(0, rows.start, rows.len()).as_ptr();
            self.rows(rows, next);
            self.taken = if all { self.beside.take() } else { None };
        }
    }
}

/// How a product is cut.
#[derive(Clone, Debug)]
struct Plan {
    k: &'static GemmKernel,
    /// Elements of K.
    depth: usize,
    threads: usize,
    /// Chunks of K, and those of a block.
    chunks: usize,
    group: usize,
    /// Bytes of a tile, and of a chunk of a panel.
    tile_bytes: usize,
    chunk_bytes: usize,
    /// Tiles of W; most of a block, and how many of them begin where a line of y does.
    tiles: usize,
    most: usize,
    unit: usize,
    /// Rows of x in even passes, each of a grid of row groups by ranges of tiles.
    panels: usize,
    passes: usize,
    row_groups: usize,
    /// Whether threads pack the rows of their group each for itself, so that no packed line moves between cores.
    alone: bool,
}

impl Plan {
    /// For `m` rows of x by `n` of `halves` matrices, of `depth` elements. Blocks of a kernel with a `queue`, or of a tile unit, span a
    /// group of chunks; others, which nothing fetches chunk by chunk, all of them.
    fn new(
        k: &'static GemmKernel,
        (m, n, depth): (usize, usize, usize),
        halves: usize,
        queue: bool,
        threads: usize,
        caches: Caches,
    ) -> Plan {
        let tuning = &levels::of(k.isa).tuning;
        let chunks = depth.div_ceil(k.kc);
        let longest = depth.min(k.kc);
        let (tile_bytes, chunk_bytes) = ((k.tile_bytes)(longest), k.panel_bytes(longest).next_multiple_of(64));
        let panel_bytes = chunks * chunk_bytes;
        let panels = m.div_ceil(k.mr);
        let in_passes = |t: tuning::Tiles| (panels * k.mr).div_ceil(t.group_rows * threads);
        let passes = (panels * panel_bytes).div_ceil(tuning::PACKED_X_BYTES).max(tuning.tiles.map_or(1, in_passes));
        let passes = passes.min(panels);
        let row_groups = tuning.row_groups(m.div_ceil(passes), threads).min(panels / passes);
        let most_panels = panels.div_ceil(passes).div_ceil(row_groups);
        let copies = threads.div_ceil(row_groups);
        let fit = copies == 1 || threads * most_panels * panel_bytes <= tuning::PACKED_X_BYTES;
        let alone = fit && tuning.packs_alone(copies, n);

        // Blocks of W: up to `most` tiles of each half, by a group of chunks of K.
        let tiles = n.div_ceil(k.nr);
        let group = if queue || k.columns { tuning::BLOCK_CHUNKS.min(chunks) } else { chunks };
        let block_bytes = match tuning.tiles {
            // Panels of several chunks pass by; those of one stay.
            Some(_) => {
                tuning::tiles_block_bytes(caches, if chunks > 1 { 2 * chunk_bytes } else { most_panels * chunk_bytes })
            }
            None => tuning::block_bytes(caches),
        };
        let most = (block_bytes / (group * tile_bytes * halves)).clamp(1, tiles);
        // Where blocks begin at whole vectors of y, each of its lines is written once.
        let unit = (1..=LINE).find(|u| (u * k.nr).is_multiple_of(LINE)).unwrap_or(1).min(most);
        let most = most / unit * unit;
        Plan {
            k,
            depth,
            threads,
            chunks,
            group,
            tile_bytes,
            chunk_bytes,
            tiles,
            most,
            unit,
            panels,
            passes,
            row_groups,
            alone,
        }
    }

    fn chunk_len(&self, c: usize) -> usize {
        (self.depth - c * self.k.kc).min(self.k.kc)
    }

    fn steps(&self, c: usize) -> usize {
        self.chunk_len(c).div_ceil(self.k.ku)
    }

    fn groups(&self) -> usize {
        self.chunks.div_ceil(self.group)
    }

    fn in_group(&self, g: usize) -> Range<usize> {
        g * self.group..self.chunks.min((g + 1) * self.group)
    }

    fn panel_bytes(&self) -> usize {
        self.chunk_bytes * self.chunks
    }

    fn pass_panels(&self) -> usize {
        self.panels.div_ceil(self.passes)
    }

    /// Most panels of a share.
    fn most_panels(&self) -> usize {
        self.pass_panels().div_ceil(self.row_groups)
    }

    /// Part `i` of `of` of a range.
    fn part(i: usize, of: usize, all: Range<usize>) -> Range<usize> {
        let at = |i: usize| all.start + i * all.len() / of;
        at(i)..at(i + 1)
    }

    /// Panels of a pass.
    fn in_pass(&self, pass: usize) -> Range<usize> {
        Plan::part(pass, self.passes, 0..self.panels)
    }

    /// What each thread has in a pass.
    fn shares(&self, pass: usize) -> Vec<Share> {
        let first = |g: usize| (g * self.threads).div_ceil(self.row_groups);
        // Where a thread has few units, they are too coarse to share out.
        let few = self.tiles.div_ceil(self.unit) * self.row_groups < FEW_UNITS * self.threads;
        let unit = if few { 1 } else { self.unit };
        let share = |t: usize| {
            let g = t * self.row_groups / self.threads;
            let units = Plan::part(t - first(g), first(g + 1) - first(g), 0..self.tiles.div_ceil(unit));
            let tiles = units.start * unit..(units.end * unit).min(self.tiles);
            Share::new(Plan::part(g, self.row_groups, self.in_pass(pass)), tiles)
        };
        (0..self.threads).map(share).collect()
    }

    /// The next block for a thread: of its own share, else of the one with most left. Claims shrink near the end, so that no
    /// thread waits long for another; the `first` is small, since nothing hides its fetching.
    fn claim(&self, shares: &[Share], thread: usize, first: bool) -> Option<Block> {
        let want = |left: usize| match (if first { 1 } else { left / 2 }).min(self.most) {
            n if n < self.unit && !first => n,
            n => n.next_multiple_of(self.unit).min(self.most),
        };
        let own = shares[thread].take(true, want);
        if let Some(tiles) = own {
            return Some(Block { share: thread, tiles, group: 0 });
        }
        loop {
            let ready = shares.iter().enumerate().filter(|(_, s)| !s.x.load(Relaxed).is_null());
            let (share, left) = ready.map(|(i, s)| (i, s.left().len())).max_by_key(|s| s.1)?;
            if left == 0 {
                return None;
            }
            if let Some(tiles) = shares[share].take(false, want) {
                return Some(Block { share, tiles, group: 0 });
            }
        }
    }
}

/// A product, cut for the threads of a pool.
struct Cut<'a, A> {
    plan: Plan,
    k: &'static GemmKernel,
    pack: PackX,
    x: Mat<'a, A>,
    src: Source<'a>,
    target: Target<'a>,
    y_stride: usize,
    epilogues: &'static Epilogues,
    shares: Vec<Share>,
}

impl<A> std::ops::Deref for Cut<'_, A> {
    type Target = Plan;
    fn deref(&self) -> &Plan {
        &self.plan
    }
}

impl<A: Element> Cut<'_, A> {
    /// First row and count of tile `t`, of either half.
    fn rows_of(&self, t: usize) -> (usize, usize) {
        let n = t * self.k.nr;
        (n, self.k.nr.min(self.src.n() - n))
    }

    /// Where tile `t` of a packed block is, in its c-th chunk of a group.
    fn tile_at(&self, h: usize, t: usize, c: usize) -> usize {
        ((h * self.most + t) * self.group + c) * self.tile_bytes
    }

    /// Packs elements `at` of panel `p`, all of one chunk.
    ///
    /// # Safety
    /// `dst` is writable for their panel, 64-byte aligned.
    unsafe fn pack_x(&self, p: usize, at: Range<usize>, dst: *mut u8) {
        let (k, m) = (self.k, self.x.rows());
        assert!(at.len() <= k.kc && at.end <= self.depth);
        let rows = k.mr.min(m - p * k.mr);
        let src = self.x.data()[p * k.mr * self.x.stride() + at.start..].as_ptr();
        // SAFETY: rows and columns lie inside x; the engine checked the ISA, and `levels::kernels_of` gives kernels of that
        // level or below; the rest is the caller's promise.
        unsafe { (self.pack)(src.cast(), self.x.stride() * size_of::<A>(), rows, at.len(), dst) }
    }

    /// The elements of chunk `c`.
    fn chunk(&self, c: usize) -> Range<usize> {
        c * self.k.kc..c * self.k.kc + self.chunk_len(c)
    }

    /// Packs a block of W.
    ///
    /// # Safety
    /// `buffer` is a half of the thread's, which no kernel reads.
    unsafe fn pack_block(&self, block: &Block, buffer: *mut u8) {
        for (i, t) in block.tiles.clone().enumerate() {
            for h in 0..self.src.halves {
                for (at, c) in self.in_group(block.group).enumerate() {
                    let (n, rows) = self.rows_of(t);
                    // SAFETY: a block has at most `most` tiles, so this one's place lies inside the buffer.
                    unsafe {
                        self.src.pack(h, n, rows, c * self.k.kc, self.chunk_len(c), buffer.add(self.tile_at(h, i, at)))
                    };
                }
            }
        }
    }

    /// Everything that one thread does in a pass, in its own memory: one for the panels of its share; one with `w_bytes` for
    /// each of two packed blocks of W, if any, and accumulators. And what it does of a product `side` by side with this.
    fn work(&self, thread: usize, x: &mut [u8], memory: &mut [u8], w_bytes: usize, side: &mut Option<Side<'_>>) {
        let own = &self.shares[thread];
        if own.x.load(Relaxed).is_null() {
            for (panel, p) in x.chunks_exact_mut(self.panel_bytes()).zip(own.panels.clone()) {
                for (chunk, c) in panel.chunks_exact_mut(self.chunk_bytes).zip(0..self.chunks) {
                    // SAFETY: a whole chunk of a buffer that begins on a line, as chunks are whole lines.
                    unsafe { self.pack_x(p, self.chunk(c), chunk.as_mut_ptr()) };
                }
            }
            own.x.store(x.as_mut_ptr(), Release);
        }

        let (halves, groups) = (self.src.halves, self.groups());
        let (buffers, acc) = memory.split_at_mut(2 * w_bytes);
        let (acc, buffers) = (acc.as_mut_ptr().cast::<f32>(), buffers.as_mut_ptr());
        // SAFETY: `split_at_mut` left `2 * w_bytes` for the buffers.
        let mut buffers = [buffers, unsafe { buffers.add(w_bytes) }];
        let packs = self.src.in_place.is_none();
        let mut units: Vec<Unit> = Vec::with_capacity(halves * self.most);

        let Some(mut block) = self.claim(&self.shares, thread, true) else { return };
        if packs {
            // SAFETY: the buffer is a half of this thread's memory, and no kernel was started that reads it.
            unsafe { self.pack_block(&block, buffers[0]) };
        }
        loop {
            let next = match block.group + 1 {
                g if g < groups => Some(Block { group: g, ..block.clone() }),
                _ => self.claim(&self.shares, thread, false),
            };
            let steps: usize = self.in_group(block.group).map(|c| self.steps(c) / UNROLL).sum();
            let turns = self.shares[block.share].panels.len() * block.tiles.len() * halves * steps;
            units.clear();
            let mut ahead = match &next {
                Some(next) => self.ahead(next, turns, buffers[1], &mut units),
                None => Ahead::nothing(),
            };
            // SAFETY: the block was packed by this thread, if it is packed at all; no other thread has this memory.
            unsafe { self.compute(&block, buffers[0], acc, &mut ahead, side) };
            let Some(next) = next else { break };
            match (packs, self.src.drain) {
                (false, _) => {}
                // SAFETY: `ahead` put tiles of the next block into the other half of the buffer, from rows that it checked.
                (true, Some(drain)) => unsafe { drain(&mut ahead.queue) },
                // SAFETY: the buffer is a half of this thread's memory; its last reader was the block before the current one, which
                // is done.
                (true, None) => unsafe { self.pack_block(&next, buffers[1]) },
            }
            buffers.swap(0, 1);
            block = next;
        }
    }

    /// What kernels do for the `next` block in about `turns` turns of their loops; `units` must outlive it.
    fn ahead(&self, next: &Block, turns: usize, buffer: *mut u8, units: &mut Vec<Unit>) -> Ahead {
        let (k, of) = (self.k, self.in_group(next.group));
        if k.columns {
            let turns = turns * UNROLL * k.ku / k.fill / self.src.halves;
            let n = next.tiles.start * k.nr;
            let rows = (next.tiles.len() * k.nr).min(self.src.n() - n);
            let (first, last) = (of.start * k.kc, self.chunk(of.end - 1).end);
            let columns = |h: usize| {
                let w = &self.src.w[h];
                Columns::new(
                    w.rows(n, rows, first).as_ptr(),
                    self.src.of.format.bytes(last - first),
                    rows,
                    w.stride,
                    turns,
                )
            };
            let columns = [columns(0), if self.src.halves > 1 { columns(1) } else { Columns::nothing() }];
            return Ahead { columns, ..Ahead::nothing() };
        }
        let (prefetch, bytes) = match self.src.drain {
            Some(_) => (std::ptr::null(), 0),
            None => {
                let n = next.tiles.start * k.nr;
                let rows = self.src.w[0].rows(n, (next.tiles.len() * k.nr).min(self.src.n() - n), 0);
                (rows.as_ptr(), rows.len())
            }
        };
        if self.src.drain.is_some() {
            for h in 0..self.src.halves {
                for (i, t) in next.tiles.clone().enumerate() {
                    let (n, rows) = self.rows_of(t);
                    // Inside the other half of the buffer, or never written.
                    let dst = buffer.wrapping_add(self.tile_at(h, i, 0));
                    units.push(Unit { src: self.src.at(h, n, rows, of.start * k.kc), rows, dst });
                }
            }
        }
        let per_vec = k.lanes * k.ku;
        let shape = UnitShape {
            src_stride: self.src.row().1,
            chunks: of.len(),
            vecs: k.kc / per_vec,
            last_vecs: self.chunk_len(of.end - 1) / per_vec,
            chunk_stride: self.tile_bytes,
        };
        let step = bytes.div_ceil((turns * UNROLL).max(1)).min(64);
        Ahead { queue: Copier::new(units, shape, turns), prefetch, step, ..Ahead::nothing() }
    }

    /// A block by the panels of its share.
    ///
    /// # Safety
    /// `tiles` holds the block, if this kernel packs W; `acc` the accumulators of a panel, or of all panels if there is more
    /// than one group of chunks; no other thread writes either. The queue is that of [`Cut::ahead`].
    unsafe fn compute(
        &self,
        block: &Block,
        tiles: *const u8,
        acc: *mut f32,
        ahead: &mut Ahead,
        side: &mut Option<Side<'_>>,
    ) {
        let (k, halves, groups) = (self.k, self.src.halves, self.groups());
        let (half_acc, panel_bytes) = (self.most * k.nr * k.mr, self.panel_bytes());
        let share = &self.shares[block.share];
        let x = share.x.load(Acquire);
        let n0 = block.tiles.start * k.nr;
        let rows = (block.tiles.len() * k.nr).min(self.src.n() - n0);
        let last_group = block.group + 1 == groups;
        for (i, p) in share.panels.clone().enumerate() {
            let (m0, cols) = (p * k.mr, k.mr.min(self.x.rows() - p * k.mr));
            // SAFETY: every panel has its accumulators, if there is more than one group.
            let acc = unsafe { acc.add(if groups > 1 { i * halves * half_acc } else { 0 }) };
            if let (Target::Store(_, Some(bias)), 0) = (self.target, block.group) {
                for (i, b) in bias[n0..n0 + rows].iter().enumerate() {
                    // SAFETY: `rows * mr` accumulators are inside the buffer.
                    unsafe { std::slice::from_raw_parts_mut(acc.add(i * k.mr), k.mr) }.fill(*b);
                }
            }
            if last_group {
                // What `finish` writes soon is fetched in the shadow of the multiply-adds.
                let looks: usize = self.in_group(block.group).map(|c| looks(self.steps(c))).sum();
                ahead.own = self.target.lines(m0, n0, cols, rows, self.y_stride, looks * halves * block.tiles.len());
            }
            for (at, c) in self.in_group(block.group).enumerate() {
                let steps = self.steps(c);
                let accumulate = c > 0 || matches!(self.target, Target::Store(_, Some(_)));
                for h in 0..halves {
                    for t in 0..block.tiles.len() {
                        if let Some(side) = side {
                            ahead.beside = side.fetch;
                        }
                        // SAFETY: panel and tile were packed by this kernel for this chunk's length, or `rows` of W from
                        // `w` are inside it (`Source::at` checked) with whole vectors from `c * kc` on; the accumulator
                        // tile is inside the buffer; no thread writes packed x any more; the queue's units were
                        // checked by `Source::at` and lie in the other half of the buffer, if they are packed.
                        unsafe {
                            let panel = x.add(i * panel_bytes + c * self.chunk_bytes);
                            let acc = acc.add(h * half_acc + t * k.nr * k.mr);
                            if let Some(in_place) = self.src.in_place {
                                let (n, rows) = self.rows_of(block.tiles.start + t);
                                let w = self.src.at(h, n, rows, c * k.kc);
                                in_place(steps, panel, w, self.src.row().1, rows, acc, accumulate, ahead);
                            } else {
                                let tile = tiles.add(self.tile_at(h, t, at));
                                (self.src.of.micro)(steps, panel, tile, acc, accumulate, ahead);
                            }
                        }
                        if let Some(side) = side {
                            side.call(ahead.beside);
                        }
                    }
                }
            }
            if last_group {
                // SAFETY: the accumulators of `rows` features by `cols` rows are computed; each tile is taken once.
                unsafe { finish(self.epilogues, self.target, acc, half_acc, k.mr, rows, cols, m0, n0, self.y_stride) };
            }
        }
    }
}

/// The product, and `beside` it another one of few rows.
pub fn blocked<A: Element>(
    e: &Team,
    k: &'static GemmKernel,
    Product { x, w, mut out }: Product<'_, A>,
    mut beside: Option<Product<'_, A>>,
) {
    e.used.note(k.name);
    let factors = Factors::of(w, &out);
    let (target, y_stride) = Target::of(&mut out);
    let halves = factors.halves();
    let queue = Source::new(k, factors, 1).drain.is_some();
    let plan = Plan::new(k, (x.rows(), w.n(), w.k()), halves, queue, e.threads(), e.caches);
    let (panel_bytes, most_panels, alone) = (plan.panel_bytes(), plan.most_panels(), plan.alone);
    let src = Source::new(k, factors, x.rows().min(most_panels * k.mr));
    let x_bytes = if alone { most_panels * panel_bytes } else { 0 };

    // Of packed blocks two are in a thread's buffer: one computed, one being packed. All panels keep their accumulators from
    // one group of chunks to the next.
    let w_bytes = if src.in_place.is_some() { 0 } else { halves * plan.most * plan.group * plan.tile_bytes };
    let panel_acc = halves * plan.most * k.nr * k.mr * 4;
    let acc_bytes = if plan.chunks > plan.group { most_panels * panel_acc } else { panel_acc };

    let epilogues = &e.level.epilogues;
    let pack = k.pack_x(A::DTYPE);
    let mut product = Cut { plan, k, pack, x, src, target, y_stride, epilogues, shares: Vec::new() };
    let team = e.take("product");
    let mut shared = team.shared();
    let few = beside.as_mut().map(|b| {
        let kernel = dot::kernel(e, b.x.rows(), A::DTYPE, b.w.format());
        (kernel, b.x, Factors::of(b.w, &b.out), &mut b.out)
    });
    let few_bytes =
        few.as_ref().map_or(0, |(kernel, x, ..)| Few::bytes(kernel, x.rows(), x.cols()).next_multiple_of(64));
    let packed_bytes = if alone { 0 } else { product.pass_panels() * panel_bytes };
    let (few_x, packed_x) = shared.get(few_bytes + packed_bytes).split_at_mut(few_bytes);
    let beside = few.map(|(kernel, x, factors, out)| {
        let calls = product.panels * product.tiles * halves * product.chunks;
        let turns = product.depth.div_ceil(k.ku) / UNROLL / product.chunks;
        Beside::new(Few::new(e, kernel, x, factors, Target::of(out), few_x), calls, turns)
    });
    let room = beside.as_ref().map_or(0, |b| (b.few.room(b.rows) * 4).next_multiple_of(64));
    for pass in 0..product.passes {
        let panels = product.in_pass(pass);
        product.shares = product.shares(pass);
        if !alone {
            let packed = SharedMut::new(&mut *packed_x);
            // A panel in pieces, so that few panels keep all threads busy.
            let pieces = product.depth.min(k.kc).div_ceil(tuning::PACK_DEPTH);
            team.for_each(panels.len() * product.chunks * pieces, |task, _| {
                let (piece, task) = (task % pieces, task / pieces);
                let (i, c) = (task / product.chunks, task % product.chunks);
                let (chunk, first) = (product.chunk(c), piece * tuning::PACK_DEPTH);
                let at =
                    (chunk.start + first).min(chunk.end)..(chunk.start + first + tuning::PACK_DEPTH).min(chunk.end);
                if at.is_empty() {
                    return;
                }
                // SAFETY: each (panel, chunk, piece) is one task and has its own place, whole lines from the first, as PACK_DEPTH is a
                // multiple of any kernel's lines and of what it fills K up to.
                unsafe {
                    let place = i * panel_bytes + c * product.chunk_bytes + k.panel_bytes(first);
                    let dst = packed.slice(place, k.panel_bytes(at.len()));
                    product.pack_x(panels.start + i, at, dst.as_mut_ptr());
                }
            });
            for s in &product.shares {
                let at = (s.panels.start - panels.start) * panel_bytes;
                s.x.store(packed.ptr(at, s.panels.len() * panel_bytes), Release);
            }
        }
        team.run(|thread| {
            let mut scratch = team.thread(thread);
            let (x, memory) = scratch.get(x_bytes + 2 * w_bytes + acc_bytes + room).split_at_mut(x_bytes);
            let (memory, room) = memory.split_at_mut(2 * w_bytes + acc_bytes);
            let mut side = beside.as_ref().map(|b| Side::new(b, &team, thread, bytemuck::cast_slice_mut(room)));
            product.work(thread, x, memory, w_bytes, &mut side);
            if let Some(side) = side {
                side.end(pass + 1 == product.passes);
            }
        });
    }
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
    let (at, of) = ((m0, n0), (cols, rows));
    // SAFETY: `SharedMut::block` checks that the last element is inside y; the rest is the caller's promise.
    unsafe {
        match target {
            Target::Store(y, _) => (e.store)(acc, mr, rows, cols, y.block(stride, at, of), stride),
            Target::Add(y) => (e.add)(acc, mr, rows, cols, y.block(stride, at, of), stride),
            Target::SwiGluF32(y) => {
                (e.silu_mul)(rows * mr, acc, acc.add(half_acc));
                (e.store)(acc, mr, rows, cols, y.block(stride, at, of), stride);
            }
            Target::SwiGluBf16(y) => {
                (e.silu_mul)(rows * mr, acc, acc.add(half_acc));
                (e.store_bf16)(acc, mr, rows, cols, y.block(stride, at, of), stride);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn each_tile_of_a_share_is_taken_once_from_either_end() {
        const TILES: usize = 10_000;
        let share = Share::new(0..1, 5..5 + TILES);
        let taken: Vec<AtomicUsize> = (0..TILES).map(|_| AtomicUsize::new(0)).collect();
        let take_all = |front: bool, most: usize| {
            while let Some(tiles) = share.take(front, |left| (left / 2).min(most)) {
                assert!(!tiles.is_empty());
                tiles.for_each(|t| {
                    taken[t - 5].fetch_add(1, Relaxed);
                });
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| take_all(true, 7));
            s.spawn(|| take_all(false, 3));
            s.spawn(|| take_all(false, 1));
        });
        assert!(taken.iter().all(|t| t.load(Relaxed) == 1));
        assert!(share.left().is_empty() && share.take(true, |_| 1).is_none() && share.take(false, |_| 0).is_none());
        assert_eq!(Share::new(0..1, 3..5).take(true, |_| 0), Some(3..4), "at least one");
        assert_eq!(Share::new(0..1, 3..5).take(false, |_| 9), Some(3..5), "at most all");
    }

    /// When the last thread of a plan ends, over the work of one thread that had none to wait for, by simulation: in each pass the
    /// thread that is first done takes its next block, one ahead, as [`Cut::work`] does.
    fn lateness(plan: &Plan) -> f64 {
        let (mut ends, mut work) = (0, 0);
        for pass in 0..plan.passes {
            let mut x = 0u8;
            let shares = plan.shares(pass);
            shares.iter().for_each(|s| s.x.store(&raw mut x, Relaxed));
            let cost = |b: &Block| b.tiles.len() * shares[b.share].panels.len();
            let mut threads: Vec<(usize, Option<Block>)> =
                (0..plan.threads).map(|t| (0, plan.claim(&shares, t, true))).collect();
            while let Some(t) = (0..plan.threads).filter(|t| threads[*t].1.is_some()).min_by_key(|t| threads[*t].0) {
                let next = plan.claim(&shares, t, false);
                let block = std::mem::replace(&mut threads[t].1, next).expect("a thread with a block");
                work += cost(&block);
                threads[t].0 += cost(&block);
            }
            ends += threads.iter().map(|t| t.0).max().unwrap();
        }
        assert_eq!(work, plan.tiles * plan.panels, "each tile by each panel once");
        (ends * plan.threads) as f64 / work as f64
    }

    /// Products of OpenELM-1.1B, by every kernel of every level of this architecture for the rows that it is chosen for, on up to 64
    /// threads: no thread waits for 5% of the time, but where there are too few tiles to go round.
    #[test]
    fn threads_of_every_plan_end_together() {
        let caches = Caches { l1d: Some(48 << 10), l2: Some(2 << 20), l3: Some(64 << 20) };
        let mut worst = 0f64;
        for level in levels::isas() {
            for (n, k) in crate::driver::balance::shapes() {
                for m in [16, 32, 48, 64, 96, 128, 256, 300, 512, 1024] {
                    for threads in [1, 2, 4, 8, 16, 24, 32, 64] {
                        let cost = |kernel: &&GemmKernel| {
                            let groups = level.tuning.row_groups(m, threads);
                            unevenness(kernel, n, groups, threads)
                                * level.tuning.tile_cost(kernel, m.div_ceil(groups), false, 1)
                        };
                        let best = level.gemm.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
                        let Some(kernel) = best else { continue };
                        let queue = kernel.weights.iter().any(|w| w.drain.is_some());
                        let plan = Plan::new(kernel, (m, n, k), 1, queue, threads, caches);
                        let late = lateness(&plan);
                        // The best that whole tiles by the panels of a group allow.
                        let each = |pass| (plan.tiles * plan.row_groups).div_ceil(threads) * plan.in_pass(pass).len();
                        let fewest: usize = (0..plan.passes).map(each).sum::<usize>().div_ceil(plan.row_groups);
                        let least = (fewest * threads) as f64 / (plan.tiles * plan.panels) as f64;
                        if late > least.max(1.05) {
                            println!("{}: {m}x{n}x{k}, {threads} threads: {late:.3}, least {least:.3}", kernel.name);
                        }
                        worst = worst.max(late / least.max(1.05));
                    }
                }
            }
        }
        assert!(worst <= 1.0, "{worst:.3} times what whole tiles allow");
    }

    /// More rows would not stay in a thread's second-level cache beside blocks of W.
    #[test]
    fn a_tile_unit_meets_no_more_rows_of_x_at_a_time_than_its_groups_may_have() {
        for level in levels::isas() {
            let Some(tiles) = level.tuning.tiles else { continue };
            for kernel in level.gemm {
                for (m, threads) in
                    (1..3000).step_by(7).flat_map(|m| [1, 2, 3, 4, 7, 8, 16, 24, 32, 64].map(|t| (m, t)))
                {
                    let plan = Plan::new(kernel, (m, 2048, 2048), 1, false, threads, Caches::default());
                    let rows = plan.most_panels() * kernel.mr;
                    assert!(rows <= tiles.group_rows, "{}: {m} rows, {threads} threads: {rows} at a time", kernel.name);
                }
            }
        }
    }
}
