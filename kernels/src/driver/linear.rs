//! Which kernel computes a product.

use super::{
    dot,
    gemm::{self, Source},
    library,
    output::Factors,
};
use crate::{
    contract::GemmKernel,
    levels,
    operands::Product,
    team::{Backend, Team},
    tuning,
    view::{DType, Element, Format},
};

/// Who computes a product.
enum Who {
    Library(&'static library::Library),
    Tiles(&'static GemmKernel),
    FewRows,
}

impl Who {
    fn of<A: Element>(e: &Team, p: &Product<'_, A>) -> Who {
        let (m, w) = (p.x.rows(), p.w.format());
        let factors = Factors::of(p.w, &p.out);
        if p.w.k() == 0 || !factors.alike() {
            return Who::Library(&library::GEMM);
        }
        match e.kernels.backend {
            Backend::Gemm => Who::Library(&library::GEMM),
            #[cfg(all(target_os = "macos", feature = "accelerate"))]
            Backend::Accelerate => Who::Library(&library::ACCELERATE),
            Backend::Ours => match e.kernels.gemm.filter(|k| k.takes(A::DTYPE, w)) {
                Some(k) => Who::Tiles(k),
                None if dot::forced(e, A::DTYPE, w).is_some() => Who::FewRows,
                None => choose(e, m, A::DTYPE, factors).map_or(Who::FewRows, Who::Tiles),
            },
        }
    }
}

pub fn linear<A: Element>(e: &Team, p: Product<'_, A>) {
    match Who::of(e, &p) {
        Who::Library(l) => library::linear(e, l, p.x, p.w, p.out),
        Who::Tiles(k) => gemm::blocked(e, k, p, None),
        Who::FewRows => dot::linear(e, p.x, p.w, p.out),
    }
}

/// Two products, in one region if the first is one of many rows and the second one of few.
pub fn beside<A: Element>(e: &Team, many: Product<'_, A>, few: Product<'_, A>) {
    match (Who::of(e, &many), Who::of(e, &few)) {
        // Kernels that pack the next block between their multiply-adds fetch something else there, too.
        (Who::Tiles(k), Who::FewRows) if k.weights(many.w.format()).drain.is_some() => {
            gemm::blocked(e, k, many, Some(few));
        }
        _ => {
            linear(e, many);
            linear(e, few);
        }
    }
}

/// Whether a product of `m` rows goes to a few-row kernel.
pub fn streams(e: &Team, m: usize, x: DType, w: Format) -> bool {
    matches!(e.kernels.backend, Backend::Ours) && e.kernels.gemm.is_none() && m <= e.level.tuning.dot_rows(x, w)
}

/// The kernel of the strongest level that takes both, with the least padded work for `m` rows; none if a few-row
/// kernel does less.
fn choose(e: &Team, m: usize, x: DType, factors: Factors<'_>) -> Option<&'static GemmKernel> {
    let w = factors.half(0);
    if m <= e.level.tuning.dot_rows(x, w.format()) {
        return None;
    }
    let able = levels::gemm_kernels(e.isa()).filter(|k| k.takes(x, w.format()));
    let isa = able.clone().next().map_or(e.isa(), |k| k.isa);
    let groups = levels::of(isa).tuning.row_groups(m, e.threads());
    let rows = m.div_ceil(groups);
    let cost = |k: &'static GemmKernel| {
        let in_place = Source::new(k, factors, rows).works_in_place();
        let cost = levels::of(k.isa).tuning.tile_cost(k, rows, in_place, factors.halves());
        groups as f64 * cost * gemm::unevenness(k, w.n(), groups, e.threads())
    };
    let best = able
        .filter(|k| k.isa == isa)
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
        .expect("every level has a kernel for every type and format: the portable one");
    let dot = m.next_multiple_of(4) as f64 * e.level.tuning.dot_cost(x, w.format());
    (m > tuning::DOT_ROWS_MAX || cost(best) <= dot).then_some(best)
}
