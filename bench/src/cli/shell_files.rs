use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
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

impl ShellFiles {
    pub fn run(self) -> Result<()> {
        let (man, completions) = (self.folder.join("man/man1"), self.folder.join("completions"));
        for folder in [&man, &completions] {
            std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make it", folder.display()))?;
        }
        let cannot = || format!("{}: cannot write there", self.folder.display());
        let mut command = super::Cli::command();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            clap_complete::generate_to(shell, &mut command, "ttft", &completions).with_context(cannot)?;
        }
        clap_mangen::generate_to(command, &man).with_context(cannot)?;
        console::print(format_args!("wrote {} and {}", output::shown(&man), output::shown(&completions)))
    }
}
