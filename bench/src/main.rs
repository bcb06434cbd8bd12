//! The `ttft` command.

use std::process::ExitCode;

use clap::Parser;
use ttft_bench::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
