//! The `ttft` command.

use std::process::ExitCode;

use ttft_bench::{cli::Cli, console};

fn main() -> ExitCode {
    console::init();
    match Cli::from_args() {
        Ok(cli) => console::end(cli.run()),
        Err(refused) => console::refused(&refused),
    }
}
