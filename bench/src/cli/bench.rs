use anyhow::Result;
use clap::Args;
use ttft_reports::schema::Sampler;

use crate::{knobs::RunKnobs, rounds, session::Session, weights::Size};

/// Measure the systems of a scenario, interleaved round by round (`cargo bench` does it with criterion)
#[derive(Args, Debug)]
pub struct Bench {
    /// Rounds: samples of each system (default: the scenario's)
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: Option<u32>,
    /// Run tiny networks of the same structure: a check of seconds that measures nothing real
    #[arg(long)]
    tiny: bool,
    #[command(flatten)]
    knobs: RunKnobs,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let size = if self.tiny { Size::Tiny } else { Size::Real };
        let mut session = Session::start(&self.knobs, Sampler::Rounds, self.rounds, size)?;
        rounds::run(&mut session)?;
        session.finish()
    }
}
