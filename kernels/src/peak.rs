//! What this machine can do at most, measured in this process.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    engine::Engine,
    levels::{self, dispatch},
    simd::{Kernel, Vector},
    view::DType,
};

/// Measured limits of the engine's ISA and threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// GFLOP/s (multiply and add counted) of register-only multiply-adds, for each multiply type of the ISA.
    pub gflops: Vec<(DType, f64)>,
    /// GB/s (1e9 bytes) of reading memory larger than the last-level cache.
    pub read_gb_s: f64,
}

impl Limits {
    /// Measures both: `rounds` rounds of about `millis` ms for each multiply type, `rounds` reads of `buffer`, which
    /// should be several times the last-level cache and already written.
    pub fn measure(e: &Engine, buffer: &[u8], rounds: usize, millis: u64) -> Limits {
        let types = [DType::F32].into_iter().chain(levels::of(e.isa()).spins.iter().map(|s| s.0));
        Limits {
            gflops: types.map(|t| (t, gflops(e, t, rounds, millis))).collect(),
            read_gb_s: read_gb_s(e, buffer, rounds),
        }
    }
}

/// GFLOP/s of register-only multiply-adds with operands of `dtype` on the engine's threads, the median of `rounds`
/// rounds of about `millis` ms; the type the ISA really multiplies in (BF16 weights are widened to F32 without
/// `vdpbf16ps` or `BFMMLA`, F16 weights always).
///
/// The Accelerate backend uses a unit that no instruction of ours reaches: its roof is its own fastest product.
pub fn gflops(e: &Engine, dtype: DType, rounds: usize, millis: u64) -> f64 {
    #[cfg(all(target_os = "macos", feature = "accelerate"))]
    if e.backend() == crate::Backend::Accelerate {
        return crate::driver::library::accelerate::gflops();
    }
    let own = levels::of(e.isa()).spins.iter().find(|s| s.0 == dtype).map(|s| s.1);
    let spin = |steps| own.map_or_else(|| dispatch(e.isa(), MulAdd(steps)), |own| own(steps));
    // One round: the time of `steps` steps for each thread, and the flops they did. They are handed out in pieces, as a
    // kernel's tasks are: in equal shares, the slowest of many cores would set the pace.
    let round = |steps: u64| {
        let pieces = PIECES.min(steps);
        let flops = AtomicU64::new(0);
        let start = Instant::now();
        e.pool().for_each(pieces as usize * e.threads(), |_, _| {
            flops.fetch_add(spin(steps / pieces), Relaxed);
        });
        (start.elapsed(), flops.into_inner())
    };
    let target = Duration::from_millis(millis.max(1));
    let mut steps = 1 << 10;
    // Long enough to be timed, then to the target by proportion. This also brings the clock up.
    let mut took = round(steps).0;
    while took < target / 4 {
        steps *= 2;
        took = round(steps).0;
    }
    let steps = ((steps as f64 * target.as_secs_f64() / took.as_secs_f64()) as u64).max(1);
    median(rounds, || {
        let (time, flops) = round(steps);
        flops as f64 / time.as_secs_f64() / 1e9
    })
}

/// Pieces of a thread's part of a round.
const PIECES: u64 = 16;

/// Whose multiply-adds [`gflops`] measures: the ISA, or a library's.
pub fn roof(e: &Engine) -> &'static str {
    match e.backend() {
        #[cfg(all(target_os = "macos", feature = "accelerate"))]
        crate::Backend::Accelerate => "accelerate",
        _ => e.isa().name(),
    }
}

/// GB/s of reading `buffer` once on the engine's threads, the median of `rounds`.
pub fn read_gb_s(e: &Engine, buffer: &[u8], rounds: usize) -> f64 {
    // Pieces handed out one by one, as a kernel's tasks are.
    const PIECE: usize = 1 << 20;
    median(rounds, || {
        let start = Instant::now();
        e.pool().for_each(buffer.len().div_ceil(PIECE), |i, _| {
            let end = buffer.len().min((i + 1) * PIECE);
            black_box(dispatch(e.isa(), Read(&buffer[i * PIECE..end])));
        });
        buffer.len() as f64 / start.elapsed().as_secs_f64() / 1e9
    })
}

/// The median of `rounds` (at least one) measurements.
fn median(rounds: usize, mut f: impl FnMut() -> f64) -> f64 {
    let mut x: Vec<f64> = (0..rounds.max(1)).map(|_| f()).collect();
    x.sort_by(f64::total_cmp);
    let m = x.len() / 2;
    if x.len() % 2 == 1 { x[m] } else { (x[m - 1] + x[m]) / 2.0 }
}

/// Steps of independent multiply-adds in registers; the flops they did.
struct MulAdd(u64);

impl Kernel for MulAdd {
    type Output = u64;
    #[inline(always)]
    fn run<V: Vector>(self, v: V) -> u64 {
        // Enough chains to cover the latency of the multiply-add on two (x86) or four (AArch64) pipes, few enough to
        // leave registers for the two constants.
        match V::REGISTERS {
            32 => spin::<V, 24>(v, self.0),
            _ => spin::<V, 12>(v, self.0),
        }
    }
}

#[inline(always)]
fn spin<V: Vector, const CHAINS: usize>(v: V, steps: u64) -> u64 {
    // a <- a * 0.5 + 1 tends to 2: ordinary numbers all along.
    let (m, c) = (v.splat_f32s(black_box(0.5)), v.splat_f32s(black_box(1.0)));
    let mut a = [v.splat_f32s(black_box(1.0)); CHAINS];
    for _ in 0..steps {
        for a in &mut a {
            *a = v.mul_add(*a, m, c);
        }
    }
    black_box(a.iter().fold(0.0, |s, &a| s + v.reduce_sum_f32s(a)));
    steps * (CHAINS * V::LANES * 2) as u64
}

/// Bytes ahead of the reading that are prefetched to the second-level cache: without, one core of Zen 4 does not keep memory
/// busy. Prefetches past the second level, equal there, read half as much on an Intel core (Sapphire Rapids and later).
const AHEAD: usize = 5 << 10;

/// Prefetches the line at `p`, which will be read once; any address will do.
#[inline(always)]
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees, and faults on no address; SSE is x86-64's baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Reads every byte once.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = u64;
    #[inline(always)]
    fn run<V: Vector>(self, v: V) -> u64 {
        let mut acc = [v.splat_u32s(0); 8];
        let blocks = self.0.chunks_exact(8 * 4 * V::LANES);
        let tail = blocks.remainder().iter().fold(0, |s, x| s | x);
        for b in blocks {
            for line in (0..b.len()).step_by(64) {
                prefetch(b.as_ptr().wrapping_add(AHEAD + line));
            }
            for (a, x) in acc.iter_mut().zip(b.chunks_exact(4 * V::LANES)) {
                *a = v.or_u32s(*a, bytemuck::pod_read_unaligned(x));
            }
        }
        bytemuck::cast_slice::<V::U32s, u8>(&acc).iter().fold(tail, |s, x| s | x).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Options, isa::Isa};

    #[test]
    fn limits_are_positive_for_every_isa() {
        let buffer = vec![1; (1 << 21) + 13];
        for isa in Isa::detected() {
            let e = Engine::new(&Options { isa: Some(isa), threads: Some(2), ..Options::default() }).unwrap();
            let l = Limits::measure(&e, &buffer, 2, 1);
            assert_eq!(l.gflops[0].0, DType::F32);
            for x in l.gflops.iter().map(|g| g.1).chain([l.read_gb_s, gflops(&e, DType::BF16, 1, 1)]) {
                assert!(x.is_finite() && x > 0.0, "{isa}: {l:?}");
            }
        }
    }

    #[test]
    fn reading_touches_every_byte() {
        let mut x = vec![0; 1000];
        for isa in Isa::detected() {
            for at in [0, 1, 63, 500, 999] {
                x[at] = 1;
                let y = dispatch(isa, Read(&x));
                assert_eq!(y.count_ones(), 1, "{isa}: byte {at}");
                x[at] = 0;
            }
        }
    }

    #[test]
    fn median_of_one_two_and_three() {
        for (x, m) in [(vec![3.0], 3.0), (vec![3.0, 1.0], 2.0), (vec![9.0, 1.0, 2.0], 2.0)] {
            let mut i = x.iter();
            assert_eq!(median(x.len(), || *i.next().unwrap()), m);
        }
    }
}
