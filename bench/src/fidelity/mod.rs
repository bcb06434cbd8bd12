//! What becomes of the answer: systems and controls beside full prefill of their base, on the same windows of text and the same
//! items. `docs/fidelity.md` says what each figure and each control means.

pub mod distance;
pub mod draw;
pub mod items;
pub mod lookups;
pub mod overlap;
pub mod readers;
pub mod sharing;
pub mod systems;

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use ttft_kernels::Engine;
use ttft_models::{
    Inference, Network, Precision, System,
    cost::CostSystem,
    kv_prediction::control::{Control, Entries, Mean},
    memory_of_lending,
};
use ttft_reports::fidelity::{ControlKind, Distance, Measure, OnTask, OnText, Outcomes, TaskKind};

use self::{
    distance::{Apart, Distributions, likeliest},
    items::{Answer, Item, end_of, is_one_of},
    readers::{Length, Reader, Role, Row, length_at},
    sharing::{Course, Reads},
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

/// How long things take here, as measured on a window.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Each reader with a window of text.
    window: Vec<Duration>,
    /// Seconds of an operation of the base, while it reads.
    operation: f64,
    /// Seconds of a token that the base writes.
    token: f64,
}

impl Pace {
    /// Of tokens that are read with so many operations, and of so many that are written.
    fn item(&self, operations: u64, written: usize) -> Duration {
        Duration::from_secs_f64(operations as f64 * self.operation + written as f64 * self.token)
    }
}

/// What is ahead.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Operations; what others have done before is not done again.
    pub operations: u64,
    /// Time that they take.
    pub time: Duration,
}

/// One position after another of a window, and of the first one and the rest the means.
#[derive(Clone, Copy, Debug, Default)]
struct OfWindow {
    first: [f64; 3],
    rest: [f64; 3],
    /// Share of the base's greedy text that is written too.
    greedy: f64,
}

impl OfWindow {
    fn of(positions: &[Apart], greedy: f64) -> OfWindow {
        let figures = |a: &Apart| [a.kl, f64::from(u8::from(a.top1)), a.loss_gap];
        let mut out = OfWindow { first: figures(&positions[0]), rest: [0.0; 3], greedy };
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

/// The runs of readers, as far as they are kept.
type Runs = Vec<Option<Box<dyn Inference>>>;

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
        let mut means = self.means()?;
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
            let mean = Arc::new(std::mem::take(&mut means[i]));
            let mean = System::KvPrediction(pair.clone().control(Control::Entries(mean)));
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

    /// What each system predicts on average, of windows that nothing else is measured on if there are any; nothing of systems that
    /// predict nothing.
    fn means(&self) -> Result<Vec<Entries>> {
        let text = self.texts.first().context("a mean cache needs a text")?;
        let evaluated = || text.windows.iter().map(Vec::as_slice).take(MEAN_WINDOWS).collect();
        let windows: Vec<&[u32]> = if text.spare.is_empty() { evaluated() } else { text.spare.clone() };
        let n = self.prompt.min(windows.first().map_or(0, |window| window.len()));
        let rows: Vec<Row> = self.system_rows().collect();
        let reads = self.reads(&rows, n, 0)?;
        let (mut runs, layers): (Runs, usize) = (rows.iter().map(|_| None).collect(), self.base.config().layers.len());
        let mut means = vec![Mean::default(); rows.len()];
        for window in windows {
            for (i, row) in rows.iter().enumerate() {
                if !matches!(self.judged[i].system, System::KvPrediction(_)) {
                    continue;
                }
                let mut run = match runs[i].take() {
                    Some(run) => run,
                    None => row.plan(&self.base, self.precision, (n, n), &[], (1, 0), &reads.borrowers(i))?,
                };
                run.record(true);
                self.first(&mut *run, &window[..n], reads.lender(i, &runs))?;
                means[i].add(&run.cache_dump(), layers, self.judged[i].sinks().max(1))?;
                runs[i] = Some(run);
            }
        }
        Ok(means.iter().map(Mean::entries).collect())
    }

    /// Runs a prompt, from where another run is if there is one.
    fn first(&self, run: &mut dyn Inference, ids: &[u32], lender: Option<&dyn Inference>) -> Result<()> {
        match lender {
            Some(lender) => run.first_token_after(self.engine, ids, lender)?,
            None => run.first_token(self.engine, ids)?,
        };
        Ok(())
    }

    fn reads(&self, rows: &[Row], n: usize, later: usize) -> Result<Reads> {
        Reads::new(rows, &self.base, self.precision, n, later)
    }

    /// The share of the prompt that the base reads in the time of each system, all of which are timed in turn.
    ///
    /// # Errors
    /// What running them says.
    pub fn shares(&self) -> Result<Vec<f64>> {
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
        let times = self.times(&rows)?;
        let median = |times: &[u64]| {
            let seconds: Vec<f64> = times.iter().map(|t| *t as f64 * 1e-9).collect();
            ttft_reports::stats::median(&seconds).unwrap_or(f64::INFINITY)
        };
        let mut measured: Vec<(usize, f64)> =
            lengths.iter().zip(&times[systems..]).map(|(n, t)| (*n, median(t))).collect();
        measured.push((self.prompt, median(&times[0])));
        let share = |times: &Vec<u64>| length_at(median(times), &measured) / self.prompt as f64;
        Ok(times[1..systems].iter().map(share).collect())
    }

    /// TTFTs of readers on the first window's prompt, in turn: `ROUNDS` of each, those that do the same once for all of them, and
    /// none of true caches, which come from nowhere.
    ///
    /// # Errors
    /// What running them says.
    pub fn times(&self, rows: &[Row]) -> Result<Vec<Vec<u64>>> {
        let window =
            self.texts.first().and_then(|t| t.windows.first()).context("TTFT is measured on a window of text")?;
        let prompt = &window[..self.prompt];
        let reads = self.reads(rows, prompt.len(), 0)?;
        let mut runs = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            if matches!(reads.courses[i], Course::As(_)) || matches!(row.reader, Reader::True(_)) {
                continue;
            }
            let ids = row.ids(&self.base, self.precision, prompt);
            let run = row.plan(&self.base, self.precision, (prompt.len(), ids.len()), &[], (1, 0), &[])?;
            runs.push((i, run, ids));
        }
        let mut times = vec![Vec::new(); rows.len()];
        for round in 0..=ROUNDS {
            for (i, run, ids) in &mut runs {
                let took = run.first_token(self.engine, ids)?.total;
                // The first round finds nothing in the caches.
                if round > 0 {
                    times[*i].push((took.as_nanos() as u64).max(1));
                }
            }
        }
        for (i, course) in reads.courses.iter().enumerate() {
            if let Course::As(earlier) = *course {
                times[i] = times[earlier].clone();
            }
        }
        Ok(times)
    }

    /// How long things take, from one window that all read.
    ///
    /// # Errors
    /// What running them says.
    pub fn pace(&self, rows: &[Row]) -> Result<Pace> {
        let first = self.texts.first().context("there is no text")?;
        let windows = first.windows.iter().take(1).cloned().collect();
        let window = CutText { name: first.name.clone(), windows, spare: Vec::new() };
        let mut pace = Pace { window: vec![Duration::ZERO; rows.len()], operation: 0.0, token: 0.0 };
        let base = self.reads(&rows[..1], self.prompt, self.continuation - 1)?.work[0];
        self.text(rows, &window, |i, took, writing| {
            pace.window[i] = took;
            if i == 0 {
                pace.operation = took.saturating_sub(writing).as_secs_f64() / base as f64;
                pace.token = writing.as_secs_f64() / (self.continuation - 1) as f64;
            }
        })?;
        Ok(pace)
    }

    /// Bytes that the readers need at once, weights included.
    ///
    /// # Errors
    /// What making a system says.
    pub fn memory(&self, rows: &[Row], weights: u64) -> Result<u64> {
        let scored = self.continuation - 1;
        let longest = self.tasks.iter().flat_map(|t| &t.items).map(|i| i.prompt.len()).max().unwrap_or(0);
        let most = self.answer.into_iter().max().unwrap_or(1);
        // Of each reader that runs, and whether others begin where it is.
        let of = |n: usize, generate: usize, scored: usize| -> Result<Vec<(u64, bool)>> {
            let reads = self.reads(rows, n, 0)?;
            let runs = rows.iter().enumerate().filter(|(i, _)| !matches!(reads.courses[*i], Course::As(_)));
            let bytes = runs.map(|(i, row)| {
                let (shapes, given) = row.shapes(&self.base, self.precision, n);
                let (spec, to) = (readers::spec(self.precision, given, generate), reads.borrowers(i));
                (memory_of_lending(&shapes, &spec, scored, &to).allocated(), !to.is_empty())
            });
            Ok(bytes.collect())
        };
        let sum = |all: &mut dyn Iterator<Item = u64>| all.fold(0, u64::saturating_add);
        let windows = sum(&mut of(self.prompt, scored + 1, scored)?.into_iter().map(|(bytes, _)| bytes));
        // One after another, but for those that lend.
        let items = of(longest.max(1), most + 1, most)?;
        let lenders = sum(&mut items.iter().filter(|(_, lends)| *lends).map(|(bytes, _)| *bytes));
        let others = items.iter().filter(|(_, lends)| !lends).map(|(bytes, _)| *bytes).max().unwrap_or(0);
        let distributions = 8 * (self.continuation * self.base.config().vocab) as u64;
        // The base's caches once more, as they are dumped and as they are put back.
        let whole = CostSystem::of(&System::Network(Arc::clone(&self.base)));
        let spec = readers::spec(self.precision, self.prompt.max(longest), 1);
        let truth = 2 * memory_of_lending(&whole, &spec, 0, &[]).allocated();
        Ok(sum(&mut [windows, lenders, others, distributions, truth, weights].into_iter()))
    }

    /// Everything that [`Session::measure`] does.
    ///
    /// # Errors
    /// What making a system says.
    pub fn work(&self, rows: &[Row], pace: &Pace) -> Result<Work> {
        let windows = self.texts.iter().map(|text| text.windows.len()).sum::<usize>();
        // What follows is scored, and what the base has written.
        let text: u64 = self.reads(rows, self.prompt, 2 * (self.continuation - 1))?.work.iter().sum();
        let mut work = Work {
            operations: text.saturating_mul(windows as u64),
            time: pace.window.iter().sum::<Duration>() * u32::try_from(windows).unwrap_or(u32::MAX),
        };
        let mut counts: HashMap<_, u32> = HashMap::new();
        for task in &self.tasks {
            for item in &task.items {
                let sizes = (item.prompt.len(), self.most_of(task.kind, &item.answer), self.written(task.kind, item));
                *counts.entry(sizes).or_default() += 1;
            }
        }
        for ((n, later, written), count) in counts {
            for operations in self.reads(rows, n, later)?.work {
                work.operations = work.operations.saturating_add(operations.saturating_mul(u64::from(count)));
                work.time += pace.item(operations, if operations > 0 { written } else { 0 }) * count;
            }
        }
        Ok(work)
    }

    /// Most tokens of any answer; 0 if nothing is asked.
    pub fn longest_answer(&self) -> usize {
        let items = self.tasks.iter().flat_map(|task| task.items.iter().map(|item| (task.kind, &item.answer)));
        items.map(|(kind, answer)| self.most_of(kind, answer)).max().unwrap_or(0)
    }

    /// Most tokens that a reader writes in answer to an item, one after another.
    fn written(&self, kind: TaskKind, item: &Item) -> usize {
        match item.answer {
            Answer::Tokens(_) => 0,
            _ => self.most_of(kind, &item.answer),
        }
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
    pub fn measure(&self, rows: &[Row], pace: &Pace) -> Result<Vec<Answered>> {
        ensure!(rows.first().is_some_and(|row| row.role == Role::Base), "the base reads first");
        let bar = progress(self.work(rows, pace)?.time)?;
        let mut out = vec![Answered::default(); rows.len()];
        for text in &self.texts {
            bar.set_message(text.name.clone());
            let figures = self
                .text(rows, text, |i, _, _| bar.inc(pace.window[i].as_micros() as u64))
                .with_context(|| text.name.clone())?;
            for (out, figures) in out.iter_mut().zip(figures) {
                out.texts.push(on_text(&text.name, &figures));
            }
        }
        for task in &self.tasks {
            bar.set_message(task.name.clone());
            let tick = |took: Duration| bar.inc(took.as_micros() as u64);
            let answers = self.task(rows, task, pace, tick).with_context(|| task.name.clone())?;
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

    /// Whether a reader needs the base's own caches of each prompt.
    fn wants_truth(rows: &[Row]) -> bool {
        rows.iter().any(|row| matches!(row.reader, Reader::True(_)))
    }

    /// The figures of each reader on each window. `tick` hears which has read one, how long that took, and how much of it went into
    /// writing.
    fn text(
        &self,
        rows: &[Row],
        text: &CutText<'_>,
        mut tick: impl FnMut(usize, Duration, Duration),
    ) -> Result<Vec<Vec<OfWindow>>> {
        let reads = self.reads(rows, self.prompt, self.continuation - 1)?;
        let mut runs: Runs = rows.iter().map(|_| None).collect();
        let mut out: Vec<Vec<OfWindow>> = vec![Vec::new(); rows.len()];
        for window in &text.windows {
            let (prompt, later) = window.split_at(self.prompt);
            let given = &later[..self.continuation - 1];
            let (mut base, mut truth, mut greedy) = (Distributions::default(), Vec::new(), Vec::new());
            for (i, row) in rows.iter().enumerate() {
                if let Course::As(earlier) = reads.courses[i] {
                    let figures = *out[earlier].last().expect("an earlier reader has read the window");
                    out[i].push(figures);
                    continue;
                }
                let began = Instant::now();
                let ids = row.ids(&self.base, self.precision, prompt);
                // The entries of true caches are part of a run.
                let mut run = match runs[i].take().filter(|_| !matches!(row.reader, Reader::True(_))) {
                    Some(run) => run,
                    None => {
                        let (lengths, sizes) = ((prompt.len(), ids.len()), (1, given.len()));
                        row.plan(&self.base, self.precision, lengths, &truth, sizes, &reads.borrowers(i))?
                    }
                };
                self.first(&mut *run, &ids, reads.lender(i, &runs))?;
                let first = run.logits().row(0).to_vec();
                let scored = run.score(self.engine, given)?;
                let all = || std::iter::once(&first[..]).chain((0..scored.rows()).map(|r| scored.row(r)));
                if row.role == Role::Base {
                    base = Distributions::of(all());
                }
                let positions: Vec<(&[f32], u32)> = all().zip(later.iter().copied()).collect();
                let apart = self.apart(&base, &positions);
                ensure!(
                    apart.iter().all(|a| a.kl.is_finite() && a.loss_gap.is_finite()),
                    "{}: what it gives behind window {} is no numbers: the weights or the predictor that it runs hold NaN or \
                     infinities",
                    row.name,
                    out[i].len() + 1
                );
                let mut writing = Duration::ZERO;
                let agrees = if row.role == Role::Base {
                    if Self::wants_truth(rows) {
                        truth = run.cache_dump();
                    }
                    let began = Instant::now();
                    greedy = self.greedy(&mut *run)?;
                    writing = began.elapsed();
                    greedy.len()
                } else {
                    self.agrees(&mut *run, &greedy)?
                };
                out[i].push(OfWindow::of(&apart, agrees as f64 / greedy.len() as f64));
                runs[i] = Some(run);
                tick(i, began.elapsed(), writing);
            }
        }
        Ok(out)
    }

    /// How far logits at some positions are from the base's, each with the token that follows.
    fn apart(&self, base: &Distributions, positions: &[(&[f32], u32)]) -> Vec<Apart> {
        let found: Vec<OnceLock<Apart>> = positions.iter().map(|_| OnceLock::new()).collect();
        self.engine.pool().for_each(positions.len(), |at, _| {
            let (logits, next) = positions[at];
            found[at].get_or_init(|| base.apart(at, logits, next));
        });
        found.into_iter().map(|apart| apart.into_inner().expect("each position is visited")).collect()
    }

    /// What a run writes greedily: as many tokens as are compared, or up to one that ends an answer.
    fn greedy(&self, run: &mut dyn Inference) -> Result<Vec<u32>> {
        let mut ids = vec![run.token_ids()[0]];
        while ids.len() < self.continuation && !self.ends.contains(&ids[ids.len() - 1]) {
            run.next_token(self.engine)?;
            ids.push(run.token_ids()[0]);
        }
        Ok(ids)
    }

    /// How many of these tokens a run that has chosen its first would write, up to the first that differs. That is told without
    /// writing: as long as all before are the same, the next is the likeliest behind them.
    fn agrees(&self, run: &mut dyn Inference, ids: &[u32]) -> Result<usize> {
        let first = run.logits().row(0);
        // Another network may not have all tokens of the base.
        let known = ids.iter().take_while(|id| (**id as usize) < first.len()).count();
        if known == 0 || likeliest(first) != ids[0] {
            return Ok(0);
        }
        if known == 1 {
            return Ok(1);
        }
        let scored = run.score(self.engine, &ids[..known - 1])?;
        Ok(1 + (1..known).take_while(|t| likeliest(scored.row(t - 1)) == ids[*t]).count())
    }

    /// What each reader answers to each item; `tick` hears how long each was expected to take.
    fn task(&self, rows: &[Row], task: &Asked, pace: &Pace, tick: impl Fn(Duration)) -> Result<Vec<Vec<OfItem>>> {
        let mut out: Vec<Vec<OfItem>> = vec![Vec::new(); rows.len()];
        let mut known: HashMap<(usize, usize), Rc<Reads>> = HashMap::new();
        for item in &task.items {
            let sizes = (item.prompt.len(), self.most_of(task.kind, &item.answer));
            let reads = match known.get(&sizes) {
                Some(reads) => Rc::clone(reads),
                None => {
                    let reads = Rc::new(self.reads(rows, sizes.0, sizes.1)?);
                    known.insert(sizes, Rc::clone(&reads));
                    reads
                }
            };
            let (mut truth, mut lenders): (_, Runs) = (Vec::new(), rows.iter().map(|_| None).collect());
            for (i, row) in rows.iter().enumerate() {
                if let Course::As(earlier) = reads.courses[i] {
                    let answer = out[earlier].last().expect("an earlier reader has answered").clone();
                    out[i].push(answer);
                    continue;
                }
                let to = reads.borrowers(i);
                let ids = row.ids(&self.base, self.precision, &item.prompt);
                let plan = match &item.answer {
                    Answer::Tokens(_) => (1, sizes.1 - 1),
                    _ => (sizes.1, 0),
                };
                let mut run = row.plan(&self.base, self.precision, (sizes.0, ids.len()), &truth, plan, &to)?;
                self.first(&mut *run, &ids, reads.lender(i, &lenders))?;
                if row.role == Role::Base && Self::wants_truth(rows) {
                    truth = run.cache_dump();
                }
                out[i].push(self.answer(&mut *run, task.kind, item)?);
                if !to.is_empty() {
                    lenders[i] = Some(run);
                }
                tick(pace.item(reads.work[i], self.written(task.kind, item)));
            }
        }
        Ok(out)
    }

    /// What a reader that has chosen its first token answers to an item, greedily.
    fn answer(&self, run: &mut dyn Inference, kind: TaskKind, item: &Item) -> Result<OfItem> {
        let mut out = OfItem { first: likeliest(run.logits().row(0)), ..OfItem::default() };
        match &item.answer {
            Answer::Tokens(wanted) => out.exact = self.agrees(run, wanted)? == wanted.len(),
            answer => {
                out.written = self.write(run, kind, &item.prompt, self.most_of(kind, answer))?;
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
    let greedy = Some(Measure::of(figures.iter().map(|w| w.greedy)));
    OnText { text: name.into(), first: distance(|w| w.first), continuation: distance(|w| w.rest), greedy }
}

fn progress(time: Duration) -> Result<ProgressBar> {
    let bar = ProgressBar::new(time.as_micros() as u64);
    let style = "{msg} [{bar:30}] {percent}% (left: {eta})";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_secs(1));
    Ok(bar)
}
