//! One file for each level of instructions: detection, the level it builds on, kernels, numbers, and what its threads do around a
//! region. Dispatch, conformance tests and benchmarks iterate them.

use crate::{
    contract::{DotKernel, GemmKernel, StreamKernel},
    cpu,
    error::{Error, Result},
    isa::{Isa, levels},
    level::Level,
    simd::{Kernel, Vector},
    view::DType,
};

macro_rules! table {
    (() $($(#[$doc:meta])* $level:ident $module:ident $name:literal $vectors:literal [$($cfg:tt)*],)*) => {
        $(#[cfg(all($($cfg)*))] pub(crate) mod $module;)*

        /// Every level of this build's architecture, weakest first.
        static LEVELS: &[&Level] = &[$(#[cfg(all($($cfg)*))] &$module::LEVEL,)*];

        impl Isa {
            /// The level, if it is one of this build's architecture.
            pub(crate) fn level(self) -> Option<&'static Level> {
                match self {
                    $(#[cfg(all($($cfg)*))] Isa::$level => Some(&$module::LEVEL),)*
                    #[allow(unreachable_patterns)]
                    _ => None,
                }
            }
        }

        /// Runs `k` with the vectors of `isa`.
        pub(crate) fn dispatch<K: Kernel>(isa: Isa, k: K) -> K::Output {
            const HELD: &str = "an engine holds only an ISA that the CPU has";
            match isa {
                $(#[cfg(all($($cfg)*))] Isa::$level => $module::vectors().expect(HELD).call(k),)*
                #[allow(unreachable_patterns)]
                _ => unreachable!("{HELD}"),
            }
        }
    };
}
levels!(table!());

/// Every level of this build's architecture, weakest first.
pub fn isas() -> &'static [&'static Level] {
    LEVELS
}

impl Isa {
    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        self.level().is_some_and(|l| l.base.is_none_or(Isa::available) && (l.detect)())
    }

    /// The levels that this CPU has, weakest first.
    pub fn detected() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|i| i.available()).collect()
    }

    /// The level to take unless told otherwise: the strongest of this CPU that is no slower than the one it builds on.
    pub fn best() -> Isa {
        choice(&Isa::detected(), cpu::vendor())
    }

    /// Parses a name; only levels of this CPU pass.
    ///
    /// # Errors
    /// [`Error::IsaUnknown`] or [`Error::IsaUnavailable`], both with the list of what this CPU has.
    pub fn parse(name: &str) -> Result<Isa> {
        let isa = Isa::ALL
            .into_iter()
            .find(|i| i.name().eq_ignore_ascii_case(name.trim()))
            .ok_or_else(|| Error::IsaUnknown { name: name.to_owned(), have: Isa::detected() })?;
        isa.check()
    }

    /// `Ok(self)` if this CPU has it.
    ///
    /// # Errors
    /// [`Error::IsaUnavailable`].
    pub fn check(self) -> Result<Isa> {
        if self.available() { Ok(self) } else { Err(Error::IsaUnavailable { wanted: self, have: Isa::detected() }) }
    }
}

/// The fastest of `levels`, weakest first.
fn choice(levels: &[Isa], vendor: [u8; 12]) -> Isa {
    let fast = |i: Isa| i.level().is_none_or(|l| (l.faster)(vendor));
    *levels.iter().rfind(|&&i| fast(i)).expect("the portable level is always there")
}

/// The level of an ISA that the CPU has.
pub(crate) fn of(isa: Isa) -> &'static Level {
    isa.level().expect("a level of this architecture")
}

/// The GEMM kernels that `isa` can use, its own first.
pub fn kernels_of(isa: Isa) -> Vec<&'static GemmKernel> {
    gemm_kernels(isa).collect()
}

/// [`kernels_of`], for choices at every product.
pub(crate) fn gemm_kernels(isa: Isa) -> impl Iterator<Item = &'static GemmKernel> + Clone {
    down_from(isa).flat_map(|l| l.gemm)
}

/// The few-row kernels that `isa` can use, its own first.
pub(crate) fn dot_kernels(isa: Isa) -> impl Iterator<Item = &'static DotKernel> + Clone {
    down_from(isa).flat_map(|l| l.dot)
}

/// The kernel that `isa` has for few queries over a cache of this type, with heads of `d` features.
pub(crate) fn stream_kernel(isa: Isa, cache: DType, d: usize) -> Option<&'static StreamKernel> {
    down_from(isa).find_map(|l| l.stream).filter(|k| cache == DType::BF16 && d.is_multiple_of(k.features))
}

/// The level and those it builds on; nothing on another architecture.
pub(crate) fn down_from(isa: Isa) -> impl Iterator<Item = &'static Level> + Clone {
    std::iter::successors(isa.level(), |l| l.base?.level())
}

/// The GEMM or the few-row kernel of this name.
pub(crate) fn find(isa: Isa, name: &str) -> Result<(Option<&'static GemmKernel>, Option<&'static DotKernel>)> {
    let (mut gemm, mut dot) = (gemm_kernels(isa), dot_kernels(isa));
    let found = (gemm.find(|k| k.name == name), dot.find(|k| k.name == name));
    if let (None, None) = found {
        let have = gemm_kernels(isa).map(|k| k.name).chain(dot_kernels(isa).map(|k| k.name)).collect();
        return Err(Error::KernelUnknown { name: name.to_owned(), isa, have });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_list_what_there_is() {
        for isa in Isa::detected() {
            assert_eq!(Isa::parse(&isa.name().to_uppercase()).unwrap(), isa);
        }
        let missing: Vec<_> = Isa::ALL.into_iter().filter(|i| !i.available()).collect();
        for name in missing.iter().map(|i| i.name()).chain(["mmx"]) {
            let e = Isa::parse(name).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains("portable"), "{e}");
        }
    }

    #[test]
    fn levels_say_which_they_are_and_build_on_weaker_ones() {
        for isa in Isa::ALL {
            let Some(level) = isa.level() else { continue };
            assert_eq!(level.isa, isa);
            assert!(level.base.is_none_or(|b| b < isa && b.level().is_some()), "{isa}");
            let own = level.gemm.iter().map(|k| k.isa).chain(level.dot.iter().map(|k| k.isa));
            assert!(own.chain(level.stream.map(|k| k.isa)).all(|i| i == isa), "{isa}");
        }
        assert_eq!(LEVELS[0].isa, Isa::Portable);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn choices_for_described_cpus() {
        let x86 = [Isa::Portable, Isa::AmxPlain, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];
        assert_eq!(choice(&x86, *b"GenuineIntel"), Isa::Amx);
        assert_eq!(choice(&x86[..5], *b"AuthenticAMD"), Isa::Avx512Bf16);
        assert_eq!(choice(&x86[..5], *b"GenuineIntel"), Isa::Avx512);
        assert_eq!(choice(&x86[..3], *b"GenuineIntel"), Isa::Avx2);
        assert_eq!(choice(&x86[..2], *b"GenuineIntel"), Isa::Portable, "what is for tests is never chosen");
        let f = cpu::features();
        assert_eq!(f.contains(&"avx2") && f.contains(&"fma") && f.contains(&"f16c"), Isa::Avx2.available());
        assert_eq!(f.contains(&"avx512bf16") && Isa::Avx512.available(), Isa::Avx512Bf16.available());
    }

    #[test]
    fn the_choice_is_there() {
        let arm = [Isa::Portable, Isa::AmxPlain, Isa::Neon, Isa::NeonBf16];
        assert_eq!(choice(&arm, [0; 12]), Isa::NeonBf16);
        assert!(Isa::best().available());
    }
}
