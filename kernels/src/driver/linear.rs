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
    operands::Output,
    team::{Backend, Team},
    tuning,
    view::{DType, Element, Mat, Weight},
};

pub fn linear<'a, A: Element>(e: &Team, x: Mat<'_, A>, w: Weight<'a>, out: Output<'a, A>) {
    let factors = Factors::of(w, &out);
    if w.k() == 0 || !factors.alike() {
        return library::linear(e, &library::GEMM, x, w, out);
    }
    match e.kernels.backend {
        Backend::Gemm => library::linear(e, &library::GEMM, x, w, out),
        #[cfg(all(target_os = "macos", feature = "accelerate"))]
        Backend::Accelerate => library::linear(e, &library::ACCELERATE, x, w, out),
        Backend::Ours => match e.kernels.gemm.filter(|k| k.takes(A::DTYPE, w.format())) {
            Some(k) => gemm::blocked(e, k, x, w, out),
            None if dot::forced(e, A::DTYPE, w.format()).is_some() => dot::linear(e, x, w, out),
            None => match choose(e, x.rows(), A::DTYPE, factors) {
                Some(k) => gemm::blocked(e, k, x, w, out),
                None => dot::linear(e, x, w, out),
            },
        },
    }
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
