//! Intel's AMX: tiles of BF16, by inline assembly, as its intrinsics are unstable. Tile registers cannot be operands of assembly, so
//! a whole loop over K is one block of it. INT8 (`tdpbssd`) would be the same loop with another instruction.

use std::{
    arch::asm,
    mem::offset_of,
};

use pulp::x86::V4;

pub(crate) use super::avx512::vectors;
use super::avx512bf16;
use crate::{
    cpu::amx,
    isa::Isa,
    level::{Around, Level},
    micro::tiles::{self, Loop, TileUnit, tiles_kernel},
    tuning::{TILES, Tuning},
};

tiles_kernel!(bf16_32x32, Isa::Amx, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, Amx, 2 x 2, 2, "gemm_bf16xbf16_f32_32x32_amx");
tiles_kernel!(bf16_64x16, Isa::Amx, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, Amx, 1 x 4, 4, "gemm_bf16xbf16_f32_64x16_amx");
tiles_kernel!(bf16_16x32, Isa::Amx, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, Amx, 2 x 1, 1, "gemm_bf16xbf16_f32_16x32_amx");

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Amx,
    base: Some(Isa::Avx512Bf16),
    gemm: &[bf16_32x32::KERNEL, bf16_64x16::KERNEL, bf16_16x32::KERNEL],
    dot: &[],
    stream: None,
    tuning: Tuning { tiles: Some(TILES), ..avx512bf16::LEVEL.tuning },
    detect: || amx::has().bf16,
    faster: |_| true,
    around: Some(Around { enter: || tiles::enter(amx::load), leave: || tiles::leave(amx::release) }),
    ..avx512bf16::LEVEL
};

/// The unit of this CPU.
struct Amx;

impl TileUnit for Amx {
    #[inline(always)]
    unsafe fn multiply<const R: usize, const C: usize>(l: &mut Loop) {
        // SAFETY: the caller's promise.
        unsafe {
            match (R, C) {
                (2, 2) => two_by_two(l),
                (1, 4) => one_by_four(l),
                (2, 1) => two_by_one(l),
                _ => unreachable!("no loop of {R} by {C} tiles"),
            }
        }
    }
}

/// The multiply loop of [`Loop`], whose tiles do `$zero`, `$load`, `$step` and `$store`: in these, `{w}` and `{w2}` are the tiles of W
/// with rows `{ws}` bytes apart, `{x}` those of x with rows `{s}` apart, and `{i}` the sums, with rows as x has.
macro_rules! multiply_loop {
    ($(#[$doc:meta])* $name:ident, $row:literal, [$($zero:literal)*], [$($load:literal)*], [$($step:literal)*], [$($store:literal)*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As [`TileUnit::multiply`].
        unsafe fn $name(l: &mut Loop) {
            // SAFETY: the unit is there and its tiles are set up; a step reads a tile of 16 rows at each place of W and x, the end writes
            // one at each place of the sums: all inside, by the caller's promise. Fetching reads nothing. What else is written are
            // the fields of `l`, as its type describes.
            unsafe {
                asm!(
                    "mov {w}, [{l} + {at_w}]",
                    "mov {ws}, [{l} + {at_w_row}]",
                    "mov {w2}, [{l} + {at_w_tile}]",
                    "add {w2}, {w}",
                    "mov {x}, [{l} + {at_x}]",
                    "mov {p}, [{l} + {at_at}]",
                    "mov {ps}, [{l} + {at_stride}]",
                    "lea {p3}, [{ps} + {ps}*2]",
                    "mov {r}, [{l} + {at_rows_left}]",
                    "mov {i}, [{l} + {at_acc}]",
                    concat!("mov {s:e}, ", $row),
                    "cmp qword ptr [{l} + {at_accumulate}], 0",
                    "jne 2f",
                    $($zero,)*
                    "jmp 3f",
                    "2:",
                    $($load,)*
                    "3:",
                    $($step,)*
                    // A line that will be written.
                    "mov {i}, [{l} + {at_own}]",
                    "test {i}, {i}",
                    "jz 4f",
                    "add qword ptr [{l} + {at_own}], 8",
                    "mov {i}, [{i}]",
                    "prefetchw [{i}]",
                    "4:",
                    // Fours of lines of the next block of W.
                    "mov {i}, [{l} + {at_per_step}]",
                    "test {i}, {i}",
                    "jz 7f",
                    "5:",
                    "prefetcht1 [{p}]",
                    "prefetcht1 [{p} + {ps}]",
                    "prefetcht1 [{p} + {ps}*2]",
                    "prefetcht1 [{p} + {p3}]",
                    "lea {p}, [{p} + {ps}*4]",
                    "sub {r}, 4",
                    "jnz 6f",
                    "add {p}, [{l} + {at_back}]",
                    "mov {r}, [{l} + {at_rows}]",
                    "6:",
                    "dec {i}",
                    "jnz 5b",
                    "7:",
                    "add {w}, [{l} + {at_w_step}]",
                    "add {w2}, [{l} + {at_w_step}]",
                    concat!("add {x}, ", $row, "*16"),
                    "dec qword ptr [{l} + {at_steps}]",
                    "jnz 3b",
                    "mov {i}, [{l} + {at_acc}]",
                    $($store,)*
                    "mov [{l} + {at_at}], {p}",
                    "mov [{l} + {at_rows_left}], {r}",
                    l = in(reg) std::ptr::from_mut(l),
                    w = out(reg) _,
                    ws = out(reg) _,
                    w2 = out(reg) _,
                    x = out(reg) _,
                    s = out(reg) _,
                    p = out(reg) _,
                    ps = out(reg) _,
                    p3 = out(reg) _,
                    r = out(reg) _,
                    i = out(reg) _,
                    at_w = const offset_of!(Loop, w),
                    at_w_row = const offset_of!(Loop, w_row),
                    at_w_tile = const offset_of!(Loop, w_tile),
                    at_w_step = const offset_of!(Loop, w_step),
                    at_x = const offset_of!(Loop, x),
                    at_acc = const offset_of!(Loop, acc),
                    at_steps = const offset_of!(Loop, steps),
                    at_accumulate = const offset_of!(Loop, accumulate),
                    at_own = const offset_of!(Loop, own),
                    at_at = const offset_of!(Loop, at),
                    at_stride = const offset_of!(Loop, stride),
                    at_rows = const offset_of!(Loop, rows),
                    at_rows_left = const offset_of!(Loop, rows_left),
                    at_back = const offset_of!(Loop, back),
                    at_per_step = const offset_of!(Loop, per_step),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply_loop!(
    /// Two tiles of W by two of x: as many loads as multiplications.
    two_by_two, "128",
    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    ["tileloadd tmm0, [{i} + {s}*1]" "tileloadd tmm1, [{i} + {s}*1 + 64]"
     "tileloadd tmm2, [{i} + {s}*1 + 2048]" "tileloadd tmm3, [{i} + {s}*1 + 2112]"],
    ["tileloadd tmm4, [{w} + {ws}*1]"
     "tileloadd tmm6, [{x} + {s}*1]"
     "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm5, [{w2} + {ws}*1]"
     "tdpbf16ps tmm2, tmm5, tmm6"
     "tileloadd tmm7, [{x} + {s}*1 + 64]"
     "tdpbf16ps tmm1, tmm4, tmm7"
     "tdpbf16ps tmm3, tmm5, tmm7"],
    ["tilestored [{i} + {s}*1], tmm0" "tilestored [{i} + {s}*1 + 64], tmm1"
     "tilestored [{i} + {s}*1 + 2048], tmm2" "tilestored [{i} + {s}*1 + 2112], tmm3"]
);

multiply_loop!(
    /// One tile of W by four of x: a line of W is loaded once for 64 rows of x.
    one_by_four, "256",
    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    ["tileloadd tmm0, [{i} + {s}*1]" "tileloadd tmm1, [{i} + {s}*1 + 64]"
     "tileloadd tmm2, [{i} + {s}*1 + 128]" "tileloadd tmm3, [{i} + {s}*1 + 192]"],
    ["tileloadd tmm4, [{w} + {ws}*1]"
     "tileloadd tmm5, [{x} + {s}*1]"
     "tdpbf16ps tmm0, tmm4, tmm5"
     "tileloadd tmm6, [{x} + {s}*1 + 64]"
     "tdpbf16ps tmm1, tmm4, tmm6"
     "tileloadd tmm7, [{x} + {s}*1 + 128]"
     "tdpbf16ps tmm2, tmm4, tmm7"
     "tileloadd tmm5, [{x} + {s}*1 + 192]"
     "tdpbf16ps tmm3, tmm4, tmm5"],
    ["tilestored [{i} + {s}*1], tmm0" "tilestored [{i} + {s}*1 + 64], tmm1"
     "tilestored [{i} + {s}*1 + 128], tmm2" "tilestored [{i} + {s}*1 + 192], tmm3"]
);

multiply_loop!(
    /// Two tiles of W by one of x: 16 rows of x need no more than W to arrive.
    two_by_one, "64",
    ["tilezero tmm0" "tilezero tmm1"],
    ["tileloadd tmm0, [{i} + {s}*1]" "tileloadd tmm1, [{i} + {s}*1 + 1024]"],
    ["tileloadd tmm4, [{w} + {ws}*1]"
     "tileloadd tmm6, [{x} + {s}*1]"
     "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm5, [{w2} + {ws}*1]"
     "tdpbf16ps tmm1, tmm5, tmm6"],
    ["tilestored [{i} + {s}*1], tmm0" "tilestored [{i} + {s}*1 + 1024], tmm1"]
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Columns;

    // The same assembly without its tiles, which any CPU runs.
    multiply_loop!(
        /// What is left of a loop without its tiles.
        frame, "128", [], [], [], []
    );

    #[test]
    fn the_loop_around_the_tiles_ends_and_fetches_as_the_plain_one() {
        let mut acc = vec![0f32; 1024];
        let block = vec![0u8; 32 * 4096];
        for (steps, rows, len, accumulate, writes) in
            [(1, 4, 64, 0, false), (7, 16, 4096, 1, true), (64, 32, 4096, 0, true), (64, 16, 128, 1, false), (3, 12, 640, 0, true)]
        {
            let columns = Columns::new(block.as_ptr(), len, rows, 4096, steps);
            let own = vec![acc.as_ptr().cast::<u8>(); steps];
            let of = |acc: &mut Vec<f32>| Loop {
                w: block.as_ptr(),
                w_row: 4096,
                w_tile: 16 * 4096,
                w_step: 0,
                x: block.as_ptr(),
                acc: acc.as_mut_ptr(),
                steps,
                accumulate,
                own: if writes { own.as_ptr() } else { std::ptr::null() },
                at: columns.at,
                stride: columns.stride,
                rows: columns.rows,
                rows_left: columns.rows_left,
                back: columns.back(),
                per_step: columns.per_step,
            };
            let (mut found, mut want) = (of(&mut acc), of(&mut acc));
            // SAFETY: `own` holds an address for each step; nothing else is read.
            unsafe { frame(&mut found) };
            let plain = (0..steps * columns.per_step).fold((want.at, want.rows_left), |_, _| {
                want.fetched();
                (want.at, want.rows_left)
            });
            assert_eq!((found.at, found.rows_left, found.steps), (plain.0, plain.1, 0), "{steps} steps, {rows} rows");
            let passed = if writes { own.as_ptr().wrapping_add(steps) } else { std::ptr::null() };
            assert_eq!(found.own, passed, "a line for each step");
        }
    }

    /// The unit against the plain one, to the bit, on a machine that has it.
    #[test]
    fn tiles_are_those_of_plain_rust() {
        if !Isa::Amx.available() {
            println!("skipped: this machine has no AMX");
            return;
        }
        check::<2, 2>();
        check::<1, 4>();
        check::<2, 1>();
    }

    fn check<const R: usize, const C: usize>() {
        const STEPS: usize = 5;
        let mut s = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            s >> 32
        };
        // Around 1 in size, some of them subnormal.
        let mut bits = |n: usize| -> Vec<u16> {
            (0..n).map(|_| next() as u16 & 0x807f | if next() % 9 == 0 { 0 } else { 0x3f00 + (next() as u16 & 0x100) }).collect()
        };
        let (w, x) = (bits(STEPS * R * 512), bits(STEPS * C * 512));
        let run = |plain: bool, accumulate: bool| {
            let mut acc: Vec<f32> = (0..R * C * 256).map(|i| i as f32 * 1e-3).collect();
            let mut l = Loop {
                w: w.as_ptr().cast(),
                w_row: 64,
                w_tile: 1024,
                w_step: R * 1024,
                x: x.as_ptr().cast(),
                acc: acc.as_mut_ptr(),
                steps: STEPS,
                accumulate: accumulate.into(),
                own: std::ptr::null(),
                at: std::ptr::null(),
                stride: 0,
                rows: 4,
                rows_left: 4,
                back: 0,
                per_step: 0,
            };
            let around = LEVEL.around.expect("tiles are set up");
            (around.enter)();
            // SAFETY: the unit is there, its tiles are set up, and the operands hold STEPS steps.
            unsafe {
                if plain { tiles::Plain::multiply::<R, C>(&mut l) } else { Amx::multiply::<R, C>(&mut l) }
            }
            (around.leave)();
            acc
        };
        for accumulate in [false, true] {
            assert_eq!(run(false, accumulate), run(true, accumulate), "{R} x {C}, accumulate: {accumulate}");
        }
    }
}
