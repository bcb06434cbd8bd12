//! The engine that everything runs on: [`ttft_kernels::Engine`], and under this crate's own tests one that counts what it is
//! asked for, so that costs have a judge outside the schedule.

#[cfg(test)]
pub mod counting;

#[cfg(test)]
pub use counting::Engine;
#[cfg(not(test))]
pub use ttft_kernels::Engine;
