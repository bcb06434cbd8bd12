//! What a parallel region costs: an empty one, while the threads are awake and after they have gone to sleep; and one with
//! 20 us of work for every thread, which shows whether the threads share it at once.
//!
//! With the cargo feature `peers`, rayon's ways to the same end are timed in turn: a broadcast, and a parallel iterator
//! with one item for each thread, from inside its pool (the caller is a worker, as in ours) and from outside. An iterator
//! may run on the calling thread alone, as an empty one does.

mod common;

use std::{
    hint,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use common::Group;
use criterion::Throughput;
use ttft_bench::micro::{self, Series, Setup, time};
use ttft_kernels::DType;

/// Long past the time for which threads of either pool stay awake.
const IDLE: Duration = Duration::from_millis(3);

/// Work of a thread in a region that is not empty.
const WORK: Duration = Duration::from_micros(20);

/// Regions of one call while threads are awake.
const HOT: u32 = 200;

/// Runs so many regions, with so much work for each thread.
type Regions<'a> = (&'static str, Box<dyn Fn(u32, Duration) + 'a>);

fn work(duration: Duration) {
    let start = Instant::now();
    while !duration.is_zero() && start.elapsed() < duration {
        hint::spin_loop();
    }
}

fn contenders(setup: &Setup) -> Vec<Regions<'_>> {
    let pool = setup.engine.pool();
    let own: Regions<'_> = ("ttft: Pool::run", Box::new(|n, w| (0..n).for_each(|_| pool.run(|_| work(w)))));
    let mut all = vec![own];
    all.extend(rayons(setup.engine.threads()));
    all
}

#[cfg(not(feature = "peers"))]
fn rayons(_threads: usize) -> Vec<Regions<'static>> {
    Vec::new()
}

#[cfg(feature = "peers")]
fn rayons(threads: usize) -> Vec<Regions<'static>> {
    use rayon::prelude::*;
    let broadcast = |n: u32, w| (0..n).for_each(|_| drop(rayon::broadcast(|_| work(w))));
    let iterator = move |n: u32, w| {
        (0..n).for_each(|_| (0..threads).into_par_iter().with_max_len(1).for_each(|_| work(w)));
    };
    vec![
        ("rayon: broadcast, inside", Box::new(move |n, w| rayon::scope(|_| broadcast(n, w)))),
        ("rayon: broadcast, outside", Box::new(broadcast)),
        ("rayon: par_iter, inside", Box::new(move |n, w| rayon::scope(|_| iterator(n, w)))),
        ("rayon: par_iter, outside", Box::new(iterator)),
    ]
}

/// A kind of region.
struct Kind {
    id: &'static str,
    regions: u32,
    work: Duration,
    /// Pause before.
    idle: Duration,
}

const KINDS: [Kind; 3] = [
    Kind { id: "empty, threads awake", regions: HOT, work: Duration::ZERO, idle: Duration::ZERO },
    Kind { id: "empty, threads asleep", regions: 1, work: Duration::ZERO, idle: IDLE },
    Kind { id: "20 us of work, threads awake", regions: HOT, work: WORK, idle: Duration::ZERO },
];

fn main() -> ExitCode {
    common::main("pool", |group, setup| {
        let all = contenders(setup);
        let mut rows = Vec::new();
        for kind in KINDS {
            let Some(series) = measure(group, &kind, &all)? else { continue };
            let us = |i| format!("{:.2}", series.seconds(i) / f64::from(kind.regions) * 1e6);
            rows.extend(all.iter().enumerate().map(|(i, c)| vec![kind.id.to_owned(), c.0.to_owned(), us(i)]));
        }
        micro::print(setup, "one parallel region", &["region", "by", "us"], rows);
        Ok(())
    })
}

/// Seconds of one call of each contender.
fn measure(group: &mut Group<'_>, kind: &Kind, all: &[Regions<'_>]) -> Result<Option<Series>> {
    let throughput = Throughput::Elements(u64::from(kind.regions));
    let nothing = || Ok(());
    group.measure(kind.id, throughput, DType::F32, nothing, |(), turn, iters| {
        Ok(micro::in_turn(all.len(), turn, iters, |who| {
            if !kind.idle.is_zero() {
                thread::sleep(kind.idle);
            }
            time(|| all[who].1(kind.regions, kind.work))
        }))
    })
}
