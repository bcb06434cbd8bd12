//! Everything a user can turn, each declared once: as a flag of `ttft`, and as the environment variable that
//! `cargo bench` reads (criterion owns the flags there).

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::{Args, Command, CommandFactory, FromArgMatches, Parser};
use ttft_kernels::{Backend, Engine, Isa, Options};
use ttft_models::{Extent, Precision, Pruning};
use ttft_reports::schema::Start;

use crate::{
    catalog::Asked,
    output, placement,
    scenario::{Named, PRESETS, Scenario},
};

/// Which engine computes.
#[derive(Args, Clone, Debug)]
pub struct EngineKnobs {
    /// Instruction set to use (default: the fastest of this CPU); the command fails if this CPU lacks it
    #[arg(long, env = "TTFT_ISA", value_name = "NAME", value_parser = Isa::parse)]
    pub isa: Option<Isa>,
    /// Number of threads (default: one for each physical performance core)
    #[arg(long, env = "TTFT_THREADS", value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Library that computes the matrix products: `ttft`, or the `gemm` crate
    #[arg(long, env = "TTFT_BACKEND", value_name = "NAME", default_value = "ttft", value_parser = Backend::from_name)]
    pub backend: Backend,
    /// Bind each thread to a CPU of its own: cores of the fastest class first, then their siblings, then slower cores (Linux)
    #[arg(long, env = "TTFT_PIN", value_parser = clap::builder::BoolishValueParser::new())]
    pub pin: bool,
    /// GEMM or few-row kernel, by name, that is used for every shape that it can serve
    #[arg(long, env = "TTFT_KERNEL", value_name = "NAME")]
    pub kernel: Option<String>,
}

impl EngineKnobs {
    /// The engine they ask for.
    ///
    /// # Errors
    /// An ISA or kernel that is not there, with what is; a senseless thread count; threads that cannot be bound.
    pub fn engine(&self) -> Result<Engine> {
        let options =
            Options { isa: self.isa, threads: self.threads, backend: self.backend, gemm_kernel: self.kernel.clone() };
        // An engine before may have bound this thread.
        let engine = placement::unbound(|| Engine::new(&options))?;
        if self.pin {
            placement::pin(&engine)?;
        }
        Ok(engine)
    }
}

/// What to measure, and where things go.
#[derive(Args, Clone, Debug)]
pub struct RunKnobs {
    /// Preset (quick, grid, table5, table5-3b, fig1, fig5b, shared, base-tokens, rivals, controls, cold, calibrate, llama, qwen, smollm, long) or path
    /// of a scenario file (default: quick; `ttft calibrate` takes calibrate)
    #[arg(long, visible_alias = "preset", env = "TTFT_SCENARIO", value_name = "NAME|FILE")]
    pub scenario: Option<String>,
    /// Measure this network, or with --aux this pair, on the scenario's grid, in place of the scenario's systems: a folder as
    /// the Hub has it, a folder or file with only a config.json (weights of its shape are then made), or a network of the zoo
    #[arg(long, env = "TTFT_BASE", value_name = "DIR|NAME")]
    pub base: Option<String>,
    /// The auxiliary network of --base, likewise
    #[arg(long, env = "TTFT_AUX", value_name = "DIR|NAME", requires = "base")]
    pub aux: Option<String>,
    /// Folder of the pair's predictor; without --aux, it is a predictor for shared layers of --base (default: one of the pair's shape
    /// with random values, which predicts nothing)
    #[arg(long, env = "TTFT_PREDICTOR", value_name = "DIR", requires = "base")]
    pub predictor: Option<PathBuf>,
    /// Token pruning of --base in place of KV prediction, such as RP-0.50 or GemFilter-11-128, or with --aux, which then chooses
    /// the tokens, SpecPrefill-0.40
    #[arg(long, env = "TTFT_PRUNE", value_name = "PRUNING", requires = "base", conflicts_with = "predictor")]
    pub prune: Option<Pruning>,
    /// Last tokens of each prompt that --base reads itself in KV prediction (default: 1)
    #[arg(long, env = "TTFT_BASE_TOKENS", value_name = "M", requires = "base", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub base_tokens: Option<u32>,
    /// First tokens of each prompt that --base reads itself in KV prediction (default: 0)
    #[arg(long, env = "TTFT_SINK_TOKENS", value_name = "S", requires = "base", value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    pub sink_tokens: Option<u32>,
    /// Whether the keys and values of the first tokens that the base of a KV prediction reads itself are kept from an earlier call,
    /// as they can be where all prompts begin alike: on or off (default: off)
    #[arg(long, env = "TTFT_KEEP_SINKS", value_name = "on|off", num_args = 0..=1, default_missing_value = "on", value_parser = switch)]
    pub keep_sinks: Option<bool>,
    /// Type of activations and caches: f32 or bf16 (default: the scenario's)
    #[arg(long, env = "TTFT_PRECISION", value_name = "TYPE", value_parser = Precision::from_name)]
    pub precision: Option<Precision>,
    /// What is computed: first_token or full_network (default: the scenario's)
    #[arg(long, env = "TTFT_EXTENT", value_name = "EXTENT", value_parser = Extent::from_name)]
    pub extent: Option<Extent>,
    /// What is in memory when the clock starts: warm (the weights, mapped) or cold (nothing of them: every sample reads them
    /// from disk) (default: the scenario's)
    #[arg(long, env = "TTFT_START", value_name = "START", value_parser = Start::from_name)]
    pub start: Option<Start>,
    /// Seconds that the whole run may take; what does not fit is skipped (default: the scenario's)
    #[arg(long, env = "TTFT_BUDGET", value_name = "SECONDS", value_parser = seconds)]
    pub budget: Option<f64>,
    /// Folder in which synthetic weights are kept (default: ttft-weights in the target folder)
    #[arg(long, env = "TTFT_WEIGHTS", value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// File of the record to write (default: a new file in ttft-records in the target folder)
    #[arg(long, env = "TTFT_OUT", value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Whether energy is measured after the samples, where the machine tells it: on or off; a few seconds for each system
    /// (default: on)
    #[arg(long, env = "TTFT_ENERGY", value_name = "on|off", value_parser = switch)]
    pub energy: Option<bool>,
    /// Make every sample slower by this many percent, on purpose: a difference that a comparison must find
    #[arg(long, value_name = "PERCENT", hide = true, value_parser = percent)]
    pub slowdown: Option<f64>,
    /// A run that is not to leave a record behind.
    #[arg(skip)]
    pub trial: bool,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineKnobs,
}

/// A variable that is set to nothing means what an unset one means.
pub(crate) fn without_empty(command: Command) -> Command {
    let empty =
        |arg: &clap::Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|v| v.is_empty()));
    let command = command.mut_args(|arg| if empty(&arg) { arg.env(None::<&'static str>) } else { arg });
    command.mut_subcommands(without_empty)
}

impl RunKnobs {
    /// The flags that ask another process of this program for the same, but for the record.
    pub fn flags(&self) -> Vec<OsString> {
        // As they were declared: what is added above must stand here.
        let RunKnobs {
            scenario,
            base,
            aux,
            predictor,
            prune,
            base_tokens,
            sink_tokens,
            keep_sinks,
            precision,
            extent,
            start,
            budget: _,
            weights,
            out: _,
            energy,
            slowdown,
            trial: _,
            engine,
        } = self;
        let EngineKnobs { isa, threads, pin, backend, kernel } = engine;
        let mut flags = Vec::new();
        let mut add = |name: &str, value: Option<OsString>| {
            flags.extend(value.into_iter().flat_map(|v| [OsString::from(name), v]));
        };
        add("--scenario", scenario.as_ref().map(Into::into));
        add("--base", base.as_ref().map(Into::into));
        add("--aux", aux.as_ref().map(Into::into));
        add("--predictor", predictor.as_ref().map(Into::into));
        add("--prune", prune.map(|p| p.to_string().into()));
        add("--base-tokens", base_tokens.map(|m| m.to_string().into()));
        add("--sink-tokens", sink_tokens.map(|s| s.to_string().into()));
        add("--keep-sinks", keep_sinks.map(|on| if on { "on" } else { "off" }.into()));
        add("--precision", precision.map(|p| p.name().into()));
        add("--extent", extent.map(|e| e.name().into()));
        add("--start", start.map(|s| s.name().into()));
        add("--weights", weights.as_ref().map(Into::into));
        add("--energy", energy.map(|on| if on { "on" } else { "off" }.into()));
        add("--slowdown", slowdown.map(|s| s.to_string().into()));
        add("--isa", isa.map(|i| i.name().into()));
        add("--threads", threads.map(|t| t.to_string().into()));
        add("--backend", Some(backend.name().into()));
        add("--kernel", kernel.as_ref().map(Into::into));
        // Last, as the only one without a value: `typed` takes the others in pairs.
        flags.extend(pin.then(|| "--pin".into()));
        flags
    }

    /// The same flags as one types them; a default backend goes without saying.
    pub fn typed(&self) -> String {
        let name = self.scenario_name();
        let scenario = match PRESETS.iter().any(|(preset, _)| *preset == name) {
            true => name.to_owned(),
            false => {
                std::path::absolute(name).map_or_else(|_| name.to_owned(), |path| path.to_string_lossy().into_owned())
            }
        };
        let all = RunKnobs { scenario: Some(scenario), ..self.clone() }.flags();
        let said = all.chunks(2).filter(|pair| *pair != ["--backend", "ttft"]);
        let words: Vec<String> = said.flatten().map(|word| output::quoted(&word.to_string_lossy())).collect();
        words.join(" ")
    }

    /// The knobs as the environment sets them. Relative paths are meant from where the user called cargo.
    ///
    /// # Errors
    /// A value that does not parse, with the variable's name.
    pub fn from_env() -> Result<RunKnobs, clap::Error> {
        #[derive(Parser)]
        #[command(name = "ttft")]
        struct Env {
            #[command(flatten)]
            knobs: RunKnobs,
        }
        let command = || without_empty(Env::command());
        let matches = command().try_get_matches_from(["ttft"])?;
        let mut knobs = Env::from_arg_matches(&matches).map_err(|e| e.format(&mut command()))?.knobs;
        if let Some(from) = output::called_from() {
            knobs.resolve(&from);
        }
        Ok(knobs)
    }

    /// Makes relative paths start at `from`.
    fn resolve(&mut self, from: &Path) {
        for path in [&mut self.weights, &mut self.out, &mut self.predictor].into_iter().flatten() {
            *path = from.join(&*path);
        }
        for name in [&mut self.base, &mut self.aux].into_iter().flatten() {
            let path = from.join(&*name);
            if let Some(path) = path.to_str().filter(|_| path.exists()) {
                *name = path.to_owned();
            }
        }
        if let Some(name) = self.scenario.as_mut().filter(|name| !PRESETS.iter().any(|(preset, _)| preset == name)) {
            let path = from.join(&*name);
            // Another spelling of its name is still the better complaint.
            if let Some(path) = path.to_str().filter(|_| path.exists()) {
                *name = path.to_owned();
            }
        }
    }

    /// The scenario that is asked for, or the default.
    pub fn scenario_name(&self) -> &str {
        self.scenario.as_deref().unwrap_or(PRESETS[0].0)
    }

    /// The scenario with what the knobs change in it.
    ///
    /// # Errors
    /// As [`Scenario::load`].
    pub fn scenario(&self) -> Result<Scenario> {
        let mut s = Scenario::load(self.scenario_name())?;
        s.precision = self.precision.or(s.precision);
        s.extent = self.extent.or(s.extent);
        s.start = self.start.or(s.start);
        s.budget_s = self.budget.unwrap_or(s.budget_s);
        let keep = self.keep_sinks == Some(true);
        let Some(base) = self.base.clone() else { return if keep { s.keeping_sinks() } else { Ok(s) } };
        let (aux, predictor) = (self.aux.clone(), self.predictor.clone());
        let [base_tokens, sink_tokens] = [self.base_tokens, self.sink_tokens].map(|n| n.map(|n| n as usize));
        let s =
            s.of(Asked { base, aux, predictor, prune: self.prune, base_tokens, sink_tokens, ..Asked::default() })?;
        if keep { s.keeping_sinks() } else { Ok(s) }
    }

    /// Environment variables with their help, in the order declared.
    pub fn variables() -> Vec<(String, String)> {
        #[derive(Parser)]
        struct Env {
            #[command(flatten)]
            _knobs: RunKnobs,
        }
        let command = Env::command();
        let variable = |a: &clap::Arg| Some((a.get_env()?.to_str()?.to_owned(), a.get_help()?.to_string()));
        command.get_arguments().filter_map(variable).collect()
    }
}

/// A number of threads that an engine may have.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "give 1 to 1024".into())
}

/// `on` or `off`.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// A positive number of seconds.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s.is_finite() => Ok(s),
        _ => Err("expected a positive number of seconds".into()),
    }
}

/// A percentage from 0 to 1000.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..=1000.0).contains(&p) => Ok(p),
        _ => Err("expected a percentage from 0 to 1000".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_where_cargo_was_called() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s.toml"), "").unwrap();
        let mut knobs = RunKnobs::from_env().unwrap();
        (knobs.weights, knobs.out) = (Some("w".into()), Some("/r.jsonl".into()));
        for (name, resolved) in [
            ("s.toml", dir.path().join("s.toml").to_string_lossy().into_owned()),
            ("quick", "quick".into()),
            ("quik", "quik".into()),
        ] {
            knobs.scenario = Some(name.into());
            knobs.resolve(dir.path());
            assert_eq!(knobs.scenario_name(), resolved);
        }
        assert_eq!((knobs.weights, knobs.out), (Some(dir.path().join("w")), Some("/r.jsonl".into())));
    }

    #[test]
    fn other_processes_are_told_which_tokens_the_base_reads() {
        let mut knobs = RunKnobs::from_env().unwrap();
        (knobs.base, knobs.predictor) = (Some("OE270M".into()), Some("maps".into()));
        (knobs.base_tokens, knobs.sink_tokens) = (Some(15), Some(1));
        let flags: Vec<_> = knobs.flags().into_iter().map(|f| f.into_string().unwrap()).collect();
        for flag in [["--base-tokens", "15"], ["--sink-tokens", "1"]] {
            assert!(flags.windows(2).any(|f| f == flag), "{flag:?}: {flags:?}");
        }
    }

    #[test]
    fn a_command_for_the_same_names_all_that_was_asked_for() {
        let mut knobs = RunKnobs::from_env().unwrap();
        assert_eq!(knobs.typed(), "--scenario quick");
        (knobs.scenario, knobs.base) = (Some("/my scenarios/s.toml".into()), Some("OE1.1B".into()));
        (knobs.aux, knobs.start) = (Some("OE270M".into()), Some(Start::Cold));
        (knobs.engine.threads, knobs.engine.pin) = (Some(2), true);
        knobs.engine.kernel = Some("gemm_x".into());
        let typed = "--base OE1.1B --aux OE270M --start cold --threads 2 --kernel gemm_x --pin";
        let quoted = knobs.typed().replace('"', "'");
        assert_eq!(quoted, format!("--scenario '/my scenarios/s.toml' {typed}"));
    }

    #[test]
    fn reference_lists_every_variable() {
        let reference = include_str!("../../docs/reference.md");
        for (name, _) in RunKnobs::variables() {
            assert!(reference.contains(&format!("`{name}`")), "docs/reference.md does not mention {name}");
        }
        assert_eq!(RunKnobs::variables().len(), 20);
    }

    #[test]
    fn help_and_reference_name_every_preset() {
        let (_, help) = RunKnobs::variables().swap_remove(0);
        let reference = include_str!("../../docs/reference.md");
        for (name, _) in PRESETS {
            assert!(help.contains(name), "the help of TTFT_SCENARIO does not name {name}");
            assert!(reference.contains(&format!("`{name}`")), "docs/reference.md does not name {name}");
        }
    }
}
