//! What a fidelity file allows to say of a system: one word, with the task that it rests on.
//!
//! **The scale.** On a task, a system's exact matches are placed between a *floor* and full prefill of the base:
//! r = (system - floor) / (base - floor). The floor is the mean cache (the maps' biases alone), or the level of chance where
//! that is higher: picking one of the words in the prompt is no memory of it. r is 1 if nothing was lost, and 0 if the
//! predictor might as well predict the same for every prompt. Items are shared by all three, so with u = system - floor and
//! v = base - floor for every item, r is a ratio of two paired means.
//!
//! **Its interval** is Fieller's: r lies in it if the mean of u - r v, whose standard error follows from the variances and the
//! covariance of u and v, is within Student's t of 0. Multiplied out, that is a quadratic inequality in r. If v itself is not
//! beyond chance above 0, no r can be excluded on one side and there is no interval: the base is no better than the
//! floor. At r = 0 the condition reads |mean u| <= t se(u): the interval includes 0 exactly if system and floor cannot be
//! told apart, whatever the base does. The delta method, which is symmetric about r, has neither property.
//!
//! **Few outcomes.** Of 100 items that all end alike, the spread is 0, but the next could end otherwise. So two imagined
//! items are added to the squares of u and two to those of v, one of +1 and one of -1 each, as Bonett and Price do for paired
//! shares ("Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", 2012): they
//! leave the means as they are, and the interval of 0 of 100 becomes 0 ± 0.027.
//!
//! **The word** is that of the worst task, which is the one of least r, never that of an average. Text alone gives no word:
//! divergence on text flatters whatever keeps the last tokens.

use super::types::*;
use crate::stats::{Estimate, Interval, LEVEL, student, student::Mean};

/// A task that the base solves in less than this share gives no verdict: what the base cannot do, no system can lose.
pub const SOLVES: f64 = 0.5;
/// Fewer items or windows give no verdict.
pub const MIN_ITEMS: usize = 20;
/// Divergences up to this, in nats, are those of true caches in any case: they are less than F32 rounds in a sum of logits.
pub const LEAST_KL: f64 = 1e-6;

/// The word for a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Within the noise floor of true caches, on every text and task.
    Identical,
    /// On the worst task, no loss was found: the interval of r reaches 1.
    Keeps,
    /// On the worst task, something is kept and something is lost: 0 < r < 1, both beyond chance.
    Loses,
    /// On the worst task, one of the controls of its own cost is better.
    Worse,
    /// On the worst task, it is no better than its floor beyond chance: the interval of r includes 0, or lies below.
    Useless,
    /// Nothing can be said.
    None,
}

impl Verdict {
    /// The name in answers for programs.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Identical => "identical",
            Verdict::Keeps => "keeps",
            Verdict::Loses => "loses",
            Verdict::Worse => "worse",
            Verdict::Useless => "useless",
            Verdict::None => "no_verdict",
        }
    }

    /// The word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Identical => "identical",
            Verdict::Keeps => "no loss found",
            Verdict::Loses => "loses",
            Verdict::Worse => "worse than a control",
            Verdict::Useless => "useless",
            Verdict::None => "no verdict",
        }
    }
}

/// One system judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The system's name.
    pub system: String,
    /// The word.
    pub verdict: Verdict,
    /// The task that the word rests on; none if no task gives a verdict.
    pub worst: Option<Placed>,
    /// All tasks that give a verdict, in the file's order.
    pub tasks: Vec<Placed>,
    /// Controls of its own cost that are better somewhere, beyond chance.
    pub rivals: Vec<Rival>,
    /// The verdict as sentences: the word, the task and the figures behind it, and where a control is better.
    pub words: String,
}

/// A task as it enters a verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The task's name.
    pub task: String,
    /// Exact matches of the system.
    pub system: f64,
    /// Exact matches of the base.
    pub base: f64,
    /// What r is measured from.
    pub floor: f64,
    /// What that is, in words.
    pub floor_is: &'static str,
    /// r with its interval.
    pub ratio: Estimate,
}

/// A control that is better than the system.
#[derive(Clone, Debug, PartialEq)]
pub struct Rival {
    /// The control, in words.
    pub control: String,
    /// The task or text on which it is better.
    pub place: String,
    /// Whether that is a task (exact matches) or a text (divergence of the continuation, in nats).
    pub on_task: bool,
    /// The system's figure.
    pub system: f64,
    /// The control's figure.
    pub of_control: f64,
    /// By how much the control is better.
    pub better_by: Estimate,
}

/// The mean of u over the mean of v from pairs, with Fieller's interval at [`LEVEL`], smoothed by two imagined items of
/// +1 and -1 each for u and for v. `None` below 2 pairs, or if v is not above 0 beyond chance.
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    if pairs.len() < 2 {
        return None;
    }
    let n = pairs.len() as f64;
    let (u, v) = (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
    let products = |f: fn(f64, f64) -> f64| pairs.iter().map(|p| f(p.0 - u, p.1 - v)).sum::<f64>();
    let t2 = student::t_quantile(0.5 + LEVEL / 2.0, n - 1.0).powi(2);
    // t squared times the variances and covariance of the two means, of n + 4 items.
    let scale = t2 / ((n + 4.0) * (n + 3.0));
    let (uu, vv) = (scale * (products(|a, _| a * a) + 2.0), scale * (products(|_, b| b * b) + 2.0));
    let uv = scale * products(|a, b| a * b);
    // (u - r v)^2 <= uu - 2 r uv + r^2 vv
    let (a, b, c) = (v * v - vv, u * v - uv, u * u - uu);
    if a <= 0.0 || v <= 0.0 {
        return None;
    }
    // r = u / v solves it, so there are roots; rounding may say otherwise.
    let root = (b * b - a * c).max(0.0).sqrt();
    let interval = Interval { low: (b - root) / a, high: (b + root) / a, level: LEVEL };
    Some(Estimate { value: u / v, interval: Some(interval), samples: pairs.len() })
}

/// The mean of paired differences with Student's interval; of outcomes, smoothed as [`ratio`] is.
fn difference(values: &[f64], outcomes: bool) -> Option<Estimate> {
    let mut mean = student::mean(values)?;
    let n = values.len() as f64;
    if outcomes {
        let squares = mean.error.powi(2) * n * (n - 1.0);
        mean = Mean { error: ((squares + 2.0) / ((n + 2.0) * (n + 1.0))).sqrt(), ..mean };
    }
    let half = mean.half_width(LEVEL);
    let interval = Interval { low: mean.value - half, high: mean.value + half, level: LEVEL };
    Some(Estimate { value: mean.value, interval: Some(interval), samples: values.len() })
}

/// Judges every system of the file, in its order.
pub fn judge(file: &Fidelity) -> Vec<Judgement> {
    file.systems.iter().map(|system| judged(file, system)).collect()
}

fn judged(file: &Fidelity, system: &System) -> Judgement {
    let rivals = rivals(file, system);
    let done = |verdict, worst: Option<Placed>, tasks, words: String| {
        let said = worst.as_ref().filter(|_| verdict == Verdict::Worse).map(|w| w.task.as_str());
        let words = format!("{words}{}", beaten(&rivals, said));
        Judgement { system: system.name.clone(), verdict, worst, tasks, rivals: rivals.clone(), words }
    };
    let nothing = |reason: String| done(Verdict::None, None, Vec::new(), format!("No verdict: {reason}."));
    let control = |kind| file.controls.iter().find(|c| c.kind == kind && c.is_of(&system.name));
    let Some(mean) = control(ControlKind::MeanCache) else {
        return nothing("the mean cache was not measured beside it".into());
    };
    let Some(truth) = control(ControlKind::TrueCaches) else {
        return nothing("true caches were not measured beside it, so the noise floor is unknown".into());
    };
    let (mut tasks, mut reasons) = (Vec::new(), Vec::new());
    for (i, task) in file.tasks.iter().enumerate() {
        match on_task(task, &system.results.tasks[i], &mean.results.tasks[i]) {
            Ok(on) => tasks.push(on),
            Err(reason) => reasons.push(format!("{} ({reason})", task.name)),
        }
    }
    let Some(worst) = tasks.iter().min_by(|a, b| a.ratio.value.total_cmp(&b.ratio.value)).cloned() else {
        return nothing(match reasons.is_empty() {
            true => "no task was measured, and text alone says nothing of what can be looked up".into(),
            false => format!("no task gives one: {}", reasons.join(", ")),
        });
    };
    let share = |v: f64| format!("{v:.2}");
    let Placed { task, system: own, base, floor, floor_is, .. } = &worst;
    let (low, high) = worst.ratio.interval.map_or((f64::NAN, f64::NAN), |i| (i.low, i.high));
    let figures = format!("exact matches {} of the base's {}, {floor_is} {}", share(*own), share(*base), share(*floor));
    let ratio = format!("{} [{}, {}]", share(worst.ratio.value), share(low), share(high));
    let kept = format!("{ratio} of what lies between {floor_is} and the base");
    if within_noise(file, system, truth) {
        let words = format!(
            "Identical: on every text and task it is within what rounding does to the base's own caches. Its worst task is \
             {task}: {figures}."
        );
        return done(Verdict::Identical, Some(worst.clone()), tasks.clone(), words);
    }
    if low <= 0.0 && high >= 1.0 {
        let items = worst.ratio.samples;
        let words = format!(
            "No verdict: on {task}, its worst task, {items} items can exclude neither that everything is lost nor that nothing \
             is ({figures})."
        );
        return done(Verdict::None, Some(worst.clone()), tasks.clone(), words);
    }
    if low <= 0.0 {
        let words = format!("Useless: on {task}, its worst task, it is no better than {floor_is} ({figures}).");
        return done(Verdict::Useless, Some(worst.clone()), tasks.clone(), words);
    }
    let there = rivals.iter().filter(|r| r.on_task && r.place == *task);
    if let Some(rival) = there.max_by(|a, b| a.better_by.value.total_cmp(&b.better_by.value)) {
        let words = format!(
            "Worse: on {task}, its worst task, {} is better, {} against {} ({figures}).",
            rival.control,
            share(rival.of_control),
            share(rival.system)
        );
        return done(Verdict::Worse, Some(worst.clone()), tasks.clone(), words);
    }
    if high >= 1.0 {
        let words = format!("No loss found: on {task}, its worst task, it keeps {kept} ({figures}).");
        return done(Verdict::Keeps, Some(worst.clone()), tasks.clone(), words);
    }
    let words = format!("It loses: on {task}, its worst task, it keeps {kept} ({figures}).");
    done(Verdict::Loses, Some(worst.clone()), tasks.clone(), words)
}

/// A task on its scale, or why it gives no verdict.
fn on_task(task: &Task, own: &OnTask, mean: &OnTask) -> Result<Placed, String> {
    let (Some(base), Some(own), Some(mean)) = (&task.base, &own.exact, &mean.exact) else {
        return Err("scored elsewhere".into());
    };
    if base.each.len() < MIN_ITEMS {
        return Err(format!("{} items, a verdict takes {MIN_ITEMS}", base.each.len()));
    }
    if base.share < SOLVES {
        return Err(format!("the base itself solves {:.2} of it, a verdict takes {SOLVES}", base.share));
    }
    let by_chance = task.chance > mean.share;
    let (floor, floor_is) = if by_chance { (task.chance, "chance") } else { (mean.share, "the mean cache") };
    let floors = mean.values().into_iter().map(|m| if by_chance { task.chance } else { m });
    let pairs: Vec<_> =
        own.values().into_iter().zip(base.values()).zip(floors).map(|((s, b), f)| (s - f, b - f)).collect();
    match ratio(&pairs) {
        Some(ratio) => {
            Ok(Placed { task: task.name.clone(), system: own.share, base: base.share, floor, floor_is, ratio })
        }
        None => Err(format!("the base's {:.2} cannot be told from {floor_is}, {floor:.2}", base.share)),
    }
}

/// Whether nothing that was measured is further from the base than its true caches are, beyond chance.
fn within_noise(file: &Fidelity, system: &System, truth: &Control) -> bool {
    let near = |own: &Measure, truth: &Measure| {
        let reach = truth
            .standard_error
            .zip(Some(truth.values.len()))
            .map_or(0.0, |(error, n)| student::t_quantile(0.5 + LEVEL / 2.0, n as f64 - 1.0) * error);
        own.values.len() >= MIN_ITEMS && own.mean <= (truth.mean + reach).max(LEAST_KL)
    };
    let texts = system.results.texts.iter().zip(&truth.results.texts);
    let mut texts = texts
        .map(|(own, truth)| near(&own.first.kl, &truth.first.kl) && near(&own.continuation.kl, &truth.continuation.kl));
    // Outcomes that are not the base's: of 0 of 100, the interval ends at 0.037.
    let changed =
        |own: &Outcomes, base: &Outcomes| Outcomes::of(own.each.iter().zip(&base.each).map(|(a, b)| a != b)).estimate();
    let results = system.results.tasks.iter().zip(&truth.results.tasks).zip(&file.tasks);
    let mut tasks = results.filter_map(|((own, truth), task)| {
        let (base, own, truth) = (task.base.as_ref()?, own.exact.as_ref()?, truth.exact.as_ref()?);
        let most = changed(truth, base).interval?.high;
        Some(changed(own, base).value <= most)
    });
    texts.all(|near| near) && tasks.all(|near| near)
}

/// Where controls of the system's own cost are better than it, beyond chance.
fn rivals(file: &Fidelity, system: &System) -> Vec<Rival> {
    let mut found = Vec::new();
    for control in file.controls.iter().filter(|c| c.kind.is_rival() && c.is_of(&system.name)) {
        let mut add = |place: &str, on_task, own: f64, of_control: f64, better_by: Option<Estimate>| {
            if let Some(better_by) = better_by.filter(|b| b.interval.is_some_and(|i| i.low > 0.0)) {
                let (control, place) = (control.words(), place.to_owned());
                found.push(Rival { control, place, on_task, system: own, of_control, better_by });
            }
        };
        let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
        for (own, other) in system.results.tasks.iter().zip(&control.results.tasks) {
            if let (Some(a), Some(b)) = (&own.exact, &other.exact) {
                add(&own.task, true, a.share, b.share, difference(&apart(&b.values(), &a.values()), true));
            }
        }
        for (own, other) in system.results.texts.iter().zip(&control.results.texts) {
            let (a, b) = (&own.continuation.kl, &other.continuation.kl);
            add(&own.text, false, a.mean, b.mean, difference(&apart(&a.values, &b.values), false));
        }
    }
    found
}

/// Where controls are better, and the best of them there, but on the task that the verdict has said it of.
fn beaten(rivals: &[Rival], said: Option<&str>) -> String {
    let mut best: Vec<&Rival> = Vec::new();
    for rival in rivals.iter().filter(|r| !(r.on_task && said == Some(&r.place))) {
        match best.iter_mut().find(|b| b.on_task == rival.on_task && b.place == rival.place) {
            Some(other) if rival.better_by.value > other.better_by.value => *other = rival,
            Some(_) => {}
            None => best.push(rival),
        }
    }
    if best.is_empty() {
        return String::new();
    }
    let places = best.iter().map(|Rival { place, control, of_control, system, on_task, .. }| match on_task {
        true => format!("on {place}, {control}: {of_control:.2} against {system:.2} exact"),
        false => format!("on {place}, {control}: KL {of_control:.3} against {system:.3}"),
    });
    format!(" Controls of its cost are better: {}.", places.collect::<Vec<_>>().join("; "))
}
