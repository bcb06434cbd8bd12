//! What becomes of the answer: systems and controls beside full prefill of their base, on the same windows of text and the same
//! items. `docs/fidelity.md` says what each figure and each control means.

pub mod distance;
pub mod draw;
pub mod items;
pub mod lookups;
pub mod readers;
pub mod systems;
pub mod texts;

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use ttft_kernels::Engine;
use ttft_models::{
    Inference, NamedTensor, Network, Precision, System,
    cost::CostSystem,
    kv_prediction::control::{Control, Mean},
    memory_of_scoring,
};
use ttft_reports::fidelity::{ControlKind, Distance, Measure, OnTask, OnText, Outcomes, TaskKind};

use self::{
    distance::{Apart, Distributions, likeliest},
    items::{Answer, Item, end_of, is_one_of},
    readers::{Length, Reader, Role, Row, length_at, operations},
    systems::Judged,
};
use crate::text::Text;

/// Windows whose predictions are averaged for the mean cache.
const MEAN_WINDOWS: usize = 8;
/// Times that each TTFT is measured, once every reader has run.
const ROUNDS: usize = 5;
/// Lengths at which the base's TTFT is measured, in parts of the prompt, to find the one that takes a system's time.
const LENGTHS: usize = 8;

/// A text, cut.
pub struct CutText<'a> {
    /// Its name.
    pub name: String,
    /// Prompts with what follows them.
    pub windows: Vec<Vec<u32>>,
    /// Windows of it that nothing else is measured on.
    pub spare: Vec<&'a [u32]>,
}

/// A task.
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: TaskKind,
    /// Its items.
    pub items: Vec<Item>,
}

/// What is measured, on what.
pub struct Session<'a> {
    /// What computes.
    pub engine: &'a Engine,
    /// The network that everything is compared with.
    pub base: Arc<Network>,
    /// Type of activations and caches.
    pub precision: Precision,
    /// Tokens of a window's prompt.
    pub prompt: usize,
    /// Tokens that are compared after it, the first included.
    pub continuation: usize,
    /// What is judged.
    pub judged: Vec<Judged>,
    /// Texts; predictions are averaged on the first.
    pub texts: Vec<CutText<'a>>,
    /// Tasks.
    pub tasks: Vec<Asked>,
    /// What makes text of written answers.
    pub tokenizer: &'a Text,
    /// Ids that end an answer.
    pub ends: Vec<u32>,
    /// Most tokens of an answer, of questions and of code.
    pub answer: [usize; 2],
}

/// What a reader gave.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// One for each text.
    pub texts: Vec<OnText>,
    /// One for each task, all of them without exact matches where others judge.
    pub tasks: Vec<OnTask>,
    /// What was written, by task and item; empty where that does not matter.
    pub written: Vec<Vec<String>>,
}

/// One position after another of a window, and of the first one and the rest the means.
#[derive(Clone, Copy, Debug, Default)]
struct OfWindow {
    first: [f64; 3],
    rest: [f64; 3],
}

impl OfWindow {
    fn of(positions: &[Apart]) -> OfWindow {
        let figures = |a: &Apart| [a.kl, f64::from(u8::from(a.top1)), a.loss_gap];
        let mut out = OfWindow { first: figures(&positions[0]), rest: [0.0; 3] };
        let rest = &positions[1..];
        for a in rest {
            out.rest.iter_mut().zip(figures(a)).for_each(|(sum, x)| *sum += x / rest.len() as f64);
        }
        out
    }
}

/// What one reader answers to one item.
#[derive(Clone, Debug, Default)]
struct OfItem {
    first: u32,
    exact: bool,
    written: String,
}

/// A run for prompts of so many tokens.
type Run = (usize, Box<dyn Inference>);

impl Session<'_> {
    /// The base, then the systems, then the controls; those that take a system's time need what was measured: the base's TTFT
    /// by length, and each system's.
    ///
    /// # Errors
    /// What running a system says.
    pub fn rows(&self, shares: &[f64]) -> Result<Vec<Row>> {
        let mut rows = vec![self.base_row()];
        rows.extend(self.system_rows());
        let control = |kind, of, name: String, reader| Row { name, reader, role: Role::Control(kind, of) };
        let no_context = Reader::Short { last: Length::Tokens(1), first: 0 };
        rows.push(control(ControlKind::NoContext, None, "no context".into(), no_context));
        for (i, judged) in self.judged.iter().enumerate() {
            let beside = |what: &str| format!("{what} ({})", judged.name);
            let sink = judged.sinks().max(1);
            for (kind, last, what) in [
                (
                    ControlKind::TruncationEqualOperations,
                    Length::Operations(Box::new(CostSystem::of(&judged.system))),
                    "truncation, equal operations",
                ),
                (ControlKind::TruncationEqualTtft, Length::Share(shares[i]), "truncation, equal TTFT"),
            ] {
                for (first, with) in [(0, ""), (sink, ", with sink")] {
                    let reader = Reader::Short { last: last.clone(), first };
                    rows.push(control(kind, Some(i), beside(&format!("{what}{with}")), reader));
                }
            }
            let System::KvPrediction(pair) = &judged.system else { continue };
            let nothing = System::KvPrediction(pair.clone().control(Control::Nothing));
            rows.push(control(
                ControlKind::NothingPredicted,
                Some(i),
                beside("nothing predicted"),
                Reader::System(nothing),
            ));
            let mean = System::KvPrediction(pair.clone().control(Control::Entries(Arc::new(self.mean(judged)?))));
            rows.push(control(ControlKind::MeanCache, Some(i), beside("mean cache"), Reader::System(mean)));
            rows.push(control(ControlKind::TrueCaches, Some(i), beside("true caches"), Reader::True(pair.clone())));
            if let Some(aux) = &pair.aux {
                let alone = Reader::System(System::Network(Arc::clone(aux)));
                rows.push(control(ControlKind::AuxiliaryAlone, Some(i), beside("auxiliary alone"), alone));
            }
        }
        Ok(rows)
    }

    fn base_row(&self) -> Row {
        let reader = Reader::System(System::Network(Arc::clone(&self.base)));
        Row { name: "full prefill".into(), reader, role: Role::Base }
    }

    fn system_rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.judged.iter().enumerate().map(|(i, judged)| Row {
            name: judged.name.clone(),
            reader: Reader::System(judged.system.clone()),
            role: Role::Judged(i),
        })
    }

    /// What a system predicts on average, of windows that nothing else is measured on if there are any.
    fn mean(&self, judged: &Judged) -> Result<ttft_models::kv_prediction::control::Entries> {
        let text = self.texts.first().context("a mean cache needs a text")?;
        let evaluated = || text.windows.iter().map(Vec::as_slice).take(MEAN_WINDOWS).collect();
        let windows: Vec<&[u32]> = if text.spare.is_empty() { evaluated() } else { text.spare.clone() };
        let row = Row { name: String::new(), reader: Reader::System(judged.system.clone()), role: Role::Base };
        let (mut mean, layers) = (Mean::default(), self.base.config().layers.len());
        for window in windows {
            let prompt = &window[..self.prompt.min(window.len())];
            let mut run = row.plan(&self.base, self.precision, (prompt.len(), prompt.len()), &[], (1, 0))?;
            run.record(true);
            run.first_token(self.engine, prompt)?;
            mean.add(&run.cache_dump(), layers, judged.sinks().max(1))?;
        }
        Ok(mean.entries())
    }

    /// TTFTs of the base and of each system, in turn, in nanoseconds; and the share of the prompt that the base reads in each
    /// system's time.
    ///
    /// # Errors
    /// What running them says.
    pub fn shares(&self) -> Result<(Vec<Vec<u64>>, Vec<f64>)> {
        let mut rows = vec![self.base_row()];
        rows.extend(self.system_rows());
        let systems = rows.len();
        let mut lengths: Vec<usize> = (1..LENGTHS).map(|i| (i * self.prompt).div_ceil(LENGTHS)).collect();
        lengths.dedup();
        rows.extend(lengths.iter().map(|&n| Row {
            name: String::new(),
            reader: Reader::Short { last: Length::Tokens(n), first: 0 },
            role: Role::Base,
        }));
        let mut times = self.times(&rows)?;
        let median = |times: &[u64]| {
            let seconds: Vec<f64> = times.iter().map(|t| *t as f64 * 1e-9).collect();
            ttft_reports::stats::median(&seconds).unwrap_or(f64::INFINITY)
        };
        let mut measured: Vec<(usize, f64)> =
            lengths.iter().zip(&times[systems..]).map(|(n, t)| (*n, median(t))).collect();
        measured.push((self.prompt, median(&times[0])));
        times.truncate(systems);
        let share = |times: &Vec<u64>| length_at(median(times), &measured) / self.prompt as f64;
        let shares = times[1..].iter().map(share).collect();
        Ok((times, shares))
    }

    /// TTFTs of readers on the first window's prompt, in turn: [`ROUNDS`] of each.
    ///
    /// # Errors
    /// What running them says.
    pub fn times(&self, rows: &[Row]) -> Result<Vec<Vec<u64>>> {
        let window =
            self.texts.first().and_then(|t| t.windows.first()).context("TTFT is measured on a window of text")?;
        let prompt = &window[..self.prompt];
        let truth = self.truth(rows, prompt)?;
        let plan = |row: &Row| -> Result<_> {
            let ids = row.ids(&self.base, self.precision, prompt);
            let run = row.plan(&self.base, self.precision, (prompt.len(), ids.len()), &truth, (1, 0))?;
            Ok((run, ids))
        };
        let mut runs = rows.iter().map(plan).collect::<Result<Vec<_>>>()?;
        let mut times = vec![Vec::new(); rows.len()];
        for round in 0..=ROUNDS {
            for ((run, ids), times) in runs.iter_mut().zip(&mut times) {
                let took = run.first_token(self.engine, ids)?.total;
                // The first round finds nothing in the caches.
                if round > 0 {
                    times.push((took.as_nanos() as u64).max(1));
                }
            }
        }
        Ok(times)
    }

    /// The base's own caches of a prompt, if somebody asks for them.
    fn truth(&self, rows: &[Row], prompt: &[u32]) -> Result<Vec<NamedTensor>> {
        if !rows.iter().any(|row| matches!(row.reader, Reader::True(_))) {
            return Ok(Vec::new());
        }
        let n = prompt.len();
        let mut run = self.base_row().plan(&self.base, self.precision, (n, n), &[], (1, 0))?;
        run.first_token(self.engine, prompt)?;
        Ok(run.cache_dump())
    }

    /// Bytes that the readers need at once, weights included.
    pub fn memory(&self, rows: &[Row], weights: u64) -> u64 {
        let scored = self.continuation - 1;
        let longest = self.tasks.iter().flat_map(|t| &t.items).map(|i| i.prompt.len()).max().unwrap_or(0);
        let most = self.answer.into_iter().max().unwrap_or(1);
        let of = |row: &Row, n: usize, generate: usize, scored: usize| {
            let (shapes, n) = row.shapes(&self.base, self.precision, n);
            memory_of_scoring(&shapes, &readers::spec(self.precision, n, generate), scored).allocated()
        };
        let windows: u64 = rows.iter().map(|row| of(row, self.prompt, scored + 1, scored)).fold(0, u64::saturating_add);
        let items = rows.iter().map(|row| of(row, longest.max(1), most + 1, most)).max().unwrap_or(0);
        let distributions = 8 * (self.continuation * self.base.config().vocab) as u64;
        // The base's caches once more, as they are dumped and as they are put back.
        let truth = 2 * of(&rows[0], self.prompt.max(longest), 1, 0);
        [windows, items, distributions, truth, weights].into_iter().fold(0, u64::saturating_add)
    }

    /// Operations of everything that [`Session::measure`] does; what others have done before is not done again.
    pub fn operations(&self, rows: &[Row]) -> u64 {
        let mut sum = 0u64;
        for text in &self.texts {
            for row in self.distinct(rows, self.prompt) {
                sum =
                    sum.saturating_add(self.work(row, self.prompt, self.continuation - 1) * text.windows.len() as u64);
            }
        }
        for task in &self.tasks {
            for item in &task.items {
                let n = item.prompt.len();
                for row in self.distinct(rows, n) {
                    sum = sum.saturating_add(self.work(row, n, self.most_of(task.kind, &item.answer)));
                }
            }
        }
        sum
    }

    /// Most tokens of any answer; 0 if nothing is asked.
    pub fn longest_answer(&self) -> usize {
        let items = self.tasks.iter().flat_map(|task| task.items.iter().map(|item| (task.kind, &item.answer)));
        items.map(|(kind, answer)| self.most_of(kind, answer)).max().unwrap_or(0)
    }

    /// The readers that read a prompt of `n` tokens in unlike ways.
    fn distinct<'r>(&self, rows: &'r [Row], n: usize) -> Vec<&'r Row> {
        let mut seen = Vec::new();
        let mut new = |row: &&Row| match row.short(&self.base, self.precision, n) {
            Some(short) if seen.contains(&short) => false,
            short => {
                seen.extend(short);
                true
            }
        };
        rows.iter().filter(|row| new(row)).collect()
    }

    fn work(&self, row: &Row, n: usize, later: usize) -> u64 {
        let (shapes, n) = row.shapes(&self.base, self.precision, n);
        let next = shapes.next_token(&readers::spec(self.precision, n, later + 1), n).flops.total();
        operations(&shapes, self.precision, n).saturating_add(next.saturating_mul(later as u64))
    }

    fn most_of(&self, kind: TaskKind, answer: &Answer) -> usize {
        match answer {
            Answer::Tokens(ids) => ids.len(),
            _ => self.answer[usize::from(kind == TaskKind::Code)],
        }
    }

    /// Reads everything with every reader, the base first.
    ///
    /// # Errors
    /// What running them says.
    pub fn measure(&self, rows: &[Row]) -> Result<Vec<Answered>> {
        ensure!(rows.first().is_some_and(|row| row.role == Role::Base), "the base reads first");
        let bar = progress(self.operations(rows))?;
        let mut out = vec![Answered::default(); rows.len()];
        for text in &self.texts {
            bar.set_message(text.name.clone());
            let figures = self.text(rows, text, &bar).with_context(|| text.name.clone())?;
            for (out, figures) in out.iter_mut().zip(figures) {
                out.texts.push(on_text(&text.name, &figures));
            }
        }
        for task in &self.tasks {
            bar.set_message(task.name.clone());
            let answers = self.task(rows, task, &bar).with_context(|| task.name.clone())?;
            let judged = task.kind != TaskKind::Code;
            for (out, own) in out.iter_mut().zip(&answers) {
                out.tasks.push(OnTask {
                    task: task.name.clone(),
                    exact: judged.then(|| Outcomes::of(own.iter().map(|a| a.exact))),
                    first_token: Outcomes::of(own.iter().zip(&answers[0]).map(|(a, base)| a.first == base.first)),
                });
                out.written.push(own.iter().map(|a| a.written.clone()).collect());
            }
        }
        bar.finish_and_clear();
        Ok(out)
    }

    /// The figures of each reader on each window.
    fn text(&self, rows: &[Row], text: &CutText<'_>, bar: &ProgressBar) -> Result<Vec<Vec<OfWindow>>> {
        let truth_wanted = rows.iter().any(|row| matches!(row.reader, Reader::True(_)));
        let mut kept: Vec<Option<Run>> = rows.iter().map(|_| None).collect();
        let mut out = vec![Vec::new(); rows.len()];
        for window in &text.windows {
            let (prompt, later) = window.split_at(self.prompt);
            let given = &later[..self.continuation - 1];
            let (mut base, mut truth) = (Distributions::default(), Vec::new());
            let mut known: HashMap<(usize, usize), OfWindow> = HashMap::new();
            for (i, row) in rows.iter().enumerate() {
                let short = row.short(&self.base, self.precision, prompt.len());
                if let Some(figures) = short.and_then(|short| known.get(&short)) {
                    out[i].push(*figures);
                    continue;
                }
                let ids = row.ids(&self.base, self.precision, prompt);
                // The entries of true caches are part of a run.
                let fits = |(n, _): &Run| *n == ids.len() && !matches!(row.reader, Reader::True(_));
                let mut run = match kept[i].take().filter(fits) {
                    Some((_, run)) => run,
                    None => {
                        row.plan(&self.base, self.precision, (prompt.len(), ids.len()), &truth, (1, given.len()))?
                    }
                };
                run.first_token(self.engine, &ids)?;
                let first = run.logits().row(0).to_vec();
                let scored = run.score(self.engine, given)?;
                let all = || std::iter::once(&first[..]).chain((0..scored.rows()).map(|r| scored.row(r)));
                if row.role == Role::Base {
                    base = Distributions::of(all());
                }
                let positions = all().zip(later).enumerate();
                let figures: Vec<Apart> = positions.map(|(at, (logits, next))| base.apart(at, logits, *next)).collect();
                let figures = OfWindow::of(&figures);
                known.extend(short.map(|short| (short, figures)));
                out[i].push(figures);
                if row.role == Role::Base && truth_wanted {
                    truth = run.cache_dump();
                }
                kept[i] = Some((ids.len(), run));
                bar.inc(self.work(row, prompt.len(), given.len()));
            }
        }
        Ok(out)
    }

    /// What each reader answers to each item.
    fn task(&self, rows: &[Row], task: &Asked, bar: &ProgressBar) -> Result<Vec<Vec<OfItem>>> {
        let truth_wanted = rows.iter().any(|row| matches!(row.reader, Reader::True(_)));
        let mut out = vec![Vec::new(); rows.len()];
        for item in &task.items {
            let n = item.prompt.len();
            let mut truth = Vec::new();
            let mut known: HashMap<(usize, usize), OfItem> = HashMap::new();
            for (i, row) in rows.iter().enumerate() {
                let short = row.short(&self.base, self.precision, n);
                if let Some(answer) = short.and_then(|short| known.get(&short)) {
                    out[i].push(answer.clone());
                    continue;
                }
                let wanted = row.role == Role::Base && truth_wanted;
                let answer = self.answer(row, task.kind, item, &mut truth, wanted)?;
                known.extend(short.map(|short| (short, answer.clone())));
                out[i].push(answer);
                bar.inc(self.work(row, n, self.most_of(task.kind, &item.answer)));
            }
        }
        Ok(out)
    }

    /// What a reader answers to an item, greedily. Whether it would write the tokens that are wanted is told without writing
    /// them: as long as all before are right, the next is the likeliest behind them.
    fn answer(
        &self,
        row: &Row,
        kind: TaskKind,
        item: &Item,
        truth: &mut Vec<NamedTensor>,
        truth_wanted: bool,
    ) -> Result<OfItem> {
        let ids = row.ids(&self.base, self.precision, &item.prompt);
        let most = self.most_of(kind, &item.answer);
        let sizes = match &item.answer {
            Answer::Tokens(_) => (1, most - 1),
            _ => (most, 0),
        };
        let mut run = row.plan(&self.base, self.precision, (item.prompt.len(), ids.len()), truth, sizes)?;
        run.first_token(self.engine, &ids)?;
        if truth_wanted {
            *truth = run.cache_dump();
        }
        let mut out = OfItem { first: likeliest(run.logits().row(0)), ..OfItem::default() };
        match &item.answer {
            Answer::Tokens(wanted) => {
                out.exact = out.first == wanted[0];
                if out.exact && most > 1 {
                    let scored = run.score(self.engine, &wanted[..most - 1])?;
                    out.exact = (1..most).all(|t| likeliest(scored.row(t - 1)) == wanted[t]);
                }
            }
            answer => {
                out.written = self.write(&mut *run, kind, &item.prompt, most)?;
                out.exact = matches!(answer, Answer::OneOf(answers) if is_one_of(&out.written, answers));
            }
        }
        Ok(out)
    }

    /// Writes on from the first token, until the answer ends.
    fn write(&self, run: &mut dyn Inference, kind: TaskKind, prompt: &[u32], most: usize) -> Result<String> {
        let mut decode = self.tokenizer.stream(prompt)?;
        let mut written = String::new();
        for count in 1.. {
            let id = run.token_ids()[0];
            if self.ends.contains(&id) {
                break;
            }
            written.extend(decode(id)?);
            if let Some(end) = end_of(kind, &written) {
                written.truncate(end);
                break;
            }
            if count == most {
                break;
            }
            run.next_token(self.engine)?;
        }
        Ok(written)
    }
}

fn on_text(name: &str, figures: &[OfWindow]) -> OnText {
    let distance = |of: fn(&OfWindow) -> [f64; 3]| {
        let [kl, top1, loss_gap] = [0, 1, 2].map(|i| Measure::of(figures.iter().map(|w| of(w)[i])));
        Distance { kl, top1, loss_gap }
    };
    OnText { text: name.into(), first: distance(|w| w.first), continuation: distance(|w| w.rest) }
}

fn progress(operations: u64) -> Result<ProgressBar> {
    let bar = ProgressBar::new(operations);
    let style = "{msg} [{bar:30}] {percent}% (left: {eta})";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_secs(1));
    Ok(bar)
}
