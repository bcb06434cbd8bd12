//! What one line of a record must be, beyond what its types say.

use serde::de::DeserializeOwned;

use super::types::*;
use crate::text;

/// A fault inside one line: field and message.
pub(crate) type Fault = (String, String);

/// What stands in a file, such as an unknown field's name, as it can be shown: no end of it, and nothing that steers a
/// terminal.
pub(crate) fn printable(text: &str) -> String {
    const MOST: usize = 600;
    let more = text.chars().nth(MOST).map(|_| '…');
    text::printable(&text.chars().take(MOST).chain(more).collect::<String>())
}

/// Parses JSON text as a value of this type: every field known, no text that is too long or steers a terminal.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let (path, message) = (e.path().to_string(), e.inner().to_string());
        // serde_json counts lines from the start of its own text: a line of a record is always one.
        let message = message.replace(" at line 1 column ", " at column ");
        let line = text.split('\n').nth(e.inner().line().saturating_sub(1)).unwrap_or_default();
        let near = line.get(e.inner().column().saturating_sub(2)..).unwrap_or_default();
        let python =
            ["NaN", "Infinity"].iter().any(|word| near.trim_start_matches([':', ' ', '-', ',', '[']).starts_with(word));
        (path, if python { message + ": NaN and Infinity are no JSON, unknown is null" } else { message })
    })?;
    json.end().map_err(|e| (".".to_string(), e.to_string()))?;
    if let Ok(value) = serde_json::from_str(text) {
        check_text(&value, &mut String::new())?;
    }
    Ok(value)
}

/// Parses and checks one line.
pub(super) fn parse(text: &str) -> Result<Line, Fault> {
    let line: Line = parse_json(text)?;
    match &line {
        Line::Run(run) => check_run(run),
        Line::Cell(cell) => check_cell(cell),
        Line::Skipped(skipped) => check_id(&skipped.id, "skipped.id"),
    }?;
    Ok(line)
}

/// Refuses strings that are too long or that would steer a terminal.
pub(crate) fn check_text(value: &serde_json::Value, path: &mut String) -> Result<(), Fault> {
    use serde_json::Value;
    let end = path.len();
    match value {
        Value::String(text) if text.len() > MAX_TEXT_BYTES => {
            Err((path.clone(), format!("{} bytes of text, at most {MAX_TEXT_BYTES} are read", text.len())))
        }
        Value::String(text) => match text.chars().find(|c| c.is_control()) {
            Some(c) => Err((path.clone(), format!("control character {:#04x} in text", c as u32))),
            None => Ok(()),
        },
        Value::Array(items) => items.iter().enumerate().try_for_each(|(i, item)| {
            path.truncate(end);
            path.push_str(&format!("[{i}]"));
            check_text(item, path)
        }),
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            path.truncate(end);
            if end > 0 {
                path.push('.');
            }
            path.push_str(name);
            check_text(field, path)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

pub(crate) fn fault<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Fault> {
    Err((field.into(), message.into()))
}

pub(super) fn check_id(id: &str, field: &str) -> Result<(), Fault> {
    if id.is_empty() || id.chars().any(char::is_whitespace) {
        return fault(field, format!("expected an id without spaces, found `{id}`"));
    }
    Ok(())
}

pub(crate) fn check_time(time: Option<&str>, field: &str) -> Result<(), Fault> {
    let pattern = b"0000-00-00T00:00:00";
    let good = |t: &str| {
        let (head, tail) = t.as_bytes().split_at_checked(pattern.len())?;
        let same = |(c, p): (&u8, &u8)| if *p == b'0' { c.is_ascii_digit() } else { c == p };
        let fraction = tail.strip_suffix(b"Z")?;
        let digits = fraction.strip_prefix(b".").map_or(fraction.is_empty(), |d| d.iter().all(u8::is_ascii_digit));
        (head.iter().zip(pattern).all(same) && digits).then_some(())
    };
    match time {
        Some(t) if good(t).is_none() => fault(field, format!("expected a time like 2026-11-23T05:27:00Z, found `{t}`")),
        _ => Ok(()),
    }
}

pub(super) fn check_run(run: &RunHeader) -> Result<(), Fault> {
    if !READABLE.contains(&run.schema.as_str()) {
        return fault("run.schema", format!("expected `{}`, found `{}`", READABLE.join("` or `"), run.schema));
    }
    check_id(&run.run_id, "run.run_id")?;
    check_time(run.started_at.as_deref(), "run.started_at")?;
    for (i, network) in run.networks.iter().flatten().enumerate() {
        check_identity(network, || format!("run.networks[{i}]"))?;
    }
    for (i, named) in run.predictions.iter().flatten().enumerate() {
        check_prediction(&named.prediction, || format!("run.predictions[{i}].prediction"))?;
    }
    check_limits(&run.limits, "run.limits")
}

/// A SHA-256 as it is written everywhere.
pub(crate) fn check_sha256(hash: Option<&str>, field: impl Fn() -> String) -> Result<(), Fault> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match hash {
        Some(h) if h.len() != 64 || !h.bytes().all(digit) => {
            fault(field(), format!("expected a SHA-256, 64 hexadecimal digits in lower case, found `{}`", printable(h)))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_identity(identity: &Identity, field: impl Fn() -> String) -> Result<(), Fault> {
    if identity.name.is_empty() {
        return fault(format!("{}.name", field()), "expected a name, found none");
    }
    check_sha256(identity.config_sha256.as_deref(), || format!("{}.config_sha256", field()))?;
    check_sha256(identity.weights_sha256.as_deref(), || format!("{}.weights_sha256", field()))
}

pub(crate) fn check_prediction(p: &Prediction, field: impl Fn() -> String) -> Result<(), Fault> {
    let by_aux = p.source == Source::Auxiliary;
    if by_aux != p.aux.is_some() {
        let message = "expected the network where an auxiliary reads the prompt, and null where layers of the base do";
        return fault(format!("{}.aux", field()), message);
    }
    if by_aux == p.shared_layers.is_some_and(|k| k > 0) || (by_aux && p.shared_layers.is_some()) {
        let message = "expected 1 or more where layers of the base read the prompt, and null where an auxiliary does";
        return fault(format!("{}.shared_layers", field()), message);
    }
    if p.base_tokens == 0 {
        return fault(format!("{}.base_tokens", field()), "expected 1 or more, found 0");
    }
    for (name, identity) in [("aux", &p.aux), ("predictor", &p.predictor)] {
        if let Some(identity) = identity {
            check_identity(identity, || format!("{}.{name}", field()))?;
        }
    }
    Ok(())
}

pub(super) fn check_limits(limits: &Limits, field: &str) -> Result<(), Fault> {
    for (i, peak) in limits.peaks.iter().enumerate() {
        check_positive(Some(peak.gflops), || format!("{field}.peaks[{i}].gflops"))?;
    }
    check_positive(limits.read_gb_per_s, || format!("{field}.read_gb_per_s"))?;
    check_positive(limits.region_us, || format!("{field}.region_us"))
}

pub(crate) fn check_positive(value: Option<f64>, field: impl Fn() -> String) -> Result<(), Fault> {
    match value {
        Some(v) if !(v > 0.0 && v.is_finite()) => fault(field(), format!("expected a positive number, found {v}")),
        _ => Ok(()),
    }
}

/// A list of times must hold as many as the cell has samples, none of them 0 where a time cannot be 0.
pub(super) fn check_samples(list: &[u64], expected: Option<usize>, field: impl Fn() -> String) -> Result<(), Fault> {
    if list.len() > MAX_SAMPLES {
        return fault(field(), format!("{} samples, at most {MAX_SAMPLES} are read", list.len()));
    }
    expected.map_or(Ok(()), |n| check_count(list.len(), n, field))
}

/// A list must hold as many as the cell has samples.
fn check_count(found: usize, expected: usize, field: impl Fn() -> String) -> Result<(), Fault> {
    match found == expected {
        true => Ok(()),
        false => fault(field(), format!("expected {expected} entries, one for each sample of the cell, found {found}")),
    }
}

fn check_energy(energy: &Energy) -> Result<(), Fault> {
    check_positive(energy.joules, || "cell.energy.joules".into())?;
    check_positive(energy.seconds, || "cell.energy.seconds".into())?;
    if energy.idle_watts.is_some_and(|w| !(w >= 0.0 && w.is_finite())) {
        return fault("cell.energy.idle_watts", "expected 0 or more");
    }
    if energy.joules.is_some() == energy.missing.is_some() {
        return fault("cell.energy.missing", "expected a reason if joules is null, and null otherwise");
    }
    if energy.joules.is_some() && energy.repetitions == 0 {
        return fault("cell.energy.repetitions", "expected 1 or more, found 0");
    }
    Ok(())
}

pub(super) fn check_cell(cell: &Cell) -> Result<(), Fault> {
    let samples = cell.samples_ns.len();
    check_id(&cell.id, "cell.id")?;
    check_time(cell.started_at.as_deref(), "cell.started_at")?;
    if cell.attempt == 0 {
        return fault("cell.attempt", "expected 1 or more, found 0");
    }
    if cell.batch == 0 || cell.prompt == 0 {
        let field = if cell.batch == 0 { "cell.batch" } else { "cell.prompt" };
        return fault(field, "expected 1 or more, found 0");
    }
    let hash = scenario_hash(cell.kind, &cell.system, &cell.base, cell.aux.as_deref(), cell.batch, cell.prompt);
    let hash = if cell.cold.is_some() { cold_hash(&hash) } else { hash };
    if cell.scenario_hash != hash {
        let found = &cell.scenario_hash;
        return fault(
            "cell.scenario_hash",
            format!("expected {hash} for this system, batch and prompt, found {found}"),
        );
    }
    if cell.kind == Kind::Base && cell.system != cell.base {
        return fault("cell.system", format!("expected the base `{}`, found `{}`", cell.base, cell.system));
    }
    // Layers of the base may read the prompt instead; a cell without phases does not say so.
    let alone = !cell.phases.is_empty() && ["auxiliary", "pipelined"].iter().all(|phase| cell.phase(phase).is_none());
    let wanted = matches!(cell.kind, Kind::Kvp | Kind::SpecPrefill);
    if wanted != cell.aux.is_some() && !(cell.kind == Kind::Kvp && alone) {
        let expected = "a name for a spec_prefill and for a kvp with an auxiliary and null for all others";
        return fault("cell.aux", format!("expected {expected}, kind is {:?}", cell.kind));
    }
    check_samples(&cell.samples_ns, None, || "cell.samples_ns".into())?;
    check_samples(&cell.warmup_ns, None, || "cell.warmup_ns".into())?;
    if let Some(i) = cell.samples_ns.iter().position(|&ns| ns == 0) {
        return fault(format!("cell.samples_ns[{i}]"), "expected a positive time, found 0");
    }
    let lists = [("rounds", &cell.rounds), ("round_positions", &cell.round_positions), ("processes", &cell.processes)];
    for (name, list) in lists {
        if let Some(list) = list {
            check_count(list.len(), samples, || format!("cell.{name}"))?;
        }
    }
    if cell.rounds.as_ref().is_some_and(|r| !r.is_sorted_by(|a, b| a < b)) {
        return fault("cell.rounds", "expected increasing numbers, one sample for each round");
    }
    if cell.processes.as_ref().is_some_and(|p| !p.is_sorted()) {
        return fault(
            "cell.processes",
            "expected numbers that never decrease: the samples of a process follow one another",
        );
    }
    if let Some(probes) = &cell.probes {
        for (name, list) in [("gflops", &probes.gflops), ("read_gb_per_s", &probes.read_gb_per_s)] {
            check_count(list.len(), samples, || format!("cell.probes.{name}"))?;
            for (i, &rate) in list.iter().enumerate() {
                check_positive(Some(rate), || format!("cell.probes.{name}[{i}]"))?;
            }
        }
    }
    if let Some(found) = cell.percentiles {
        let expected = Percentiles::of(&cell.samples_ns);
        if expected != Some(found) {
            return fault("cell.percentiles", format!("expected those of the samples, {expected:?}, found {found:?}"));
        }
    }
    if let Some(clocks) = &cell.clocks {
        for (i, &mhz) in clocks.mhz.iter().flatten().enumerate() {
            check_positive(Some(mhz), || format!("cell.clocks.mhz[{i}]"))?;
        }
        let lists =
            [("mhz", clocks.mhz.as_ref().map(Vec::len)), ("throttled", clocks.throttled.as_ref().map(Vec::len))];
        for (name, found) in lists {
            if let Some(found) = found {
                check_count(found, samples, || format!("cell.clocks.{name}"))?;
            }
        }
        if clocks.unknown.is_none() && (clocks.mhz.is_none() || clocks.throttled.is_none()) {
            return fault("cell.clocks.unknown", "expected why mhz or throttled is null, found null");
        }
    }
    if let Some(limits) = &cell.limits {
        check_limits(limits, "cell.limits")?;
    }
    for (i, phase) in cell.phases.iter().enumerate() {
        check_samples(&phase.samples_ns, Some(samples), || format!("cell.phases[{i}].samples_ns"))?;
        if let Some(cost) = phase.cost
            && cost.f32_flops.is_some_and(|flops| flops > cost.flops.total())
        {
            let all = cost.flops.total();
            return fault(format!("cell.phases[{i}].cost.f32_flops"), format!("expected at most all {all} operations"));
        }
        if cell.phases[..i].iter().any(|p| p.name == phase.name) {
            return fault(format!("cell.phases[{i}].name"), format!("phase `{}` occurs twice", phase.name));
        }
    }
    if let Some(head) = &cell.head {
        check_samples(&head.samples_ns, Some(samples), || "cell.head.samples_ns".into())?;
        // It begins and ends inside of its phase.
        if let Some(last) = cell.phases.last()
            && let Some(s) = (0..samples).find(|&s| head.samples_ns[s] > last.samples_ns[s])
        {
            let (part, whole) = (head.samples_ns[s], last.samples_ns[s]);
            return fault(
                "cell.head",
                format!("it takes {part} ns of sample {s}, and all of {} {whole} ns", last.name),
            );
        }
    }
    for (s, &total) in cell.samples_ns.iter().enumerate() {
        let sum = cell.phases.iter().fold(0u64, |sum, p| sum.saturating_add(p.samples_ns[s]));
        if sum > total {
            return fault("cell.phases", format!("phases of sample {s} take {sum} ns, the whole only {total} ns"));
        }
    }
    if let Some(decode) = &cell.decode {
        check_samples(&decode.samples_ns, (decode.steps as usize).checked_mul(samples), || {
            "cell.decode.samples_ns".into()
        })?;
    }
    if let Some(cold) = &cell.cold {
        check_samples(&cold.warm_ns, Some(samples), || "cell.cold.warm_ns".into())?;
        for (i, phase) in cold.warm_phases.iter().enumerate() {
            check_samples(&phase.samples_ns, Some(samples), || format!("cell.cold.warm_phases[{i}].samples_ns"))?;
        }
        if let Some(bytes) = &cold.read_bytes {
            check_samples(bytes, Some(samples), || "cell.cold.read_bytes".into())?;
        }
        check_positive(cold.disk_gb_per_s, || "cell.cold.disk_gb_per_s".into())?;
    }
    if let Some(energy) = &cell.energy {
        check_energy(energy)?;
    }
    if let Some(gate) = &cell.gate {
        let differences =
            [Some((gate.max_abs_err, gate.tolerance)), gate.longest.as_ref().map(|l| (l.max_abs_err, l.tolerance))];
        let wrong = differences.into_iter().flatten().find(|(err, tolerance)| err > tolerance);
        if gate.passed != wrong.is_none() {
            let ((err, tolerance), passed) = (wrong.unwrap_or((gate.max_abs_err, gate.tolerance)), gate.passed);
            return fault("cell.gate.passed", format!("{passed}, but error {err} and tolerance {tolerance}"));
        }
        if !gate.passed && samples > 0 {
            return fault("cell.samples_ns", "expected none: the correctness gate failed");
        }
    }
    if let Some(published) = &cell.published {
        check_positive(Some(published.ttft_s), || "cell.published.ttft_s".into())?;
        check_positive(published.flops_reduction, || "cell.published.flops_reduction".into())?;
        if samples > 0 {
            return fault("cell.published", format!("expected null: the cell has {samples} samples of its own"));
        }
    }
    Ok(())
}
