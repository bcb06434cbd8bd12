//! The one table of instruction sets and kernels. A new kernel is a row here; dispatch, conformance tests, benches and
//! documentation iterate it.

use std::sync::Mutex;

#[cfg(target_arch = "aarch64")]
use crate::backend::neon;
#[cfg(target_arch = "x86_64")]
use crate::backend::{avx2, avx512};
use crate::{
    Error, Result,
    backend::portable,
    contract::{DotKernel, Epilogues, GemmKernel, StreamKernel},
    cpu::Isa,
    view::DType,
};

/// One instruction-set level.
#[derive(Debug)]
pub struct IsaRow {
    /// The level.
    pub isa: Isa,
    /// Its GEMM kernels.
    pub gemm: &'static [GemmKernel],
    /// Its few-row kernels.
    pub dot: &'static [DotKernel],
    /// Its kernel for few queries over a BF16 cache, if it is better at that than vectors of f32.
    pub stream: Option<&'static StreamKernel>,
    pub(crate) epilogues: Epilogues,
    /// The level whose kernels it falls back on.
    pub base: Option<Isa>,
}

/// Every level of this build's architecture, weakest first.
pub fn isas() -> &'static [IsaRow] {
    ISAS
}

static ISAS: &[IsaRow] = &[
    IsaRow {
        isa: Isa::Portable,
        gemm: portable::GEMM,
        dot: portable::DOT,
        stream: None,
        epilogues: portable::EPILOGUES,
        base: None,
    },
    #[cfg(target_arch = "x86_64")]
    IsaRow {
        isa: Isa::Avx2,
        gemm: avx2::GEMM,
        dot: avx2::DOT,
        stream: None,
        epilogues: avx2::EPILOGUES,
        base: Some(Isa::Portable),
    },
    #[cfg(target_arch = "x86_64")]
    IsaRow {
        isa: Isa::Avx512,
        gemm: avx512::GEMM,
        dot: avx512::DOT,
        stream: None,
        epilogues: avx512::EPILOGUES,
        base: Some(Isa::Avx2),
    },
    #[cfg(target_arch = "x86_64")]
    IsaRow {
        isa: Isa::Avx512Bf16,
        gemm: avx512::GEMM_BF16,
        dot: avx512::DOT_BF16,
        stream: Some(&avx512::STREAM_BF16),
        epilogues: avx512::EPILOGUES,
        base: Some(Isa::Avx512),
    },
    #[cfg(target_arch = "aarch64")]
    IsaRow {
        isa: Isa::Neon,
        gemm: neon::GEMM,
        dot: neon::DOT,
        stream: None,
        epilogues: neon::EPILOGUES,
        base: Some(Isa::Portable),
    },
    #[cfg(target_arch = "aarch64")]
    IsaRow {
        isa: Isa::NeonBf16,
        gemm: neon::GEMM_BF16,
        dot: neon::DOT_BF16,
        stream: None,
        epilogues: neon::EPILOGUES,
        base: Some(Isa::Neon),
    },
];

/// The row of `isa`, or of the nearest level below it that this build has kernels for.
pub(crate) fn row(isa: Isa) -> &'static IsaRow {
    ISAS.iter().find(|r| r.isa == isa).unwrap_or(&ISAS[0])
}

/// The GEMM kernels that `isa` can use, its own first.
pub fn kernels_of(isa: Isa) -> Vec<&'static GemmKernel> {
    gemm_kernels(isa).collect()
}

/// [`kernels_of`], for choices at every product.
pub(crate) fn gemm_kernels(isa: Isa) -> impl Iterator<Item = &'static GemmKernel> + Clone {
    levels(isa).flat_map(|r| r.gemm)
}

/// The few-row kernels that `isa` can use, its own first.
pub(crate) fn dot_kernels(isa: Isa) -> impl Iterator<Item = &'static DotKernel> + Clone {
    levels(isa).flat_map(|r| r.dot)
}

/// The kernel that `isa` has for few queries over a cache of this type, with heads of `d` features.
pub(crate) fn stream_kernel(isa: Isa, cache: DType, d: usize) -> Option<&'static StreamKernel> {
    levels(isa).find_map(|r| r.stream).filter(|k| cache == DType::BF16 && d.is_multiple_of(k.features))
}

/// The row of `isa` and those it builds on.
fn levels(isa: Isa) -> impl Iterator<Item = &'static IsaRow> + Clone {
    std::iter::successors(Some(row(isa)), |r| r.base.map(row))
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

/// Names of the kernels that have run.
#[derive(Debug, Default)]
pub(crate) struct Used(Mutex<std::collections::BTreeSet<&'static str>>);

impl Used {
    pub fn note(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name);
    }

    pub fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)).into_iter().collect()
    }
}
