use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Args;
use ttft_reports::{calibration::Calibration, render, terminal};

use crate::{calibrate, console, knobs::RunKnobs, output, session::Asked, weights::Size};

/// Measure how much this machine's figures vary when nothing is changed
///
/// The command repeats one run, occasion after occasion. From the records it works out how far rounds, processes and
/// occasions lie apart, how often a comparison of equals raises a false alarm, and the smallest difference that a comparison
/// finds. `ttft compare` needs this to judge single records. Let it run for an hour or more; if it is interrupted, start it
/// again with the same folder, and it continues. `--out`, `--budget` and `--energy` have no effect here: the records go to
/// `--folder`, `--minutes` is the time, and no energy is measured.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ttft calibrate --minutes 60 --folder calibration\n  \
                        ttft calibrate --minutes 0 --folder calibration   only analyses what is there\n  \
                        ttft calibrate --show calibration/calibration.json --md CALIBRATION.md")]
pub struct Calibrate {
    /// Minutes to measure, in addition to what the folder holds already; 0 measures nothing
    #[arg(long, value_name = "MINUTES", default_value_t = 60.0, value_parser = minutes)]
    minutes: f64,
    /// Folder of the records, one for each occasion, and of calibration.json (default: ttft-calibration in the target folder)
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Number of processes of each occasion
    #[arg(long, value_name = "P", default_value_t = calibrate::PROCESSES, value_parser = clap::value_parser!(u32).range(2..=1000))]
    processes: u32,
    /// Number of rounds of each occasion, over all processes together (default: the scenario's)
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    rounds: Option<u32>,
    /// Run tiny networks of the same structure: this takes some seconds, and says nothing about the real networks
    #[arg(long)]
    tiny: bool,
    /// Show the answer of this calibration file again, and measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["minutes", "folder", "rounds", "tiny"])]
    show: Option<PathBuf>,
    /// Also write the answer to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    md: Option<PathBuf>,
    #[command(flatten)]
    knobs: RunKnobs,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(m) if (0.0..=100_000.0).contains(&m) => Ok(m),
        _ => Err("expected a number of minutes".into()),
    }
}

impl Calibrate {
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.md {
            output::replaces(path, "calibration report", &format!("# {}", render::CALIBRATION))?;
        }
        let (calibration, file) = match &self.show {
            Some(file) => (Calibration::read(file)?, file.clone()),
            None => self.measure()?,
        };
        if let Some(path) = &self.md {
            let text = render::calibration(&calibration)?;
            output::Pending::claim(path)?.write(|out| Ok(out.write_all(text.as_bytes())?))?;
        }
        console::print(terminal::calibration(&calibration).trim_end())?;
        console::print(format_args!("calibration: {}", output::shown(&file)))
    }

    /// Measures for the time that was asked for, and works out what the folder holds then; the calibration and its file.
    fn measure(&self) -> Result<(Calibration, PathBuf)> {
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => output::calibration_dir()?,
        };
        let mut knobs = self.knobs.clone();
        knobs.scenario.get_or_insert("calibrate".into());
        let asked = Asked { rounds: self.rounds, processes: Some(self.processes), ..Asked::default() };
        let size = if self.tiny { Size::Tiny } else { Size::Real };
        if self.minutes > 0.0 {
            calibrate::take(&knobs, asked, size, &folder, Duration::from_secs_f64(60.0 * self.minutes))?;
        }
        Ok((calibrate::analyse(&folder)?, folder.join(calibrate::FILE)))
    }
}
