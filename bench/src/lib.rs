//! Measuring time to first token: scenarios, samplers, the machine, the correctness gate, and the `ttft` command.
//!
//! A [`session::Session`] measures the systems of a [`scenario::Scenario`] and writes the record; criterion
//! (`benches/ttft.rs`) and [`rounds`] drive it.

pub mod ab;
pub mod calibrate;
pub mod capacity;
pub mod catalog;
pub mod cleanup;
pub mod cli;
pub mod clock;
pub mod cold;
pub mod console;
pub mod corpus;
pub mod cpus;
pub mod criterion_args;
pub mod design;
pub mod doctor;
pub mod energy;
pub mod estimate;
pub mod fidelity;
pub mod gate;
pub mod groups;
pub mod identity;
pub mod knobs;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod micro;
pub mod output;
pub mod pages;
pub mod placement;
pub mod planner;
pub mod process;
pub mod processes;
pub mod remarks;
pub mod rig;
pub mod rounds;
pub mod sampling;
pub mod scenario;
pub mod session;
pub mod text;
mod trace;
pub mod vocabulary;
pub mod weights;
pub mod worker;
