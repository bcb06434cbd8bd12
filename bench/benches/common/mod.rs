//! A micro-benchmark under criterion.

use std::{cell::OnceCell, process::ExitCode, time::Duration};

use anyhow::Result;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use ttft_bench::{
    console,
    criterion_args::CriterionArgs,
    micro::{Gauge, Series, Setup},
    remarks,
};
use ttft_kernels::DType;

/// The cells of one benchmark.
pub struct Group<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    setup: &'a Setup,
    name: &'a str,
    args: &'a CriterionArgs,
    /// Made on first use: listing and filtering cost nothing.
    gauge: OnceCell<Gauge>,
}

impl Group<'_> {
    /// One cell, if it is selected: `prepare` makes what it needs, `sample(.., turn, iters)` gives the mean time of a call of
    /// every contender, of which criterion sees the first. The peak is measured in `dtype`. `None` if there is nothing to
    /// show.
    pub fn measure<S>(
        &mut self,
        id: &str,
        throughput: Throughput,
        dtype: DType,
        prepare: impl FnOnce() -> Result<S>,
        mut sample: impl FnMut(&mut S, usize, u64) -> Result<Vec<Duration>>,
    ) -> Result<Option<Series>> {
        let Group { group, setup, name, args, gauge } = self;
        let selected = args.runs() && args.selects(&format!("{name}/{id}"));
        let mut state = selected.then(prepare).transpose()?;
        let mut series = Series::default();
        let (mut turn, mut error) = (0, None);
        group.throughput(throughput);
        let mut measure = || {
            group.bench_function(id, |b| {
                b.iter_custom(|iters| {
                    let Some(state) = &mut state else { return Duration::ZERO };
                    let speed = gauge.get_or_init(|| Gauge::new(setup)).speed(&setup.engine, dtype);
                    match sample(state, turn, iters) {
                        Ok(times) => {
                            turn += 1;
                            series.push(speed, times.iter().map(Duration::as_secs_f64).collect());
                            times[0] * u32::try_from(iters).unwrap_or(u32::MAX)
                        }
                        Err(e) => {
                            error = Some(e);
                            Duration::from_nanos(1)
                        }
                    }
                });
            });
        };
        // A call may take longer than a tenth of the time that is ours, not the user's.
        match args.measurement_time() {
            true => measure(),
            false => remarks::without_target_time(measure),
        }
        series.keep_last(args.sample_size());
        match error {
            Some(e) => Err(e),
            None => Ok((!setup.smoke && !series.is_empty()).then_some(series)),
        }
    }
}

/// Runs the benchmark `name`: `cells` measures them and prints what came out.
pub fn main(name: &str, cells: impl FnOnce(&mut Group<'_>, &Setup) -> Result<()>) -> ExitCode {
    console::init();
    let args = CriterionArgs::from_env();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(300))
        .nresamples(10_000)
        .configure_from_args();
    let run = |criterion: &mut Criterion| {
        let setup = Setup::from_env(!args.runs() || args.test())?;
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat);
        let mut group = Group { group, setup: &setup, name, args: &args, gauge: OnceCell::new() };
        cells(&mut group, &setup)?;
        group.group.finish();
        Ok(())
    };
    let done: Result<()> = run(&mut criterion);
    criterion.final_summary();
    console::end(done.map(|()| ExitCode::SUCCESS))
}
