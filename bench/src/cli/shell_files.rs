use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::{console, output};

/// Write the man pages and the completions of shells
///
/// It makes the folders `man/man1` and `completions` in the folder given.
#[derive(Args, Debug)]
pub struct ShellFiles {
    /// Folder to write to; it is made if it is missing
    folder: PathBuf,
}

/// The command without what its help does not list.
fn visible(all: &Command) -> Command {
    let shown = all.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
    let version = env!("CARGO_PKG_VERSION");
    let mut command = Command::new("ttft").version(version).disable_help_subcommand(true).subcommands(shown);
    if let Some(about) = all.get_about() {
        command = command.about(about.clone());
    }
    if let Some(after) = all.get_after_help() {
        command = command.after_help(after.clone());
    }
    command
}

impl ShellFiles {
    pub fn run(self) -> Result<()> {
        let (man, completions) = (self.folder.join("man/man1"), self.folder.join("completions"));
        for folder in [&man, &completions] {
            std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make it", folder.display()))?;
        }
        let cannot = || format!("{}: cannot write there", self.folder.display());
        let mut command = visible(&super::Cli::command());
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            clap_complete::generate_to(shell, &mut command, "ttft", &completions).with_context(cannot)?;
        }
        clap_mangen::generate_to(command, &man).with_context(cannot)?;
        console::print(format_args!("wrote {} and {}", output::shown(&man), output::shown(&completions)))
    }
}
