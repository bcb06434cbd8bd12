//! What this machine can do at most, measured in this process: by each unit that multiplies, and by reading memory. Independent of
//! the kernels: `% of peak` is of the machine, and a kernel that leaves a unit unused shows it.

#[cfg(target_arch = "x86_64")]
mod amx;
mod read;
mod units;

use std::{
    hint::black_box,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use half::bf16;
use read::{Read, WAYS};

use crate::{
    contract::Mul,
    engine::Engine,
    isa::Isa,
    levels::{self, dispatch},
    tuning,
    view::DType,
};

/// What a unit multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// f32.
    F32,
    /// BF16, summed in f32.
    Bf16,
    /// Bytes, summed in 32 bits.
    Int8,
}

/// A unit that this CPU has: only [`Unit::all`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Unit(&'static units::Row);

impl PartialEq for Unit {
    fn eq(&self, other: &Unit) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Unit {
    /// The units of this CPU.
    pub fn all() -> Vec<Unit> {
        units::UNITS.iter().filter(|u| (u.detect)()).map(Unit).collect()
    }

    /// Its name, for tables.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// What it multiplies.
    pub fn factors(self) -> Factors {
        self.0.factors
    }

    /// Whether it can compute products of this type: F16, which is widened, and BF16, which can be, by units of f32.
    pub fn serves(self, dtype: DType) -> bool {
        match self.0.factors {
            Factors::F32 => true,
            Factors::Bf16 => dtype == DType::BF16,
            Factors::Int8 => false,
        }
    }

    /// The unit that the engine's kernels use for products by weights of this type, which a level may have from one that it builds
    /// on; `None` for those of a library, whose units are unknown.
    pub fn in_use(e: &Engine, dtype: DType) -> Option<Unit> {
        if e.backend() != crate::Backend::Ours {
            return None;
        }
        let x = if dtype == DType::F16 { DType::F32 } else { dtype };
        let kernel = levels::gemm_kernels(e.isa()).find(|k| k.takes(x, dtype.into()))?;
        let multiplies = |u: &Unit| (u.factors() == Factors::F32) == (kernel.mul == Mul::F32) && u.serves(dtype);
        let of = |level: Isa| Unit::all().into_iter().find(|u| u.0.level == Some(level) && multiplies(u));
        levels::down_from(kernel.isa).find_map(|level| of(level.isa))
    }

    fn run(self, work: &mut Work, passes: u64) -> u64 {
        // SAFETY: `Unit::all` found the CPU to have it.
        unsafe { (self.0.run)(work, passes) }
    }
}

/// Operands of a loop, 16 KB each, and its results.
#[repr(C, align(64))]
struct Work {
    x: [f32; 4096],
    w: [f32; 4096],
    out: [f32; 1024],
}

impl Work {
    /// Random factors: between -1 and 1, or any bytes.
    fn new(factors: Factors) -> Box<Work> {
        let mut work = Box::new(Work { x: [0.0; 4096], w: [0.0; 4096], out: [0.0; 1024] });
        let mut s = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 32) as u32
        };
        let unit = |bits: u32| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let Work { x, w, .. } = &mut *work;
        for word in x.iter_mut().chain(w) {
            *word = match factors {
                Factors::F32 => unit(next()),
                Factors::Bf16 => {
                    let mut half = || u32::from(bf16::from_f32(unit(next())).to_bits());
                    f32::from_bits(half() << 16 | half())
                }
                Factors::Int8 => f32::from_bits(next()),
            };
        }
        work
    }
}

/// 1e9 operations per second of a unit, multiply and add counted, on the engine's threads: the median of `rounds` rounds of about
/// `millis` ms.
pub fn gflops(e: &Engine, unit: Unit, rounds: usize, millis: u64) -> f64 {
    let works: Vec<_> = (0..e.threads()).map(|_| Mutex::new(Work::new(unit.factors()))).collect();
    // One round: the time of `passes` passes for each thread, and the operations they did. They are handed out in pieces, as a
    // kernel's tasks are: in equal shares, the slowest of many cores would set the pace.
    let round = |passes: u64| {
        let pieces = PIECES.min(passes);
        let operations = AtomicU64::new(0);
        let start = Instant::now();
        e.pool().for_each(pieces as usize * e.threads(), |_, thread| {
            let mut work = works[thread].lock().unwrap_or_else(PoisonError::into_inner);
            operations.fetch_add(unit.run(&mut work, passes / pieces), Relaxed);
        });
        (start.elapsed(), operations.into_inner())
    };
    let target = Duration::from_millis(millis.max(1));
    let mut passes = 4;
    // Long enough to be timed, then to the target by proportion. This also brings the clock up.
    let mut took = round(passes).0;
    while took < target / 4 {
        passes *= 2;
        took = round(passes).0;
    }
    let passes = ((passes as f64 * target.as_secs_f64() / took.as_secs_f64()) as u64).max(1);
    median(rounds, || {
        let (time, operations) = round(passes);
        operations as f64 / time.as_secs_f64() / 1e9
    })
}

/// Pieces of a thread's part of a round.
const PIECES: u64 = 16;

/// GFLOP/s of the engine's library, if it multiplies by a unit that no instruction of ours reaches: its own fastest product.
pub fn library_gflops(e: &Engine) -> Option<(&'static str, f64)> {
    match e.backend() {
        #[cfg(all(target_os = "macos", feature = "accelerate"))]
        crate::Backend::Accelerate => Some(("accelerate", crate::driver::library::accelerate::gflops())),
        _ => None,
    }
}

/// A unit that this machine has and this build does not reach, if there is one.
pub fn out_of_reach() -> Option<&'static str> {
    (cfg!(all(target_os = "macos", target_arch = "aarch64")) && !cfg!(feature = "accelerate"))
        .then_some("Apple's matrix unit (build with the feature `accelerate`)")
}

/// A way of reading memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading(read::Way);

impl Reading {
    /// All of them: one or several streams for each thread, prefetched and not.
    pub fn all() -> impl Iterator<Item = Reading> {
        WAYS.into_iter().map(Reading)
    }

    /// GB/s (1e9 bytes) of reading `buffer` once on the engine's threads. It should be several times the last-level cache, and
    /// already written.
    pub fn gb_s(self, e: &Engine, buffer: &[u8]) -> f64 {
        // Pieces handed out one by one, as a few-row kernel's tasks are.
        const PIECE: usize = tuning::DOT_TASK_BYTES;
        let start = Instant::now();
        e.pool().for_each(buffer.len().div_ceil(PIECE), |i, _| {
            let end = buffer.len().min((i + 1) * PIECE);
            black_box(dispatch(e.isa(), Read(&buffer[i * PIECE..end], self.0)));
        });
        buffer.len() as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// What is fastest on this machine now, for measuring it again and again beside what is timed.
#[derive(Clone, Copy, Debug)]
pub struct Fastest {
    unit: Unit,
    reading: Reading,
}

impl Fastest {
    /// Tries every unit that serves products of `dtype`, and every way of reading `buffer`.
    pub fn find(e: &Engine, dtype: DType, buffer: &[u8]) -> Fastest {
        let units = Unit::all().into_iter().filter(|u| u.serves(dtype));
        let unit =
            best(units.map(|u| (gflops(e, u, 1, 1).max(gflops(e, u, 1, 1)), u))).expect("plain Rust is always there");
        let reading =
            best(Reading::all().map(|r| (r.gb_s(e, buffer).max(r.gb_s(e, buffer)), r))).expect("there are ways");
        Fastest { unit, reading }
    }

    /// GFLOP/s of the unit, or of the engine's library.
    pub fn gflops(&self, e: &Engine, rounds: usize, millis: u64) -> f64 {
        library_gflops(e).map_or_else(|| gflops(e, self.unit, rounds, millis), |l| l.1)
    }

    /// GB/s of reading.
    pub fn read_gb_s(&self, e: &Engine, buffer: &[u8]) -> f64 {
        self.reading.gb_s(e, buffer)
    }
}

/// The value with the highest rate.
fn best<T>(rates: impl Iterator<Item = (f64, T)>) -> Option<T> {
    rates.max_by(|a, b| a.0.total_cmp(&b.0)).map(|r| r.1)
}

/// The median of `rounds` (at least one) measurements.
fn median(rounds: usize, mut f: impl FnMut() -> f64) -> f64 {
    let mut x: Vec<f64> = (0..rounds.max(1)).map(|_| f()).collect();
    x.sort_by(f64::total_cmp);
    let m = x.len() / 2;
    if x.len() % 2 == 1 { x[m] } else { (x[m - 1] + x[m]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Options, isa::Isa};

    fn engine(isa: Isa) -> Engine {
        Engine::new(&Options { isa: Some(isa), threads: Some(2), ..Options::default() }).unwrap()
    }

    #[test]
    fn every_unit_and_every_way_of_reading_has_a_rate() {
        let buffer = vec![1; (1 << 21) + 13];
        let e = engine(Isa::best());
        let real = |x: f64| x.is_finite() && x > 0.0;
        for unit in Unit::all() {
            assert!(real(gflops(&e, unit, 1, 1)), "{}", unit.name());
        }
        for isa in Isa::detected() {
            let e = engine(isa);
            assert!(Reading::all().all(|r| real(r.gb_s(&e, &buffer))), "{isa}");
        }
        let fastest = Fastest::find(&e, DType::BF16, &buffer);
        assert!(real(fastest.gflops(&e, 1, 1)) && real(fastest.read_gb_s(&e, &buffer)));
    }

    #[test]
    fn kernels_of_every_level_use_a_unit_of_this_cpu() {
        for isa in Isa::detected() {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let unit = Unit::in_use(&engine(isa), dtype).unwrap_or_else(|| panic!("{isa} {dtype:?}"));
                assert!(unit.serves(dtype) && unit.0.level <= Some(isa), "{isa} {dtype:?}: {}", unit.name());
                let bf16 = dtype == DType::BF16 && matches!(isa, Isa::Avx512Bf16 | Isa::Amx | Isa::NeonBf16);
                assert_eq!(unit.factors() == Factors::Bf16, bf16, "{isa} {dtype:?}: {}", unit.name());
            }
        }
    }

    #[test]
    fn reading_touches_every_byte() {
        let mut x = vec![0; 5000];
        for isa in Isa::detected() {
            for at in [0, 1, 63, 500, 2047, 3777, 4998, 4999] {
                x[at] = 1;
                for way in WAYS {
                    assert_eq!(dispatch(isa, Read(&x, way)), 1, "{isa}: byte {at}, {way:?}");
                }
                x[at] = 0;
            }
            assert!(WAYS.iter().all(|w| dispatch(isa, Read(&x, *w)) == 0));
        }
    }

    #[test]
    fn operands_are_random_numbers_below_one() {
        for factors in [Factors::F32, Factors::Bf16, Factors::Int8] {
            let work = Work::new(factors);
            let words: Vec<u32> = work.x.iter().chain(&work.w).map(|x| x.to_bits()).collect();
            assert!(words.iter().filter(|w| **w == 0).count() < 2, "{factors:?}");
            match factors {
                Factors::F32 => assert!(words.iter().all(|w| f32::from_bits(*w).abs() <= 1.0)),
                Factors::Bf16 => assert!(
                    words
                        .iter()
                        .all(|w| { [w << 16, w & 0xffff_0000].iter().all(|b| f32::from_bits(*b).abs() <= 1.0) })
                ),
                Factors::Int8 => {}
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
