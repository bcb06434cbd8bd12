//! The list of instruction-set levels: the one place that names them all.

/// Calls a macro with the list: `levels!(then!(with))` becomes `then! { (with) rows }`. A row is a variant of [`Isa`], its module
/// in [`crate::levels`], which is its file there, its name, the name that its vectors of f32 have in those of kernels, and the
/// `cfg` of its architecture. What is made of the list is made of every row, so that no level can be forgotten.
macro_rules! levels {
    ($then:ident!($($with:tt)*)) => {
        $then! { ($($with)*)
            /// Plain Rust, any CPU.
            Portable portable "portable" "portable" [],
            /// [`Isa::Portable`] with a tile unit in plain Rust, as far as it is specified: for tests of all that surrounds the
            /// instructions of `Isa::Amx` on machines that have none. Never chosen.
            AmxPlain amx_plain "amx-plain" "portable" [],
            /// x86-64 AVX2, FMA and F16C.
            Avx2 avx2 "avx2" "avx2" [target_arch = "x86_64"],
            /// x86-64 AVX-512 F, BW, DQ, VL and CD.
            Avx512 avx512 "avx512" "avx512" [target_arch = "x86_64"],
            /// [`Isa::Avx512`] with `vdpbf16ps`.
            Avx512Bf16 avx512bf16 "avx512bf16" "avx512" [target_arch = "x86_64"],
            /// [`Isa::Avx512Bf16`] with AMX: tiles of BF16.
            Amx amx "amx" "avx512" [target_arch = "x86_64"],
            /// AArch64 Advanced SIMD.
            Neon neon "neon" "neon" [target_arch = "aarch64"],
            /// [`Isa::Neon`] with `BFMMLA` and `BFDOT` (Armv8.6, Apple M2 on).
            NeonBf16 neonbf16 "neonbf16" "neon" [target_arch = "aarch64"],
        }
    };
}
pub(crate) use levels;

macro_rules! isa {
    (() $($(#[$doc:meta])* $level:ident $module:ident $name:literal $vectors:literal [$($cfg:tt)*],)*) => {
        /// An instruction-set level. A level includes the kernels of the levels it builds on, where it has none of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Isa {
            $($(#[$doc])* $level,)*
        }

        impl Isa {
            /// Every level of every architecture, weakest first.
            pub const ALL: [Isa; [$($name),*].len()] = [$(Isa::$level),*];

            /// The name that `--isa` and `TTFT_ISA` take.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Isa::$level => $name,)*
                }
            }
        }
    };
}
levels!(isa!());

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `<operation><type>_<vectors>` for each level.
macro_rules! label {
    (($isa:expr, $op:literal, $t:literal)
        $($(#[$doc:meta])* $level:ident $module:ident $name:literal $vectors:literal [$($cfg:tt)*],)*) => {
        match $isa {
            $($crate::isa::Isa::$level => concat!($op, $t, "_", $vectors),)*
        }
    };
}
pub(crate) use label;

/// The name of a vector kernel under an ISA: `<op>_<isa>`, or `<op>_<type>_<isa>` for one that is generic over activations.
macro_rules! kernel_name {
    ($isa:expr, $op:literal) => {{
        use $crate::isa::label;
        $crate::isa::levels!(label!($isa, $op, ""))
    }};
    ($isa:expr, $A:ty, $op:literal) => {{
        use $crate::isa::label;
        match <$A as $crate::view::Element>::DTYPE {
            $crate::view::DType::BF16 => $crate::isa::levels!(label!($isa, $op, "_bf16")),
            _ => $crate::isa::levels!(label!($isa, $op, "_f32")),
        }
    }};
}
pub(crate) use kernel_name;
