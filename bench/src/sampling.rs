//! The samples that one process takes of a group: its systems interleaved round by round, in rotating order, so that
//! drift of the machine meets all of them alike.

use anyhow::Result;
use ttft_reports::schema::{Cell, Start};

use crate::{
    energy,
    machine::{self, Rates},
    rig::{Group, Places, Rig, Running},
};

/// Rounds that warm up at most: page faults that go on after them do not come from a first run.
const MOST_WARMUPS: u32 = 4;
/// Minor faults of a whole round that are none: the kernel's own housekeeping makes a few at any time.
const FEW_FAULTS: u64 = 64;

/// What one process made of one system.
pub type Outcome = Result<Cell>;

/// Takes `rounds` rounds of a group after its warm-up, the first of them beginning with the system at place `turn`.
/// `tick` is told each system before it runs. The first process measures energy too. One outcome for each system, in the group's order; a system that fails stops no
/// other.
pub fn sample(rig: &mut Rig, group: &Group, rounds: u32, turn: u32, mut tick: impl FnMut(&str)) -> Vec<Outcome> {
    let mut slots: Vec<Slot> = group.arms.iter().map(|arm| Slot::new(rig.open(arm, group))).collect();
    let probe = rig.probe.hold(&rig.engine);
    let engine = &rig.engine;
    // A cold start that warms up is none.
    let warmups = if rig.scenario.start() == Start::Cold { 0 } else { MOST_WARMUPS };
    for warmup in 1..=warmups {
        each(&mut slots, turn, |slot, _| {
            tick(&slot.name);
            slot.call(engine);
        });
        // Memory that is still being mapped is time that later calls do not spend.
        let faults = slots.iter().filter_map(|s| s.running.as_ref().ok()?.last_minor_faults()).sum::<u64>();
        if faults <= FEW_FAULTS || warmup == MOST_WARMUPS {
            break;
        }
    }
    let first = probe.rates(engine);
    let mut rates = first;
    for round in 0..rounds {
        each(&mut slots, turn.wrapping_add(round), |slot, position| {
            tick(&slot.name);
            slot.call(engine);
            slot.places.positions.push(position);
            slot.places.rates.push(rates);
        });
        rates = probe.rates(engine);
    }
    let mut measured: Vec<Result<(Running, Cell)>> =
        slots.into_iter().map(|slot| slot.finish(rounds, probe.bytes(), first, rates)).collect();
    // Once for all processes: the mean over seconds has no use for more.
    if let (0, Some(meter)) = (turn, &rig.meter) {
        for (running, cell) in measured.iter_mut().flatten() {
            cell.energy = Some(energy::measure(meter, || running.again(engine)));
        }
    }
    measured.into_iter().map(|measured| measured.map(|(_, cell)| cell)).collect()
}

/// A system of the group while it is measured.
struct Slot {
    name: String,
    running: Result<Running>,
    places: Places,
}

impl Slot {
    fn new(running: Result<Running>) -> Slot {
        let name = running.as_ref().map(|r| r.system().to_owned()).unwrap_or_default();
        Slot { name, running, places: Places::default() }
    }

    fn call(&mut self, engine: &ttft_kernels::Engine) {
        if let Ok(running) = &mut self.running
            && let Err(e) = running.call(engine, 1)
        {
            self.running = Err(e);
        }
    }

    fn finish(self, rounds: u32, probe_bytes: u64, before: Rates, after: Rates) -> Result<(Running, Cell)> {
        let running = self.running?;
        let mut cell = running.cell(rounds as usize, Some(self.places))?;
        cell.drift = Some(machine::drift(before, after));
        // The probe's memory is none of the cell's.
        if let Some(memory) = &mut cell.memory {
            memory.rss_anon_bytes = memory.rss_anon_bytes.map(|b| b.saturating_sub(probe_bytes));
        }
        Ok((running, cell))
    }
}

/// Every slot that still runs, beginning at place `turn`, with its position in the round.
fn each(slots: &mut [Slot], turn: u32, mut call: impl FnMut(&mut Slot, u32)) {
    let n = slots.len();
    for position in 0..n {
        let slot = &mut slots[(turn as usize + position) % n];
        if slot.running.is_ok() {
            call(slot, position as u32);
        }
    }
}
