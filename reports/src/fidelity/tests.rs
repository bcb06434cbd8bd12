use std::{path::Path, sync::LazyLock};

use proptest::prelude::*;

use super::{samples::*, *};
use crate::{
    schema::Kind,
    stats::{Interval, simulate::Normal, student},
};

fn name() -> &'static Path {
    Path::new("f.json")
}

fn refusal(change: impl FnOnce(&mut Fidelity)) -> String {
    let mut file = file();
    change(&mut file);
    file.to_text(name()).unwrap_err().to_string()
}

#[test]
fn what_is_written_reads_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.json");
    let text = file().to_text(&path).unwrap();
    std::fs::write(&path, &text).unwrap();
    assert_eq!(Fidelity::read(&path).unwrap(), file());
    // A line for each text, task, system and control, so that a changed system is a changed line.
    assert_eq!(text.lines().filter(|l| l.starts_with('{')).count(), 1 + 2 + 2 + 2 + 8);
}

#[test]
fn text_from_elsewhere_is_the_same_file_or_says_what_it_is() {
    let text = file().to_text(name()).unwrap();
    let parse = |bytes: &[u8]| Fidelity::parse(bytes, name());
    assert_eq!(parse(format!("\u{feff}{text}").as_bytes()).unwrap(), file());
    assert_eq!(parse(text.replace('\n', "\r\n").as_bytes()).unwrap(), file());
    for (bytes, words) in [
        (&b"\xff\xfe{\0"[..], "UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"{\"schema\": \"ttft-fidelity/1\", \"notes\": [\"\xe4\"]}", "not UTF-8"),
        (b" \n", "empty file"),
        (b"{\"schema\": \"ttft-fidelity/2\"}", "`ttft-fidelity/2`, this program reads `ttft-fidelity/1`"),
        (b"{\"run\":{\"schema\":\"ttft-record/3\"}}\n{\"cell\":{}}\n", "`ttft-record/3`"),
        (b"{\"schema\": \"ttft-fidelity/1\"}", "missing field"),
        (b"[]", "f.json, field `.`"),
    ] {
        let error = parse(bytes).unwrap_err().to_string();
        assert!(error.starts_with("f.json") && error.contains(words), "{error}");
    }
    let error = Fidelity::read(Path::new("no/such.json")).unwrap_err().to_string();
    assert!(error.contains("such.json"), "{error}");
}

#[test]
fn a_fault_is_named_by_its_field() {
    let text = file().to_text(name()).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Fidelity::parse(text.replacen(from, to, 1).as_bytes(), name()).unwrap_err().to_string()
    };
    for (error, words) in [
        (changed("\"seed\":1", "\"seed\":1,\"sead\":2"), "`settings.sead`: unknown field `sead`"),
        (changed("\"operations_share\":0.42", "\"operations_share\":NaN"), "systems[0].operations_share`"),
        (changed("\"operations_share\":0.42", "\"operations_share\":NaN"), "NaN and Infinity are no JSON"),
        (changed("\"operations_share\":0.42", "\"operations_share\":1e999"), "out of range"),
        (changed("\"operations_share\":0.42", "\"operations_share\":0"), "expected more than 0, found 0"),
        (changed("\"domain\":\"prose\"", "\"domain\":\"\\u001b[31m\""), "texts[1].domain`: control character"),
        (changed("\"kind\":\"needle\"", "\"kind\":\"nedle\""), "tasks[1].kind`: unknown variant `nedle`"),
        (
            refusal(|f| f.systems[1].results.texts[0].first.kl = Measure::of([0.1])),
            "expected 40 entries, one for each window",
        ),
        (
            refusal(|f| f.systems[1].results.texts[0].first.kl.mean += 1e-6),
            "field `systems[1].results.texts[0].first.kl.mean`: expected that of the values",
        ),
        (
            refusal(|f| f.systems[0].results.texts[1].continuation.kl.values[3] = -0.1),
            "values[3]`: expected 0 or more, found -0.1",
        ),
        (refusal(|f| f.systems[0].results.texts[1].first.top1.values[0] = 1.5), "expected 0 to 1, found 1.5"),
        (
            refusal(|f| f.systems[0].results.texts[1].first.loss_gap.values[0] = f64::NAN),
            "loss_gap.values[0]`: invalid type: null",
        ),
        (
            refusal(|f| f.systems[0].results.texts[0].greedy = Some(Measure::of([0.5]))),
            "texts[0].greedy.values`: expected 40 entries, one for each window",
        ),
        (
            refusal(|f| f.controls[0].results.texts[1].greedy.as_mut().unwrap().values[0] = 1.2),
            "texts[1].greedy.values[0]`: expected 0 to 1, found 1.2",
        ),
        (
            refusal(|f| f.controls[2].results.tasks[0].exact = None),
            "controls[2].results.tasks[0].exact`: expected outcomes",
        ),
        (
            refusal(|f| f.tasks[0].base.as_mut().unwrap().each[5] = 2),
            "tasks[0].base.each[5]`: expected 0 or 1, found 2",
        ),
        (
            refusal(|f| f.tasks[0].base.as_mut().unwrap().share = 0.1),
            "tasks[0].base.share`: expected that of the values, 0.9",
        ),
        (refusal(|f| f.tasks[0].base = Some(Outcomes::of([true]))), "expected 100 entries, one for each item, found 1"),
        (refusal(|f| f.tasks[1].chance = 1.5), "tasks[1].chance`: expected 0 to 1"),
        (refusal(|f| f.results_of(0).texts.swap(0, 1)), "expected one entry each for [manual.txt, novel.txt]"),
        (refusal(|f| f.tasks[1].name = "copy".into()), "tasks[1].name`: expected a name that no other has"),
        (refusal(|f| f.texts[0].sha256 = "ABC".into()), "texts[0].sha256`: expected a SHA-256"),
        (refusal(|f| f.base.ttft_ns[2] = 0), "base.ttft_ns[2]`: expected a positive time"),
        (refusal(|f| f.settings.prompt = 0), "settings.prompt`: expected 1 or more"),
        (refusal(|f| f.systems[0].prediction = None), "systems[0].prediction`: expected one of a kvp"),
        (refusal(|f| f.systems[0].kind = Kind::LazyPruned), "systems[0].prediction`: expected one of a kvp and null"),
        (refusal(|f| f.systems[0].prediction.as_mut().unwrap().aux = None), "prediction.aux`: expected the network"),
        (refusal(|f| f.systems[0].prediction.as_mut().unwrap().shared_layers = Some(3)), "prediction.shared_layers`"),
        (
            refusal(|f| f.controls[1].system = Some("x".into())),
            "controls[1].system`: expected the name of one of the systems",
        ),
        (refusal(|f| f.controls[5] = f.controls[4].clone()), "controls[5]`: the same control"),
        (refusal(|f| f.started_at = Some("now".into())), "field `started_at`: expected a time"),
    ] {
        assert!(error.starts_with("f.json, field `") && error.contains(words), "{words}: {error}");
    }
}

impl Fidelity {
    fn results_of(&mut self, system: usize) -> &mut Results {
        &mut self.systems[system].results
    }
}

proptest! {
    /// Whatever is cut out of a file, the reader answers.
    #[test]
    fn damaged_files_are_refused_and_nothing_worse(at in 0usize..40_000, len in 1usize..2000) {
        static TEXT: LazyLock<String> = LazyLock::new(|| file().to_text(name()).unwrap());
        let text = &*TEXT;
        let at = at.min(text.len() - 1);
        let damaged = [&text.as_bytes()[..at], &text.as_bytes()[(at + len).min(text.len())..]].concat();
        prop_assert!(Fidelity::parse(&damaged, name()).map_or(true, |read| read.schema == SCHEMA));
    }
}

/// The first system of the file, with other results.
fn judged(results: Results) -> Judgement {
    let mut file = file();
    file.systems[0].results = results;
    judge(&file).remove(0)
}

#[test]
fn true_caches_are_identical_and_maps_of_nothing_useless() {
    let truth = judged(results([0.0015, 0.0016], [90, 80]));
    assert_eq!(truth.verdict, Verdict::Identical, "{}", truth.words);
    let nothing = judged(results([0.9, 1.0], [0, 5]));
    assert_eq!(nothing.verdict, Verdict::Useless);
    assert!(
        nothing.words.contains(
            "Useless: on needle, its worst task, it is no better than chance (exact matches 0.05 of the base's 0.80"
        ),
        "{}",
        nothing.words
    );
    // As good on tasks, but beyond what rounding does to a text; and the other way round.
    assert_eq!(judged(results([0.0015, 0.0026], [90, 80])).verdict, Verdict::Keeps);
    assert_eq!(judged(results([0.0015, 0.0016], [84, 80])).verdict, Verdict::Loses);
    // Of 100 items that true caches answer alike, up to 3 may change by chance.
    assert_eq!(judged(results([0.0015, 0.0016], [87, 80])).verdict, Verdict::Identical);
}

#[test]
fn a_divergence_below_rounding_is_none() {
    let mut file = file();
    for control in &mut file.controls[6..] {
        control.results = results([0.0, 0.0], [90, 80]);
    }
    file.systems[0].results = results([0.9 * LEAST_KL, 0.0], [90, 80]);
    file.systems[1].results = results([2.0 * LEAST_KL, 0.0], [90, 80]);
    let verdicts: Vec<Verdict> = judge(&file).iter().map(|j| j.verdict).collect();
    assert_eq!(verdicts, [Verdict::Identical, Verdict::Keeps]);
}

/// One who knows that a word of the prompt is wanted, and not which: exactly chance, and far above the mean cache.
#[test]
fn chance_is_no_memory() {
    let guessing = judged(results([0.06, 0.15], [80, 25]));
    assert_eq!(guessing.verdict, Verdict::Useless, "{}", guessing.words);
    let worst = guessing.worst.unwrap();
    assert_eq!((worst.task.as_str(), worst.floor, worst.floor_is), ("needle", 0.25, "chance"));
    assert!(guessing.words.contains("exact matches 0.25 of the base's 0.80, chance 0.25"), "{}", guessing.words);
}

#[test]
fn the_word_is_that_of_the_worst_task() {
    let both = judged(results([0.06, 0.15], [70, 60]));
    assert_eq!((both.verdict, both.tasks.len()), (Verdict::Loses, 2));
    let worst = both.worst.unwrap();
    // (60 - 25) / (80 - 25) is less than 70 / 90.
    assert_eq!(worst.task, "needle");
    assert!((worst.ratio.value - 35.0 / 55.0).abs() < 1e-12);
    // However good the other task is.
    assert_eq!(judged(results([0.001, 0.001], [90, 26])).verdict, Verdict::Useless);
    assert_eq!(judged(results([0.06, 0.15], [90, 79])).verdict, Verdict::Keeps);
}

#[test]
fn what_the_base_cannot_do_gives_no_verdict() {
    let mut file = file();
    file.tasks[1].base = Some(outcomes(49));
    assert_eq!(judge(&file)[0].worst.as_ref().unwrap().task, "copy");
    file.tasks[0].base = Some(outcomes(10));
    let judgement = judge(&file).remove(0);
    assert_eq!((judgement.verdict, judgement.tasks.len()), (Verdict::None, 0));
    assert!(judgement.words.contains("the base itself solves 0.49 of it"), "{}", judgement.words);
    // Half is enough.
    file.tasks[1].base = Some(outcomes(50));
    assert_eq!(judge(&file)[0].worst.as_ref().unwrap().task, "needle");
}

#[test]
fn without_its_controls_nothing_is_said() {
    for (kind, words) in [(ControlKind::MeanCache, "the mean cache"), (ControlKind::TrueCaches, "the noise floor")] {
        let mut file = file();
        file.controls.retain(|c| c.kind != kind);
        let judgement = judge(&file).remove(0);
        assert_eq!(judgement.verdict, Verdict::None);
        assert!(judgement.words.contains(words), "{}", judgement.words);
    }
    let mut file = file();
    file.tasks.clear();
    file.systems.iter_mut().map(|s| &mut s.results).for_each(|r| r.tasks.clear());
    file.controls.iter_mut().map(|s| &mut s.results).for_each(|r| r.tasks.clear());
    assert!(judge(&file)[0].words.contains("text alone says nothing"), "{}", judge(&file)[0].words);
}

#[test]
fn a_control_of_the_same_cost_that_is_better_is_named() {
    let mut file = file();
    let mut beside = |kl, right| {
        file.controls[1].results = results(kl, right);
        judge(&file).remove(0)
    };
    let (text_alone, worst) = (beside([0.02, 0.05], [6, 32]), beside([0.11, 0.2], [6, 75]));
    assert_eq!(text_alone.verdict, Verdict::Loses);
    let words = " Controls of its cost are better: on manual.txt, truncation, equal operations (last 106): KL 0.020 against 0.060; \
                 on novel.txt, truncation, equal operations (last 106): KL 0.050 against 0.150.";
    assert!(text_alone.words.ends_with(words), "{}", text_alone.words);
    assert_eq!(worst.verdict, Verdict::Worse);
    let words =
        "Worse: on needle, its worst task, truncation, equal operations (last 106) is better, 0.75 against 0.60";
    assert!(worst.words.starts_with(words), "{}", worst.words);
    // The mean cache and no context are no rivals, and a control of another system is none of this one.
    file.controls[4].results = results([0.0, 0.0], [6, 32]);
    assert!(judge(&file)[0].rivals.iter().all(|r| !r.control.contains("mean")));
    assert!(judge(&file)[1].rivals.iter().all(|r| r.control.contains("last 62")));
    // The verdict on a useless one says nothing of controls, so they are named for its worst task, too.
    let other = file.controls.iter_mut().find(|c| c.words().contains("last 62")).unwrap();
    other.results = results([0.1, 0.2], [6, 75]);
    let useless = judge(&file).remove(1);
    assert_eq!(useless.verdict, Verdict::Useless);
    assert!(
        useless.words.contains("better: on needle, truncation, equal operations (last 62): 0.75 against 0.27 exact"),
        "{}",
        useless.words
    );
}

#[test]
fn few_items_tell_nothing() {
    let mut file = file();
    let cut = |o: &mut Outcomes| *o = Outcomes::of(o.each.iter().take(19).map(|&o| o == 1));
    for task in &mut file.tasks {
        task.items = 19;
        task.base.iter_mut().for_each(cut);
    }
    let of_systems = file.systems.iter_mut().map(|s| &mut s.results);
    for on in of_systems.chain(file.controls.iter_mut().map(|c| &mut c.results)).flat_map(|r| &mut r.tasks) {
        on.exact.iter_mut().for_each(cut);
        cut(&mut on.first_token);
    }
    file.to_text(name()).unwrap();
    assert!(judge(&file)[0].words.contains("19 items, a verdict takes 20"), "{}", judge(&file)[0].words);
}

/// The interval holds exactly the r for which the mean of u - r v is within t standard errors of 0.
#[test]
fn the_interval_is_fiellers() {
    let of = |u: usize, v: usize| outcomes(u).values().into_iter().zip(outcomes(v).values()).collect::<Vec<_>>();
    for pairs in [of(60, 90), of(0, 90), of(3, 60), of(90, 90), of(80, 20)] {
        let n = pairs.len() as f64;
        let t = student::t_quantile(0.975, n - 1.0);
        let inside = |r: f64| {
            let mean = pairs.iter().map(|p| p.0 - r * p.1).sum::<f64>() / n;
            let squares: f64 = pairs.iter().map(|p| (p.0 - r * p.1 - mean).powi(2)).sum();
            // What the imagined items add to the squares of u - r v.
            mean.abs() <= t * ((squares + 2.0 + 2.0 * r * r) / ((n + 4.0) * (n + 3.0))).sqrt()
        };
        let found = ratio(&pairs).unwrap();
        let Interval { low, high, .. } = found.interval.unwrap();
        assert!(low < found.value && found.value < high, "{found:?}");
        for (edge, inwards) in [(low, 1e-9), (high, -1e-9)] {
            assert!(inside(edge + inwards) && !inside(edge - inwards), "{found:?}");
        }
        assert_eq!(inside(0.0), low <= 0.0 && 0.0 <= high);
    }
}

#[test]
fn no_ratio_to_what_cannot_be_told_from_nothing() {
    assert_eq!(ratio(&[]), None);
    assert_eq!(ratio(&[(1.0, 1.0)]), None);
    let one_in = |n: usize| (0..n).map(|i| (0.0, f64::from(u8::from(i == 0)))).collect::<Vec<_>>();
    assert_eq!(ratio(&one_in(100)), None);
    // Worse than the floor is no ratio either.
    assert_eq!(ratio(&[(0.5, -0.5); 100]), None);
}

/// Shares that are known: the interval covers the true ratio about as often as it says, also where all items end alike.
#[test]
fn the_interval_covers_95_of_100_times() {
    let mut normal = Normal::new(11);
    for (base, kept) in [(0.9, 0.7), (0.75, 0.05), (0.95, 0.98), (0.6, 0.5)] {
        let trials = 2000;
        let mut covered = 0;
        for _ in 0..trials {
            let mut yes = |p: f64| libm::erfc(-normal.draw() / 2f64.sqrt()) / 2.0 < p;
            let pairs: Vec<(f64, f64)> = (0..100)
                .map(|_| {
                    let right = yes(base);
                    (f64::from(u8::from(right && yes(kept))), f64::from(u8::from(right)))
                })
                .collect();
            covered += u32::from(ratio(&pairs).unwrap().interval.unwrap().contains(kept));
        }
        let share = f64::from(covered) / f64::from(trials);
        assert!((0.93..=1.0).contains(&share), "{base} {kept}: {share}");
    }
}

#[test]
fn measures_keep_what_the_file_keeps() {
    let m = Measure::of([1.0 / 3.0, 2.0 / 3.0]);
    assert_eq!(m.values, [0.3333333, 0.6666667]);
    assert!((m.standard_error.unwrap() - 0.3333334 / 2.0).abs() < 1e-12);
    assert_eq!(Measure::of([0.5]).standard_error, None);
    let o = Outcomes::of([true, false, true, true]);
    assert_eq!((o.share, o.each.as_slice()), (0.75, &[1, 0, 1, 1][..]));
    assert!((o.standard_error - (0.75f64 * 0.25 / 4.0).sqrt()).abs() < 1e-15);
}
