//! A made-up run for tests, with the shapes of a real one.

use crate::{schema::*, stats::simulate::Normal};

/// Parameters of the networks that take part in a product for every token, roughly.
fn parameters(system: &str) -> u64 {
    match system {
        "OE1.1B" => 1_014_000_000,
        "OE450M" => 408_000_000,
        "OE270M" => 230_000_000,
        other => panic!("no figures for {other}"),
    }
}

/// The time that 2 threads of 468 GFLOP/s and 40 GB/s need at 90% of either, 200 us at least.
fn time_ns(cost: &Cost) -> u64 {
    let (compute, memory) = (cost.flops.total() as f64 / 421e9, cost.bytes() as f64 / 36e9);
    ((compute + memory) * 1e9) as u64 + 200_000
}

fn phase(name: &str, system: &str, tokens: u64, batch: u64, prediction: u64) -> PhaseRecord {
    let cost = Cost {
        flops: Flops {
            projections: 2 * parameters(system) * tokens * batch,
            attention: 1000 * tokens * tokens * batch,
            head: 2 * 65_536_000 * batch,
            prediction,
        },
        f32_flops: None,
        weight_bytes: 2 * parameters(system),
        cache_bytes: 60_000 * tokens * batch,
    };
    let cost = match name {
        "prediction" => Cost {
            flops: Flops { prediction, ..Flops::default() },
            f32_flops: None,
            weight_bytes: 12_400_000,
            cache_bytes: 90_000 * tokens * batch,
        },
        "auxiliary" => Cost { flops: Flops { head: 0, ..cost.flops }, ..cost },
        _ => cost,
    };
    PhaseRecord { name: name.into(), samples_ns: Vec::new(), cost: Some(cost), parallel_regions: Some(400) }
}

/// One cell with `samples` rounds; times spread by about 1%, without trend.
pub fn cell(system: &str, batch: u32, prompt: u32, samples: u32) -> Cell {
    let (n, b) = (u64::from(prompt), u64::from(batch));
    let (kind, aux, phases) = match system.strip_prefix("OE1.1B-KVP-C-") {
        Some(size) => {
            let aux = format!("OE{size}");
            let prediction = 12_400_000 * (n - 1) * b;
            let phases = vec![
                phase("auxiliary", &aux, n - 1, b, 0),
                phase("prediction", &aux, n - 1, b, prediction),
                phase("base_step", "OE1.1B", 1, b, 0),
            ];
            (Kind::Kvp, Some(aux), phases)
        }
        None => {
            let kind = if system == "OE1.1B" { Kind::Base } else { Kind::Aux };
            (kind, None, vec![phase("prefill", system, n, b, 0)])
        }
    };
    let mut cell = Cell {
        weight_dtype: Some(Dtype::Bf16),
        precision: Some(Dtype::Bf16),
        compute_dtype: Some(Dtype::Bf16),
        extent: Some(Extent::FirstToken),
        threads: Some(2),
        isa: Some("avx512".into()),
        backend: Some("own".into()),
        kernels: vec!["gemm_bf16_avx512bf16_12x32".into()],
        rounds: Some((0..samples).collect()),
        round_positions: Some((0..samples).map(|i| i % 3).collect()),
        phases,
        drift: Some(Drift { before_gflops: Some(232.0), after_gflops: Some(231.0), ..Drift::default() }),
        memory: Some(Memory {
            peak_rss_bytes: Some(3 << 30),
            rss_anon_bytes: Some(210 << 20),
            minor_faults: Some(120),
            major_faults: Some(0),
        }),
        gate: Some(Gate { max_abs_err: 0.011, tolerance: 0.06, passed: true, longest: None, longest_skipped: None }),
        load_before: Some(1.9),
        load_after: Some(2.0),
        ..Cell::new(kind, system, "OE1.1B", aux.as_deref(), batch, prompt)
    };
    cell.paper_flops = Some(2 * parameters(aux.as_deref().unwrap_or(system)) * n * b);
    for i in 0..u64::from(samples) {
        let mut total = 50_000;
        for (j, phase) in (0u64..).zip(&mut cell.phases) {
            // 0..=10 permille, different for each phase and size, about the same in both halves of a list.
            let permille = 1000 + (i * 7 + j * 5 + n / 64 * 3 + b + system.len() as u64 * i) % 11;
            let ns = time_ns(&phase.cost.unwrap()) * permille / 1000;
            phase.samples_ns.push(ns);
            total += ns;
        }
        cell.samples_ns.push(total);
    }
    // Only the network that answers takes part in the next tokens.
    let answers = if kind == Kind::Kvp { "OE1.1B" } else { system };
    let step = time_ns(&phase("base_step", answers, 1, b, 0).cost.unwrap());
    let spread = |i: u64| step * (1000 + (i * 5 + system.len() as u64) % 7) / 1000;
    cell.decode = Some(Decode { steps: 2, samples_ns: (0..2 * u64::from(samples)).map(spread).collect() });
    cell
}

/// A run of five systems at two batches and two lengths.
pub fn run() -> Record {
    let mut record = Record {
        run: RunHeader {
            schema: SCHEMA.into(),
            run_id: "20261123-0527-sample".into(),
            started_at: Some("2026-11-23T05:27:00Z".into()),
            command: ["ttft", "bench", "--preset", "quick"].map(String::from).into(),
            git: Some(Git { revision: "7c62dcb0123456789abcdef0123456789abcdef0".into(), dirty: Some(false) }),
            ttft_version: Some("0.1.0".into()),
            rustc: Some("rustc 1.95.0".into()),
            settings: Settings {
                sampler: Some(Sampler::Rounds),
                scenario: Some("quick".into()),
                rounds: Some(6),
                threads: Some(2),
                precision: Some(Dtype::Bf16),
                extent: Some(Extent::FirstToken),
                seed: Some(1),
                ..Settings::default()
            },
            machine: Machine {
                cpu_model: Some("Example CPU 9000".into()),
                arch: Some("x86_64".into()),
                isa_features: ["avx2", "fma", "avx512f", "avx512bf16"].map(String::from).into(),
                physical_cores: Some(2),
                logical_cores: Some(2),
                memory_total_bytes: Some(24 << 30),
                os: Some("Linux 6.1".into()),
                ..Machine::default()
            },
            limits: Limits {
                peaks: [(Dtype::F32, 233.0), (Dtype::Bf16, 468.0)]
                    .map(|(dtype, gflops)| Peak { dtype, isa: Some("avx512".into()), gflops, in_use: None })
                    .into(),
                read_gb_per_s: Some(40.0),
                threads: Some(2),
                region_us: None,
                out_of_reach: None,
            },
            networks: None,
            predictions: None,
            notes: Vec::new(),
        },
        ..Record::default()
    };
    for (batch, prompt) in [(1, 64), (1, 256), (4, 64), (4, 256)] {
        for system in ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M", "OE270M", "OE1.1B-KVP-C-270M"] {
            record.cells.push(cell(system, batch, prompt, 6));
        }
    }
    // One cell that the machine disturbed.
    let disturbed = record.cells.last_mut().unwrap();
    disturbed.drift.as_mut().unwrap().after_gflops = Some(210.0);
    record.skipped.push(Skipped {
        id: "ttft/OE1.1B/base/b8/p1024".into(),
        reason: "10 samples would take 16 min, more than the 5 min that are left".into(),
        estimate_s: Some(960.0),
        estimate_bytes: None,
    });
    record
}

/// The run, saying which networks it ran: those of the made-up fidelity file.
pub fn with_identities(mut record: Record) -> Record {
    use crate::fidelity::samples::{identity, prediction};
    record.run.networks = Some(["OE1.1B", "OE450M", "OE270M"].map(identity).into());
    let named = |size: &str| Named { system: format!("OE1.1B-KVP-C-{size}"), prediction: prediction(size) };
    record.run.predictions = Some(["450M", "270M"].map(named).into());
    record
}

/// Records of one machine, a minute apart: three systems in one group, `processes` processes of `rounds` rounds, with known
/// standard deviations of the logarithm of occasions, processes and rounds.
pub fn occasions(count: u32, processes: u32, rounds: u32, deviations: [f64; 3], seed: u64) -> Vec<Record> {
    let mut normal = Normal::new(seed);
    let [of_occasion, of_process, of_round] = deviations;
    let template = run();
    (0..count)
        .map(|i| {
            let mut record = Record { run: template.run.clone(), ..Record::default() };
            record.run.run_id = format!("occasion-{i}");
            record.run.started_at = Some(format!("2026-11-23T{:02}:{:02}:00Z", 5 + i / 60, i % 60));
            let occasion = of_occasion * normal.draw();
            for system in ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"] {
                let mut cell = cell(system, 1, 64, processes * rounds);
                let whole = cell.samples_ns[0] as f64;
                // Samples differ from what the phases add up to.
                (cell.phases, cell.decode) = (Vec::new(), None);
                cell.processes = Some((0..processes).flat_map(|p| vec![p; rounds as usize]).collect());
                let mut own = 0.0;
                for (j, sample) in (0u32..).zip(&mut cell.samples_ns) {
                    if j % rounds == 0 {
                        own = of_process * normal.draw();
                    }
                    *sample = (whole * (occasion + own + of_round * normal.draw()).exp()) as u64;
                }
                record.cells.push(cell);
            }
            record
        })
        .collect()
}
