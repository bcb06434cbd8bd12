//! Helpers that the test suites share. The suites are in `tests/tests`.

pub mod fuzz;
pub mod models;
pub mod pruning;

use ttft_kernels::{Backend, DType, Engine, Isa, Options};

/// Whether `TTFT_TEST_SMALL` asks for fewer repetitions, for an emulator some 200 times slower than hardware: every kernel
/// and every case that has a name still runs.
pub fn small() -> bool {
    std::env::var_os("TTFT_TEST_SMALL").is_some_and(|value| !value.is_empty())
}

/// Thread counts to test: all of `counts`, or the last of them alone if [`small`].
pub fn threads(counts: &[usize]) -> &[usize] {
    if small() { &counts[counts.len() - 1..] } else { counts }
}

/// Random cases to try: `n`, or a sixth of them if [`small`].
pub fn cases(n: u32) -> u32 {
    if small() { n.div_ceil(6) } else { n }
}

/// The ISA levels to test on this machine: all that it has, without the portable one if [`small`] (it is the same code on
/// every CPU). Says so, and names those left out, so that nothing skipped looks passed. If `TTFT_REQUIRE_ISA` names a level
/// (or several, comma-separated) that is not here, panics.
///
/// # Panics
/// See above.
pub fn isas() -> Vec<Isa> {
    let have: Vec<_> = Isa::detected().into_iter().filter(|i| !small() || *i != Isa::Portable).collect();
    let missing: Vec<_> = Isa::ALL.into_iter().filter(|i| !have.contains(i)).collect();
    println!("ISA levels exercised: {have:?}; skipped, not on this CPU or not asked for: {missing:?}");
    if let Ok(want) = std::env::var("TTFT_REQUIRE_ISA") {
        for name in want.split(',').filter(|n| !n.is_empty()) {
            let isa = Isa::parse(name).unwrap_or_else(|e| panic!("TTFT_REQUIRE_ISA: {e}"));
            assert!(have.contains(&isa), "TTFT_REQUIRE_ISA: {name} is here but not exercised");
        }
    }
    have
}

/// An engine, or a panic that says why not.
///
/// # Panics
/// If the engine cannot be built.
pub fn engine(isa: Isa, threads: usize, backend: Backend) -> Engine {
    Engine::new(&Options { isa: Some(isa), threads: Some(threads), backend, ..Options::default() })
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Reproducible uniform values in [-1, 1), each exact in `dtype`.
pub fn values(seed: u64, n: usize, dtype: DType) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            let x = (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            match dtype {
                DType::F32 => x,
                DType::F16 => half::f16::from_f32(x).to_f32(),
                DType::BF16 => half::bf16::from_f32(x).to_f32(),
            }
        })
        .collect()
}

/// Unit round-off of f32.
pub const EPS: f64 = 1.0 / (1u64 << 24) as f64;

/// Bound on `|computed - exact|` of a dot product of length k in f32, any order of summation, products exact or rounded:
/// `gamma_k * sum |x_i w_i|`, gamma_k = (k + 2) u / (1 - (k + 2) u) (Higham, Accuracy and Stability, section 3.1).
pub fn dot_bound(k: usize, abs_sum: f64) -> f64 {
    let ku = (k + 2) as f64 * EPS;
    ku / (1.0 - ku) * abs_sum
}
