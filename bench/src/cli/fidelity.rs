use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use comfy_table::{Table, presets};
use ttft_models::{Precision, System};
use ttft_reports::{
    fidelity::{self as file, ControlKind, Measure, Results, judge},
    format::{bytes, flops, seconds},
    text::printable,
};

use crate::{
    catalog, console,
    corpus::Corpus,
    fidelity::{
        Answered, Asked, CutText, Session,
        items::{Answer, FileTask},
        lookups, overlap,
        readers::{Role, Row, operations},
        systems::Systems,
    },
    knobs::EngineKnobs,
    machine,
    output::{self, Pending},
    rig::now,
    scenario::Named,
    session::file_name,
    text::{self, Text},
};

/// Windows of the first text, beside those that are compared, that predictions are averaged on.
const SPARE: usize = 8;

/// Compare the answers of KV predictions with those of full prefill, on text, on look-ups and on tasks of your own
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  ttft fidelity --base smollm2 --predictor maps --sink-tokens 1 --text held-out.txt \
                        --text2 other.txt --out fidelity.json"
)]
pub struct Fidelity {
    /// The base network, with its tokenizer: a folder as the Hub has it
    #[arg(long, value_name = "DIR|NAME", required_unless_present = "scenario", conflicts_with = "scenario")]
    base: Option<String>,
    /// The auxiliary network, likewise; without it the base's first layers read the prompt
    #[arg(long, value_name = "DIR|NAME", requires = "base")]
    aux: Option<String>,
    /// Folder of a predictor; may be given several times (default with an auxiliary: random values, which predict nothing)
    #[arg(long, value_name = "DIR", requires = "base")]
    predictor: Vec<PathBuf>,
    /// Last tokens of each prompt that the base reads itself [default: 1]
    #[arg(long, value_name = "M", requires = "base", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    base_tokens: Option<u32>,
    /// First tokens of each prompt that the base reads itself [default: 0]
    #[arg(long, value_name = "S", requires = "base", value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    sink_tokens: Option<u32>,
    /// Preset or scenario file whose systems are compared, in place of --base; LazyLLM is refused, and the file's lengths, batches
    /// and rounds do not count
    #[arg(long, value_name = "NAME|FILE")]
    scenario: Option<String>,
    /// Folder in which synthetic weights are kept (default: ttft-weights in the target folder)
    #[arg(long, env = "TTFT_WEIGHTS", value_name = "DIR")]
    weights: Option<PathBuf>,
    /// UTF-8 texts of the kind that the maps were fitted on, but none of those themselves
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// Texts of another kind, likewise
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    text2: Vec<PathBuf>,
    /// Windows of each text
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    windows: u32,
    /// Tokens of each window's prompt; look-ups are about as long, but not much longer than 256
    #[arg(long, value_name = "P", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    prompt_tokens: u32,
    /// Tokens that are compared after each prompt, the first included
    #[arg(long, value_name = "C", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=4096))]
    continuation: u32,
    /// Look-ups of each kind; 0 for none
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    lookups: u32,
    /// Seed of the look-ups
    #[arg(long, value_name = "X", default_value_t = 1)]
    seed: u64,
    /// File of tasks, one JSON object on each line: question and answers, or task_id and prompt; may be given several times
    #[arg(long, value_name = "FILE.jsonl")]
    tasks: Vec<PathBuf>,
    /// Take the prompts of --tasks for what a user says, by the chat template of the base's folder
    #[arg(long, requires = "tasks")]
    chat: bool,
    /// Most tokens of an answer to an item of --tasks [default: 32 for questions, 256 for code]
    #[arg(long, value_name = "N", requires = "tasks", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    answer_tokens: Option<u32>,
    /// Folder for the completions of code tasks, one file for each system, for the harness that judges them
    #[arg(long, value_name = "DIR", requires = "tasks")]
    completions: Option<PathBuf>,
    /// Type of activations and caches: f32 or bf16 (default: bf16 for BF16 weights, else f32)
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_name)]
    dtype: Option<Precision>,
    /// File for the results
    #[arg(long, value_name = "FILE.json")]
    out: PathBuf,
    /// Print what it would cost, and stop
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    engine: EngineKnobs,
}

impl Fidelity {
    pub fn run(self) -> Result<()> {
        let started_at = now();
        let named = [&self.base, &self.aux, &self.scenario].into_iter().flatten().map(Path::new);
        let files = [&self.text, &self.text2, &self.tasks, &self.predictor].into_iter().flatten().map(PathBuf::as_path);
        let inputs: Vec<&Path> = named.chain(files).collect();
        output::spare(&self.out, inputs.iter().copied())?;
        output::replaces(&self.out, "fidelity file", "{\n\"schema\": \"ttft-fidelity/")?;
        let out = Pending::claim(&self.out)?;
        let engine = self.engine.engine()?;
        let systems = self.systems()?;
        let Systems { base, dir, identity, judged, precision } = systems;
        output::spare(&self.out, judged.iter().filter_map(|j| j.predictor.as_deref()).chain([&*dir]))?;
        let tokenizer = Text::load(&dir)?;
        let (prompt, continuation) = (self.prompt_tokens as usize, self.continuation as usize);
        let (vocab, trained) = (base.config().vocab, base.config().max_context);
        ensure!(
            prompt + continuation <= trained,
            "{prompt} tokens and {continuation} after them are more than the {trained} that the base was trained on: give fewer \
             --prompt-tokens"
        );
        let read = |files: &Vec<PathBuf>| Corpus::load(&tokenizer, files, vocab, &dir);
        let corpora = [&self.text, &self.text2].map(read).into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(
            !corpora[0].files.iter().any(|a| corpora[1].files.iter().any(|b| a.sha256 == b.sha256)),
            "--text2 holds a file of --text: give text of another kind"
        );
        let mut stated = false;
        for predictor in judged.iter().filter_map(|j| j.predictor.as_deref()) {
            stated |= overlap::unread(predictor, &corpora.iter().collect::<Vec<_>>())?;
        }
        let begin = begins_with(&tokenizer)?;
        let texts = self.cut(&corpora, &begin, prompt, continuation)?;
        let (tasks, about_tasks) = self.tasks_of(&tokenizer, &dir, &begin, &corpora[0], trained)?;
        let completions = self.completions(&judged.iter().map(|j| &*j.name).collect::<Vec<_>>(), &tasks, &inputs)?;

        let weights = base.mapped_bytes() + judged.iter().map(|j| weights_beside(&j.system)).sum::<u64>();
        let precision = self.dtype.or(precision).unwrap_or(Precision::natural(base.weight_dtype()));
        base.warm();
        for j in &judged {
            if let System::KvPrediction(s) = &j.system {
                s.networks().for_each(|n| n.warm());
                s.predictor.warm();
            }
        }
        let session = Session {
            engine: &engine,
            base,
            precision,
            prompt,
            continuation,
            judged,
            texts,
            tasks,
            tokenizer: &tokenizer,
            ends: text::ends(&dir)?,
            answer: self.answers(),
        };
        let shares = session.shares()?;
        let rows = session.rows(&shares)?;
        let need = session.memory(&rows, weights)?;
        if let Some(free) = machine::available_memory() {
            ensure!(
                need <= free,
                "it needs {} of memory, and {} are available: give fewer systems, or fewer --prompt-tokens",
                bytes(need),
                bytes(free)
            );
        }
        let pace = session.pace(&rows)?;
        let work = session.work(&rows, &pace)?;
        console::note(format_args!(
            "{} readers (full prefill, {} systems, {} controls) on {} windows of text and {} items: {} in about {}, with {} of \
             memory",
            rows.len(),
            session.judged.len(),
            rows.len() - 1 - session.judged.len(),
            session.texts.iter().map(|t| t.windows.len()).sum::<usize>(),
            session.tasks.iter().map(|t| t.items.len()).sum::<usize>(),
            flops(work.operations),
            seconds(work.time.as_secs_f64()),
            bytes(need),
        ));
        if self.plan {
            return Ok(());
        }
        // All in turn, so that what slows the machine slows them alike.
        let times = session.times(&rows)?;
        let answered = session.measure(&rows, &pace)?;

        let file = file::Fidelity {
            schema: file::SCHEMA.into(),
            started_at: Some(started_at),
            command: std::env::args_os().map(|a| file_name(&printable(&a.to_string_lossy()))).collect(),
            ttft_version: Some(env!("CARGO_PKG_VERSION").into()),
            git: machine::git(),
            machine: machine_in_short(&engine),
            settings: file::Settings {
                precision: machine::dtype(precision.dtype()),
                prompt: self.prompt_tokens,
                continuation: self.continuation,
                answer: session.longest_answer() as u32,
                seed: self.seed,
            },
            base: file::Base { network: identity, ttft_ns: times[0].clone() },
            texts: session
                .texts
                .iter()
                .zip(&corpora)
                .enumerate()
                .map(|(i, (text, corpus))| file::Text {
                    name: text.name.clone(),
                    sha256: corpus.sha256(),
                    tokens: corpus.tokens() as u64,
                    domain: None,
                    of_fit: stated.then_some(i == 0),
                    windows: text.windows.len() as u32,
                })
                .collect(),
            tasks: session
                .tasks
                .iter()
                .zip(&about_tasks)
                .zip(&answered[0].tasks)
                .map(|((task, about), base)| file::Task {
                    name: task.name.clone(),
                    kind: task.kind,
                    sha256: about.sha256.clone(),
                    items: task.items.len() as u32,
                    prompt_tokens: task.items.iter().map(|i| i.prompt.len() as f64).sum::<f64>()
                        / task.items.len() as f64,
                    chance: about.chance,
                    base: base.exact.clone(),
                })
                .collect(),
            systems: Vec::new(),
            controls: Vec::new(),
            notes: notes(&rows),
        };
        let file = filled(file, &session, &rows, &answered, &times);
        let text = file.to_text(&self.out).context("what was measured makes no fidelity file")?;
        for (pending, row) in completions {
            let lines = written(&session, &answered[row]);
            pending.write(|w| Ok(w.write_all(lines.as_bytes())?))?;
        }
        // The last, as who finds it takes the rest for done.
        out.write(|w| Ok(w.write_all(text.as_bytes())?))?;
        console::print(table(&rows, &session, &answered))?;
        for judgement in judge(&file) {
            console::print(format_args!("{}: {}", judgement.system, judgement.words))?;
        }
        console::print(format_args!("wrote {}", output::shown(&self.out)))
    }

    fn systems(&self) -> Result<Systems> {
        let Some(base) = &self.base else {
            let name = self.scenario.as_deref().expect("clap asks for one of the two");
            return Systems::of_scenario(name, self.weights.clone());
        };
        let count = |n: Option<u32>| n.map(|n| n as usize);
        let one = |predictor: Option<&PathBuf>, name: Option<String>| catalog::Asked {
            name,
            base: base.clone(),
            aux: self.aux.clone(),
            predictor: predictor.cloned(),
            base_tokens: count(self.base_tokens),
            sink_tokens: count(self.sink_tokens),
            keep_sinks: None,
            prune: None,
        };
        let asked = match &self.predictor[..] {
            [] => {
                ensure!(
                    self.aux.is_some(),
                    "there is nothing to judge: give the --predictor of the base's shared layers, or an --aux"
                );
                vec![one(None, None)]
            }
            [only] => vec![one(Some(only), None)],
            several => several.iter().map(|p| one(Some(p), Some(folder_name(p)))).collect(),
        };
        Systems::asked(&asked, self.weights.clone())
    }

    /// Windows of both texts, each with what begins every prompt.
    fn cut<'a>(
        &self,
        corpora: &'a [Corpus],
        begin: &[u32],
        prompt: usize,
        continuation: usize,
    ) -> Result<Vec<CutText<'a>>> {
        let (count, n) = (self.windows as usize, prompt + continuation);
        ensure!(begin.len() < prompt, "a prompt of {prompt} tokens holds no text: give more --prompt-tokens");
        let cut = |(i, corpus): (usize, &'a Corpus)| {
            let inside = n - begin.len();
            let spare = if i == 0 { SPARE } else { 0 };
            let (windows, spare) = match corpus.pieces(count + spare, inside) {
                Ok(mut all) => {
                    let spare = all.split_off(count);
                    (all, spare)
                }
                Err(_) => (corpus.pieces(count, inside)?, Vec::new()),
            };
            let windows = windows.into_iter().map(|w| [begin, w].concat()).collect();
            Ok(CutText { name: corpus.name(), windows, spare })
        };
        let mut texts = corpora.iter().enumerate().map(cut).collect::<Result<Vec<_>>>()?;
        if texts[0].name == texts[1].name {
            texts[1].name += " (2)";
        }
        Ok(texts)
    }

    /// Look-ups, and the tasks of files; and what is to be said of them.
    fn tasks_of(
        &self,
        tokenizer: &Text,
        dir: &Path,
        begin: &[u32],
        hay: &Corpus,
        trained: usize,
    ) -> Result<(Vec<Asked>, Vec<AboutTask>)> {
        let (mut tasks, mut about) = (Vec::new(), Vec::new());
        if self.lookups > 0 {
            let drawn =
                lookups::draw(tokenizer, begin, hay, self.prompt_tokens as usize, self.lookups as usize, self.seed)?;
            for drawn in drawn {
                tasks.push(Asked { name: drawn.kind.words().into(), kind: drawn.kind, items: drawn.items });
                about.push(AboutTask { sha256: None, chance: drawn.chance });
            }
        }
        for file in &self.tasks {
            let task = FileTask::read(file, tokenizer, self.chat.then_some(dir))?;
            ensure!(
                !tasks.iter().any(|t: &Asked| t.name == task.name),
                "{}: another task is called so: give the file another name",
                file.display()
            );
            tasks.push(Asked { name: task.name, kind: task.kind, items: task.items });
            about.push(AboutTask { sha256: Some(task.sha256), chance: 0.0 });
        }
        let [answer, code] = self.answers();
        for (task, item) in tasks.iter().flat_map(|t| t.items.iter().map(move |i| (t, i))) {
            let most = match &item.answer {
                Answer::Tokens(ids) => ids.len(),
                Answer::OneOf(_) => answer,
                Answer::Written(_) => code,
            };
            ensure!(
                item.prompt.len() + most <= trained,
                "{}: a prompt of {} tokens and an answer of up to {most} are more than the {trained} that the base was trained on: \
                 {}",
                task.name,
                item.prompt.len(),
                if matches!(item.answer, Answer::Tokens(_)) {
                    "give --lookups 0"
                } else {
                    "give fewer --answer-tokens"
                }
            );
        }
        Ok((tasks, about))
    }

    fn answers(&self) -> [usize; 2] {
        [32, 256].map(|usual| self.answer_tokens.map_or(usual, |n| n as usize))
    }

    /// Files for completions, each with the row that writes it: of the base, and of each system.
    fn completions(&self, systems: &[&str], tasks: &[Asked], inputs: &[&Path]) -> Result<Vec<(Pending, usize)>> {
        let code = tasks.iter().any(|t| t.items.iter().any(|i| matches!(i.answer, Answer::Written(_))));
        let Some(dir) = &self.completions else {
            if code {
                bail!("--tasks has code to complete, which others judge: give a folder for it, --completions DIR");
            }
            return Ok(Vec::new());
        };
        ensure!(code, "--completions: no file of --tasks has code to complete (task_id and prompt)");
        ensure!(
            !systems.contains(&"base"),
            "--completions: a system is called base, as the file of full prefill is: give its folder or its pair another name"
        );
        if self.plan {
            return Ok(Vec::new());
        }
        std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot make the folder", dir.display()))?;
        let names = std::iter::once("base").chain(systems.iter().copied()).enumerate();
        names
            .map(|(row, name)| {
                let file = dir.join(format!("{name}.jsonl"));
                output::spare(&file, inputs.iter().copied().chain([&*self.out]))?;
                output::replaces(&file, "file of completions", "{\"completion\":")?;
                Ok((Pending::claim(&file)?, row))
            })
            .collect()
    }
}

/// What is said of a task.
struct AboutTask {
    sha256: Option<String>,
    chance: f64,
}

/// The ids that begin every text.
fn begins_with(tokenizer: &Text) -> Result<Vec<u32>> {
    let (whole, plain) = (tokenizer.ids("a", false)?, tokenizer.ids("a", true)?);
    let at = whole.windows(plain.len().max(1)).position(|w| w == plain).unwrap_or(0);
    Ok(whole[..at].to_vec())
}

fn folder_name(dir: &Path) -> String {
    let path = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    path.file_name().map_or_else(|| "predictor".into(), |n| n.to_string_lossy().into_owned())
}

/// Bytes of a system's weights beside its base's.
fn weights_beside(system: &System) -> u64 {
    match system {
        System::KvPrediction(s) => s.predictor.mapped_bytes() + s.aux.as_ref().map_or(0, |aux| aux.mapped_bytes()),
        _ => 0,
    }
}

fn machine_in_short(engine: &ttft_kernels::Engine) -> file::Machine {
    let here = machine::fingerprint();
    file::Machine {
        cpu_model: here.cpu_model,
        arch: here.arch,
        logical_cores: here.logical_cores,
        isa: Some(engine.isa().name().into()),
        threads: u32::try_from(engine.threads()).ok(),
    }
}

fn notes(rows: &[Row]) -> Vec<String> {
    let shared = rows.iter().any(|row| {
        matches!(&row.reader, crate::fidelity::readers::Reader::System(System::KvPrediction(s)) if s.aux.is_none())
    });
    let note = "Layers of the base read the prompt in place of an auxiliary, so there is none that could answer alone.";
    shared.then(|| note.to_owned()).into_iter().collect()
}

/// The file with its systems and controls.
fn filled(
    mut file: file::Fidelity,
    session: &Session<'_>,
    rows: &[Row],
    answered: &[Answered],
    times: &[Vec<u64>],
) -> file::Fidelity {
    let (base, precision, n) = (&session.base, session.precision, session.prompt);
    let cost = |row: &Row| {
        let (shapes, n) = row.shapes(base, precision, n);
        operations(&shapes, precision, n) as f64
    };
    let whole = cost(&rows[0]);
    for (at, (row, answered)) in rows.iter().zip(answered).enumerate() {
        let results = Results { texts: answered.texts.clone(), tasks: answered.tasks.clone() };
        let operations_share = cost(row) / whole;
        match row.role {
            Role::Base => {}
            Role::Judged(i) => {
                let judged = &session.judged[i];
                file.systems.push(file::System {
                    name: judged.name.clone(),
                    kind: judged.kind,
                    prediction: judged.prediction.clone(),
                    aux: judged.aux.clone(),
                    operations_share,
                    ttft_ns: times[at].clone(),
                    results,
                });
            }
            Role::Control(kind, of) => {
                let short = row.short(base, precision, n);
                file.controls.push(file::Control {
                    kind,
                    system: of.map(|i| session.judged[i].name.clone()),
                    base_tokens: short.map(|(last, _)| last as u32),
                    sink_tokens: short.map(|(_, first)| first as u32),
                    operations_share: (kind != ControlKind::TrueCaches).then_some(operations_share),
                    ttft_ns: if kind == ControlKind::TrueCaches { Vec::new() } else { times[at].clone() },
                    results,
                });
            }
        }
    }
    file
}

/// Completions as the harness of HumanEval reads them.
fn written(session: &Session<'_>, answered: &Answered) -> String {
    let mut out = String::new();
    for (task, written) in session.tasks.iter().zip(&answered.written) {
        for (item, text) in task.items.iter().zip(written) {
            if let Answer::Written(id) = &item.answer {
                out += &serde_json::json!({"task_id": id, "completion": text}).to_string();
                out.push('\n');
            }
        }
    }
    out
}

/// What was measured, a line for each reader.
fn table(rows: &[Row], session: &Session<'_>, answered: &[Answered]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let texts = session.texts.iter().flat_map(|t| [format!("KL, {}", t.name), format!("greedy, {}", t.name)]);
    let tasks = session.tasks.iter().map(|t| t.name.clone());
    table.set_header(std::iter::once("reader".to_owned()).chain(texts).chain(tasks));
    for (row, answered) in rows.iter().zip(answered) {
        let mut cells = vec![row.name.clone()];
        cells.extend(answered.texts.iter().flat_map(|t| {
            let shown = |m: &Measure, digits| {
                let error = m.standard_error.map_or_else(String::new, |e| format!(" ({e:.digits$})"));
                format!("{:.digits$}{error}", m.mean)
            };
            [Some(shown(&t.continuation.kl, 4)), t.greedy.as_ref().map(|g| shown(g, 2))].into_iter().flatten()
        }));
        cells.extend(answered.tasks.iter().map(|t| match &t.exact {
            Some(exact) => format!("{:.2} ({:.2})", exact.share, exact.standard_error),
            None => "written".into(),
        }));
        table.add_row(cells);
    }
    table
}
