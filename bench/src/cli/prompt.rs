use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ttft_kernels::Mat;
use ttft_models::System;

use crate::{
    console,
    text::{self, Text},
};

/// A text that a network reads; the command that takes it has a group `text`.
#[derive(Args, Debug)]
pub struct Prompt {
    /// The prompt as text, or `-` for standard input
    #[arg(group = "text")]
    prompt: Option<String>,
    /// UTF-8 file with the prompt, or `-` for standard input; a line end at its end is left out
    #[arg(long, value_name = "FILE", group = "text")]
    prompt_file: Option<PathBuf>,
    /// Take the text for what a user says, and put the chat template of the folder around it
    #[arg(long)]
    pub chat: bool,
}

impl Prompt {
    /// Its ids by the tokenizer of `folder`, at least one, and how long that took.
    ///
    /// # Errors
    /// A text that cannot be read or is empty; a chat template that is missing or fails.
    pub fn ids(&self, text: &Text, folder: &Path) -> Result<(Vec<u32>, Duration)> {
        let prompt = self.text()?;
        let began = Instant::now();
        let ids = if self.chat { text.ids(&Text::chat(folder, &prompt)?, true)? } else { text.ids(&prompt, false)? };
        let took = began.elapsed();
        ensure!(!ids.is_empty(), "the prompt is empty: give at least one token");
        Ok((ids, took))
    }

    /// The file that it is read from, if it is one.
    pub fn file(&self) -> Option<&Path> {
        self.prompt_file.as_deref().filter(|file| *file != Path::new("-"))
    }

    fn text(&self) -> Result<String> {
        if let Some(prompt) = self.prompt.as_ref().filter(|prompt| *prompt != "-") {
            return Ok(prompt.clone());
        }
        let text = match self.file() {
            Some(file) => text::read_text(file)?,
            None => {
                if io::stdin().is_terminal() {
                    console::note("reading the prompt from standard input; end it with Ctrl-D on a new line");
                }
                text::read_all(io::stdin().lock()).context("standard input")?
            }
        };
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
    }
}

/// Refuses ids of prompts of `length` tokens that a network of the system does not know; `from` is for messages.
///
/// # Errors
/// Which id, where.
pub fn check_ids(ids: &[u32], length: usize, system: &System, from: &Path) -> Result<()> {
    for (network, which) in system.networks().zip(["base", "auxiliary"]) {
        let vocab = network.config().vocab;
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab) {
            bail!(
                "{}: prompt {}, position {}: token id {} is outside the vocabulary of {vocab} of the {which} network: the two do not \
                 belong together",
                from.display(),
                at / length,
                at % length,
                ids[at]
            );
        }
    }
    Ok(())
}

/// Refuses logits that are no numbers.
///
/// # Errors
/// There is a NaN among them.
pub fn check_logits(logits: Mat<'_, f32>) -> Result<()> {
    ensure!(
        (0..logits.rows()).all(|row| !logits.row(row).iter().any(|x| x.is_nan())),
        "the logits are no numbers: the weights or the predictor hold NaN or infinities, or values that overflow"
    );
    Ok(())
}
