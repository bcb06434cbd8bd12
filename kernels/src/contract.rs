//! What a micro-kernel is. A kernel is one row of its level's file in [`crate::levels`]; the loops that call it know no ISA.
//!
//! `y[M,N] = x[M,K] W[N,K]^T`. Both operands are read along K. The activations are the *vector* side: a panel holds
//! `mr` rows of x, interleaved so that one load takes the same K step of many rows. The weights are the *broadcast*
//! side: a tile holds `nr` rows of W, converted to the multiply type if need be, but not transposed, so that packing
//! is a row copy. The accumulator is N-major, `[nr][mr]`: no kernel has tails; epilogues do.

use crate::{
    isa::Isa,
    simd::Vector,
    view::{DType, Format},
};

/// What the multiply instruction eats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mul {
    /// f32 fused multiply-add. Subnormal numbers are kept.
    F32,
    /// Pairs of BF16, accumulated in f32. Subnormal operands and sums are zero, whatever the control register says.
    Bf16,
}

impl Mul {
    /// Bytes of a packed element.
    pub(crate) const fn size(self) -> usize {
        self.dtype().size()
    }

    /// The type of packed elements.
    pub(crate) const fn dtype(self) -> DType {
        match self {
            Mul::F32 => DType::F32,
            Mul::Bf16 => DType::BF16,
        }
    }
}

/// Packs `rows <= mr` rows of `k <= kc` elements into one panel `[k.div_ceil(ku)][mr][ku]` of the multiply type; missing
/// rows and what fills K up are zero.
///
/// # Safety
/// `src` is readable for `rows` rows of `k` elements of the function's type, `stride` bytes apart, and aligned for it; `dst` is
/// writable for [`GemmKernel::panel_bytes`]; the CPU has the kernel's ISA.
pub(crate) type PackX = unsafe fn(src: *const u8, stride: usize, rows: usize, k: usize, dst: *mut u8);

/// Packs `rows <= nr` rows of weights of `k <= kc` elements into one tile in the kernel's own layout; missing rows and
/// what fills K up are zero. Reads nothing past the last element of any row.
///
/// # Safety
/// As [`PackX`], with `tile_bytes` for `dst`.
pub(crate) type PackW = unsafe fn(src: *const u8, stride: usize, rows: usize, k: usize, dst: *mut u8);

/// Rows of weights to be packed, over their whole K, into one tile for each chunk of K.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    /// First element of the first row.
    pub src: *const u8,
    /// Rows, at least 1.
    pub rows: usize,
    /// The tile of the first chunk; those of the next chunks follow it.
    pub dst: *mut u8,
}

/// What all units of a queue share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitShape {
    /// Bytes between rows of the source.
    pub src_stride: usize,
    /// Chunks of K.
    pub chunks: usize,
    /// Whole vectors of a row in every chunk but the last.
    pub vecs: usize,
    /// Whole vectors of a row in the last chunk.
    pub last_vecs: usize,
    /// Bytes between the tiles of two chunks.
    pub chunk_stride: usize,
}

/// A queue of [`Unit`]s that micro-kernels work off, a few vectors in each turn of their loop: the row copies that make
/// up packing run in the shadow of the multiply-adds. Rows are read from end to end, one after the other, as memory
/// likes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copier {
    /// Vectors to copy in each turn of the kernel's loop.
    pub per_turn: usize,
    /// Vectors left of the current row in the current chunk; 0 when all is done.
    pub in_chunk: usize,
    pub chunks_left: usize,
    pub rows_left: usize,
    pub units_left: usize,
    pub src: *const u8,
    pub dst: *mut u8,
    pub chunk_dst: *mut u8,
    pub row_src: *const u8,
    pub row_dst: *mut u8,
    pub unit: *const Unit,
    pub shape: UnitShape,
}

impl Copier {
    /// Works off `units`, in about `turns` turns of a kernel's loop. `units` must outlive the use of the queue.
    pub fn new(units: &[Unit], shape: UnitShape, turns: usize) -> Copier {
        let row = (shape.chunks - 1) * shape.vecs + shape.last_vecs;
        let vecs: usize = units.iter().map(|u| u.rows * row).sum();
        let mut q = Copier {
            per_turn: vecs.div_ceil(turns.max(1)),
            in_chunk: 0,
            chunks_left: 0,
            rows_left: 0,
            units_left: units.len(),
            src: std::ptr::null(),
            dst: std::ptr::null_mut(),
            chunk_dst: std::ptr::null_mut(),
            row_src: std::ptr::null(),
            row_dst: std::ptr::null_mut(),
            unit: units.as_ptr(),
            shape,
        };
        if let Some(u) = units.first() {
            (q.rows_left, q.row_src, q.row_dst) = (u.rows, u.src, u.dst);
            q.start_row();
        }
        q
    }

    /// Begins the row at `row_src`.
    #[inline(always)]
    pub fn start_row(&mut self) {
        (self.src, self.dst, self.chunk_dst) = (self.row_src, self.row_dst, self.row_dst);
        self.chunks_left = self.shape.chunks;
        self.in_chunk = if self.shape.chunks > 1 { self.shape.vecs } else { self.shape.last_vecs };
    }
}

/// Cache lines of rows that are written soon, to be fetched for that a few at a time: all at once they would stand in the way
/// of the operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines {
    row: *const u8,
    stride: usize,
    rows_left: usize,
    /// Lines of a row.
    lines: usize,
    line: usize,
    /// Lines to fetch at one look.
    pub some: usize,
}

impl Lines {
    /// `rows` rows of `len` bytes, `stride` bytes apart, to be fetched within so many looks.
    pub fn new(row: *const u8, len: usize, rows: usize, stride: usize, looks: usize) -> Lines {
        let lines = (row.addr() % 64 + len).div_ceil(64);
        Lines { row, stride, rows_left: rows, lines, line: 0, some: (rows * lines).div_ceil(looks.max(1)) }
    }

    /// The next line.
    #[inline(always)]
    pub fn next(&mut self) -> Option<*const u8> {
        if self.rows_left == 0 {
            return None;
        }
        let line = self.row.wrapping_add(self.line * 64);
        self.line += 1;
        if self.line == self.lines {
            (self.line, self.row) = (0, self.row.wrapping_add(self.stride));
            self.rows_left -= 1;
        }
        Some(line)
    }
}

/// A stretch of memory to be fetched evenly over a number of turns of a kernel's loop. It is never read: any address will do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub at: *const u8,
    /// Lines to fetch in each turn, and bytes between them.
    pub per_turn: usize,
    pub step: usize,
}

impl Fetch {
    /// Nothing.
    pub const NONE: Fetch = Fetch { at: std::ptr::null(), per_turn: 0, step: 0 };

    /// `bytes` bytes from `at` on, in `turns` turns.
    pub fn new(at: *const u8, bytes: usize, turns: usize) -> Fetch {
        let each = bytes.div_ceil(turns.max(1));
        let per_turn = each.div_ceil(64);
        Fetch { at, per_turn, step: each.div_ceil(per_turn.max(1)) }
    }

    /// What a few-row kernel fetches while it computes a `block` of W, as many `bytes` as that has, in `turns` turns: the `rest` of W, or
    /// what is read `next`. If `next` is null, not even the rest is fetched: the block itself is asked for again, which is there already,
    /// as a prefetch of no page at all costs a walk of the tables.
    pub fn after_block(
        block: *const u8,
        rest: Option<*const u8>,
        next: *const u8,
        bytes: usize,
        turns: usize,
    ) -> Fetch {
        Fetch::new(if next.is_null() { block } else { rest.unwrap_or(next) }, bytes, turns)
    }

    /// Fetches those of one turn into the second-level cache.
    #[inline(always)]
    pub fn turn<V: Vector>(&mut self, v: V) {
        for _ in 0..self.per_turn {
            v.prefetch_l2(self.at);
            self.at = self.at.wrapping_add(self.step);
        }
    }
}

/// Rows of weights to be fetched in the order in which a tile unit reads them: a line of each row, then the next line of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    /// The next line.
    pub at: *const u8,
    /// Bytes between rows.
    pub stride: usize,
    /// Rows, a multiple of four: what stands past the last is fetched in vain.
    pub rows: usize,
    /// Rows that are left of the column.
    pub rows_left: usize,
    /// Fours of lines that are left, and those of each step of K.
    pub left: usize,
    pub per_step: usize,
}

impl Columns {
    /// Lines that one look fetches.
    pub const FOUR: usize = 4;

    pub const fn nothing() -> Columns {
        Columns { at: std::ptr::null(), stride: 0, rows: 0, rows_left: 0, left: 0, per_step: 0 }
    }

    /// `len` bytes of each of `rows` rows from `at` on, to be fetched within so many steps.
    pub fn new(at: *const u8, len: usize, rows: usize, stride: usize, steps: usize) -> Columns {
        let rows = rows.next_multiple_of(Columns::FOUR);
        let left = len.div_ceil(64) * rows / Columns::FOUR;
        Columns { at, stride, rows, rows_left: rows, left, per_step: left.div_ceil(steps.max(1)) }
    }

    /// Bytes from past the last row of a column to the first of the next, to be added with wrapping.
    pub fn back(&self) -> usize {
        64usize.wrapping_sub(self.rows.wrapping_mul(self.stride))
    }
}

/// What a micro-kernel does for the next block of weights in the shadow of its multiply-adds.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// Packing, for kernels whose tiles are copies of rows; for kernels on unpacked rows, what to prefetch.
    pub queue: Copier,
    /// Where the accumulators go.
    pub own: Lines,
    /// What another product will read, for the second-level cache. A kernel may leave it alone.
    pub beside: Fetch,
    /// For the others: an address to prefetch from in each step of K, never read; it moves on by `step` bytes.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    pub prefetch: *const u8,
    /// Bytes between prefetches.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    pub step: usize,
    /// For tile units: the next block of either half of W, one after the other.
    pub columns: [Columns; 2],
}

impl Ahead {
    /// Nothing to pack and nothing to prefetch.
    pub fn nothing() -> Ahead {
        let shape = UnitShape { src_stride: 0, chunks: 1, vecs: 0, last_vecs: 0, chunk_stride: 0 };
        Ahead {
            queue: Copier::new(&[], shape, 1),
            own: Lines::new(std::ptr::null(), 0, 0, 0, 0),
            beside: Fetch::NONE,
            prefetch: std::ptr::null(),
            step: 0,
            columns: [Columns::nothing(); 2],
        }
    }
}

/// `acc[nr][mr] (+)= tile x panel` over `steps` K steps, and some of what is `ahead`. `acc` is overwritten if `accumulate`
/// is false.
///
/// # Safety
/// `panel` and `tile` were packed by this kernel for `steps = k.div_ceil(ku)`, `k <= kc`; `acc` is valid for `nr * mr` f32;
/// all three are 64-byte aligned; the queue's units are readable weights of this function's type and writable tiles of
/// this kernel, other than `tile`; the CPU has the kernel's ISA.
pub(crate) type Micro =
    unsafe fn(steps: usize, panel: *const u8, tile: *const u8, acc: *mut f32, accumulate: bool, ahead: &mut Ahead);

/// As [`Micro`], on `rows <= nr` rows of W as they lie in memory, `stride` bytes apart; rows beyond them are computed from some
/// row and mean nothing. The queue's rows are prefetched to the second-level cache, not copied.
///
/// # Safety
/// As [`Micro`]; instead of a tile, `rows` rows of W are readable for `steps` K steps from `w`.
pub(crate) type InPlace = unsafe fn(
    steps: usize,
    panel: *const u8,
    w: *const u8,
    stride: usize,
    rows: usize,
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
);

/// Works off what is left in the queue.
///
/// # Safety
/// As for the queue of [`Micro`].
pub(crate) type Drain = unsafe fn(queue: &mut Copier);

/// A kernel's functions for weights that are stored in one format, whatever it multiplies them in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForWeight {
    pub format: Format,
    pub micro: Micro,
    /// On unpacked weights, if their format is what is multiplied and the tile has few enough rows.
    pub in_place: Option<InPlace>,
    pub pack: PackW,
    /// `None` if the kernel's tiles are no row copies: it leaves the queue alone and prefetches.
    pub drain: Option<Drain>,
}

/// `out[m][n] = x[m] . w[n]` for a few rows of activations: no packing, weights read once, in place. `rows` rows of x against `n`
/// consecutive rows of W; what the caller will read after them, at `next`, may be prefetched. `next` is null where the rows are in
/// the second-level cache already. The sums are the same either way.
///
/// # Safety
/// `x` is readable for `rows` rows of `k` elements of the kernel's type `x_stride` bytes apart, `w` for `n` rows of `k` elements
/// `w_stride` bytes apart, both aligned; `out` is writable at `m * out_stride + n`; the CPU has the kernel's ISA.
pub(crate) type Dot = unsafe fn(
    k: usize,
    x: *const u8,
    x_stride: usize,
    rows: usize,
    w: *const u8,
    w_stride: usize,
    n: usize,
    out: *mut f32,
    out_stride: usize,
    next: *const u8,
);

/// One GEMM micro-kernel with its packing.
#[derive(Debug)]
pub struct GemmKernel {
    /// `gemm_<x>x<w>_f32_<mr>x<nr>_<isa>`; `<x>`, `<w>` are the packed types.
    pub name: &'static str,
    /// The instruction set it needs.
    pub isa: Isa,
    /// The multiply type of the packed operands.
    pub mul: Mul,
    /// Rows of x in a panel.
    pub mr: usize,
    /// Rows of W in a tile.
    pub nr: usize,
    /// K elements of one step, side by side in a panel.
    pub ku: usize,
    /// Packed K is filled up with zeros to a multiple of so many elements, itself one of `ku`.
    pub(crate) fill: usize,
    /// Longest K of one call.
    pub kc: usize,
    /// Bytes of a packed tile of so many elements of K, whole lines.
    pub(crate) tile_bytes: fn(k: usize) -> usize,
    /// Lanes of a vector: the queue of row copies moves `lanes * ku` weights at a time.
    pub(crate) lanes: usize,
    /// Whether it fetches the next block of W by [`Columns`].
    pub(crate) columns: bool,
    /// How activations of each type become panels.
    pub(crate) pack_x: &'static [(DType, PackX)],
    /// The formats of weights that it takes.
    pub(crate) weights: &'static [ForWeight],
}

impl GemmKernel {
    /// Bytes of a packed panel for `k` elements.
    pub const fn panel_bytes(&self, k: usize) -> usize {
        k.next_multiple_of(self.fill) * self.mr * self.mul.size()
    }

    /// Whether it can multiply activations of this type and weights of this format.
    pub(crate) fn takes(&self, x: DType, w: Format) -> bool {
        self.pack_x.iter().any(|p| p.0 == x) && self.weights.iter().any(|f| f.format == w)
    }

    /// The packing of activations of a type that it [takes](GemmKernel::takes).
    pub(crate) fn pack_x(&self, x: DType) -> PackX {
        self.pack_x.iter().find(|p| p.0 == x).expect("a kernel that takes these activations").1
    }

    /// The functions for weights of a format that it [takes](GemmKernel::takes).
    pub(crate) fn weights(&self, w: Format) -> &'static ForWeight {
        self.weights.iter().find(|f| f.format == w).expect("a kernel that takes these weights")
    }
}

/// A kernel for one or few rows of activations.
#[derive(Debug)]
pub struct DotKernel {
    /// `dot_<x>x<w>_f32_<isa>`, with rows of x and W before the ISA where x is interleaved.
    pub name: &'static str,
    /// The instruction set it needs.
    pub isa: Isa,
    /// Type of the activations.
    pub(crate) x: DType,
    /// Format of the weights.
    pub(crate) w: Format,
    /// Rows of x from which on it is the choice.
    pub(crate) least: usize,
    /// Rows of x that are interleaved, 16 bytes of each in turn and filled up with zeros: `x_stride` is then the distance of
    /// groups. 1 for rows as they are.
    pub(crate) group: usize,
    pub(crate) fun: Dot,
}

impl DotKernel {
    /// Type of x and format of W.
    pub const fn takes(&self) -> (DType, Format) {
        (self.x, self.w)
    }
}

/// Moves an N-major accumulator block to row-major output: `dst[m][n] = src[n][m]` for `n < rows`, `m < cols`; adds to
/// `dst` if the function says so, or rounds to BF16.
///
/// # Safety
/// `src` is readable at `n * src_stride + m`, `dst` writable at `m * dst_stride + n`; the CPU has the ISA.
pub(crate) type Unpack<T> =
    unsafe fn(src: *const f32, src_stride: usize, rows: usize, cols: usize, dst: *mut T, dst_stride: usize);

/// `a[i] = silu(a[i]) * b[i]`.
///
/// # Safety
/// Both are valid for `len` elements and do not overlap; the CPU has the ISA.
pub(crate) type SiluMul = unsafe fn(len: usize, a: *mut f32, b: *const f32);

/// What the GEMM driver needs of an ISA besides micro-kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogues {
    pub store: Unpack<f32>,
    pub add: Unpack<f32>,
    pub store_bf16: Unpack<u16>,
    pub silu_mul: SiluMul,
}

/// Queries that share the loads of a key and of a value.
pub(crate) const STREAM_ROWS: usize = 4;

/// Most keys of one call: their scores stay in the first-level cache, and what is fetched ahead in the second.
pub const STREAM_KEYS: usize = 128;

/// `s[j / 4][r][j % 4] = q[r] . keys[j]` for [`STREAM_ROWS`] queries `[d / 8][STREAM_ROWS][8]` and keys `[n][d]`, both BF16.
/// Scores past the last key's, to the end of a group of eight, mean nothing. `ahead` is fetched, as many bytes as the keys are.
///
/// # Safety
/// `1 <= n <= STREAM_KEYS`, `d` is a multiple of the kernel's `features`; the keys and queries are readable, and `s` is writable
/// for STREAM_KEYS keys; the CPU has the kernel's ISA.
pub(crate) type StreamScores =
    unsafe fn(q: *const u16, keys: *const u16, n: usize, d: usize, s: *mut f32, ahead: *const u8);

/// `o[r][..] += p[j / 4][r][j % 4] values[j][..]`, summed over the values `[n][d]` in BF16, which `p` is rounded to. Probabilities
/// past the last are 0.
///
/// # Safety
/// As [`StreamScores`]; `p` is readable to the end of a group of four keys, and `o` writable for STREAM_ROWS rows of `d`.
pub(crate) type StreamWeigh =
    unsafe fn(p: *const f32, values: *const u16, n: usize, d: usize, o: *mut f32, ahead: *const u8);

/// Attention of few queries over a cache of BF16 keys and values, where it takes an instruction that vectors of f32 lack.
#[derive(Debug)]
pub struct StreamKernel {
    /// `attention_stream_bf16_<isa>`.
    pub name: &'static str,
    /// The instruction set it needs.
    pub isa: Isa,
    /// Heads have a multiple of so many features.
    pub features: usize,
    pub(crate) scores: StreamScores,
    pub(crate) weigh: StreamWeigh,
}
