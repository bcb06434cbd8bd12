//! Helpers that the test suites share. The suites are in `tests/tests`.

#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod models;
pub mod pruning;

use std::{io::Write, sync::Once};

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

/// The ISA levels to test on this machine: those that `TTFT_TEST_ISA` names (comma-separated), as far as it has them; else all that
/// it has, without those of plain Rust if [`small`] (they are the same code on every CPU). Says so once, past what the test harness
/// captures, and names those left out, so that nothing skipped looks passed.
///
/// # Panics
/// If a level is left out that the operating system says the CPU has, or that `TTFT_REQUIRE_ISA` names (one or several,
/// comma-separated).
pub fn isas() -> Vec<Isa> {
    let plain = [Isa::Portable, Isa::AmxPlain];
    let only = std::env::var("TTFT_TEST_ISA").ok().filter(|names| !names.is_empty()).map(|names| {
        let of = |name| Isa::ALL.into_iter().find(|i| i.name() == name);
        names
            .split(',')
            .map(|name| of(name).unwrap_or_else(|| panic!("TTFT_TEST_ISA: no level {name}")))
            .collect::<Vec<_>>()
    });
    let wanted = |i: &Isa| only.as_ref().map_or(!small() || !plain.contains(i), |only| only.contains(i));
    let have: Vec<_> = Isa::detected().into_iter().filter(wanted).collect();
    let missing: Vec<_> = Isa::ALL.into_iter().filter(|i| !have.contains(i)).collect();
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let text = format!("ISA levels exercised: {have:?}; skipped, not on this CPU or not asked for: {missing:?}\n");
        std::io::stderr().write_all(text.as_bytes()).expect("standard error");
    });
    assert!(!have.is_empty(), "this CPU has none of the levels that TTFT_TEST_ISA names");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    for isa in told(&cpu).into_iter().filter(|_| only.is_none()) {
        // The system may refuse tiles that the CPU has; `TTFT_REQUIRE_ISA` insists on them.
        if isa == Isa::Amx && !have.contains(&isa) {
            continue;
        }
        assert!(have.contains(&isa), "this CPU has {isa}, says /proc/cpuinfo, but it is not exercised");
    }
    if let Ok(want) = std::env::var("TTFT_REQUIRE_ISA") {
        for name in want.split(',').filter(|n| !n.is_empty()) {
            let isa = Isa::parse(name).unwrap_or_else(|e| panic!("TTFT_REQUIRE_ISA: {e}"));
            assert!(have.contains(&isa), "TTFT_REQUIRE_ISA: {name} is here but not exercised");
        }
    }
    have
}

/// The levels that a CPU has whose features Linux lists so; none where there is no such list, as in an emulator of another
/// architecture.
fn told(cpuinfo: &str) -> Vec<Isa> {
    let key = if cfg!(target_arch = "aarch64") { "Features" } else { "flags" };
    let line = cpuinfo.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.trim() == key)).unwrap_or_default().1;
    let features: Vec<&str> = line.split_whitespace().collect();
    let avx2 = ["avx2", "fma", "f16c"];
    let avx512 = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
    let needs: [(Isa, &[&str], &[&str]); 6] = [
        (Isa::Avx2, &avx2, &[]),
        (Isa::Avx512, &avx512, &[]),
        (Isa::Avx512Bf16, &avx512, &["avx512_bf16"]),
        (Isa::Amx, &avx512, &["avx512_bf16", "amx_tile", "amx_bf16"]),
        (Isa::Neon, &["asimd"], &[]),
        (Isa::NeonBf16, &["asimd"], &["bf16"]),
    ];
    let all = |f: &[&str]| f.iter().all(|f| features.contains(f));
    needs.into_iter().filter(|(_, a, b)| all(a) && all(b)).map(|n| n.0).collect()
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn levels_of_described_cpus() {
        let avx2 = "model name\t: x\nflags\t\t: fpu sse avx f16c fma avx2 bmi2\n";
        assert_eq!(told(avx2), [Isa::Avx2]);
        let most = avx2.replace("bmi2", "avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16");
        assert_eq!(told(&most), [Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16]);
        let all = most.replace("avx512_bf16", "avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8");
        assert_eq!(told(&all), [Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx]);
        assert_eq!(told(&all.replace("amx_tile ", "")).last(), Some(&Isa::Avx512Bf16));
        assert_eq!(told(&most.replace("avx512dq ", "")), [Isa::Avx2]);
        for none in ["", "Features\t: asimd bf16\n", "flags\n"] {
            assert_eq!(told(none), []);
        }
    }
}
