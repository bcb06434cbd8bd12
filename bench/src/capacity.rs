//! Whether a record can hold what a run is to measure, before it is measured.

use anyhow::{Result, ensure};
use ttft_reports::schema::{MAX_LINE_BYTES, MAX_LINES, MAX_SAMPLES};

/// Bytes of one time in nanoseconds, with its comma: of a quarter of an hour or less.
const TIME: u64 = 13;

/// Bytes of a sample's round, its place in it, its process, its two probes, its clock and its throttling, with their commas.
const ROUND: u64 = 8 + 4 + 8 + 2 * 20 + 13 + 8;

/// Phases of the system that has the most, and the whole.
const TIMES: u64 = 4;

/// Bytes of a cell's line beside its samples, by far.
const REST: u64 = 1 << 16;

/// Refuses rounds and decode steps that make a list or a line longer than a record may have, and more cells than it may have
/// lines.
///
/// # Errors
/// What is too much, and how much would do.
pub fn check(rounds: u32, decode: u32, cells: usize) -> Result<()> {
    let steps = u64::from(rounds) * u64::from(decode);
    let most = MAX_SAMPLES as u64 / u64::from(decode.max(1));
    ensure!(
        steps <= MAX_SAMPLES as u64,
        "{rounds} rounds of {decode} decode steps are {steps} times, and a record holds {MAX_SAMPLES} of them for each \
         system: take at most {most} rounds, or fewer decode steps"
    );
    let sample = TIMES * TIME + ROUND + u64::from(decode) * TIME;
    let most = (MAX_LINE_BYTES - REST) / sample;
    ensure!(
        u64::from(rounds) <= most,
        "the times of {rounds} rounds with {decode} decode steps make a line longer than the {MAX_LINE_BYTES} bytes that a \
         record may have: take at most {most} rounds"
    );
    // The header is a line too.
    ensure!(
        cells < MAX_LINES,
        "the scenario has {cells} cells, and a record holds fewer than {MAX_LINES} of them: take fewer lengths, batches or \
         systems"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttft_reports::schema::{Cell, Clocks, Decode, Kind, PhaseRecord, Probes, RunHeader, Writer};

    /// What is allowed can be written and read, with long times; what is not is told with a way out.
    #[test]
    fn what_is_allowed_fits_into_a_line() {
        for decode in [0, 4, 1000] {
            let most = (1u32..).map(|i| i * 1000).take_while(|&r| check(r, decode, 1).is_ok()).last().unwrap();
            let times = |n: usize| vec![999_999_999_999u64 / 4; n];
            let samples = most as usize;
            let mut cell = Cell::new(Kind::Kvp, "OE1.1B-KVP-C-450M", "OE1.1B", Some("OE450M"), 4, 256);
            cell.samples_ns = vec![999_999_999_999; samples];
            cell.phases = ["auxiliary", "prediction", "base_step"]
                .map(|name| PhaseRecord { name: name.into(), samples_ns: times(samples), ..Default::default() })
                .into();
            cell.rounds = Some((0..most).collect());
            cell.round_positions = Some(vec![100; samples]);
            cell.processes = Some((0..most).collect());
            let rates = vec![987.654_321_098_765_4; samples];
            cell.probes = Some(Probes { gflops: rates.clone(), read_gb_per_s: rates });
            let (mhz, throttled) = (Some(vec![12_345.678; samples]), Some(vec![9_999_999; samples]));
            cell.clocks = Some(Clocks { mhz, throttled, unknown: None });
            cell.decode = Some(Decode { steps: decode, samples_ns: times(samples * decode as usize) });
            let mut writer = Writer::nowhere(RunHeader { run_id: "r".into(), ..Default::default() }).unwrap();
            writer.cell(&cell).unwrap();
            assert_eq!(writer.finish().unwrap().cells.len(), 1);
        }
    }

    #[test]
    fn too_much_is_refused_with_what_would_do() {
        let error = |rounds, decode, cells| check(rounds, decode, cells).unwrap_err().to_string();
        assert!(error(100_001, 10, 1).contains("at most 100000 rounds"));
        assert!(error(1_000_000, 0, 1).contains("at most 2"));
        assert!(error(10, 0, MAX_LINES).contains("100000 of them"));
        check(1000, 1000, 100).unwrap();
    }
}
