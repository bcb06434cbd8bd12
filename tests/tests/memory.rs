//! The memory plan against an allocator that counts.

// An allocator is unsafe to implement; this one hands everything to another.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout as Block, System as SystemAllocator},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use ttft_kernels::{Backend, Isa};
use ttft_models::{
    DType, Extent, KvPrediction, Network, Precision, Pruned, RunSpec, System,
    cost::CostSystem,
    fit,
    kv_prediction::layout::{Input, Layout, Order, Origin, OwnTokens},
    memory, memory_of, memory_of_scoring, plan_scoring, synth,
};
use ttft_tests::{
    engine,
    models::{fixture, load, systems},
};

static COUNTING: &StatsAlloc<SystemAllocator> = &INSTRUMENTED_SYSTEM;

/// Counts, and knows the most that was held at once.
struct Peak {
    most: AtomicUsize,
}

#[global_allocator]
static PEAK: Peak = Peak { most: AtomicUsize::new(0) };

impl Peak {
    /// Bytes that are held.
    fn held() -> usize {
        let stats = COUNTING.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    }

    /// Runs `f`; the most bytes that it held at once.
    fn of<T>(&self, f: impl FnOnce() -> T) -> (u64, T) {
        let before = Peak::held();
        self.most.store(before, SeqCst);
        let out = f();
        ((self.most.load(SeqCst) - before) as u64, out)
    }
}

// SAFETY: blocks are those of another allocator.
unsafe impl GlobalAlloc for Peak {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        // SAFETY: the caller's.
        let at = unsafe { COUNTING.alloc(block) };
        self.most.fetch_max(Peak::held(), SeqCst);
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        // SAFETY: the caller's.
        unsafe { COUNTING.dealloc(at, block) }
    }

    unsafe fn alloc_zeroed(&self, block: Block) -> *mut u8 {
        // SAFETY: the caller's.
        let at = unsafe { COUNTING.alloc_zeroed(block) };
        self.most.fetch_max(Peak::held(), SeqCst);
        at
    }

    unsafe fn realloc(&self, at: *mut u8, block: Block, size: usize) -> *mut u8 {
        // SAFETY: the caller's.
        let at = unsafe { COUNTING.realloc(at, block, size) };
        self.most.fetch_max(Peak::held(), SeqCst);
        at
    }
}

/// One test, as the counters belong to the process.
#[test]
fn plans_are_what_is_allocated_and_weights_stay_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let models = load("A");
    let mut config = models.base.config().clone();
    config.vocab = 40_000;
    let spec = synth::Spec::custom("wide", config, DType::BF16, 0);
    spec.make(dir.path(), &|_, _| ()).unwrap();
    let region = Region::new(COUNTING);
    let wide = Network::load(dir.path()).unwrap();
    let held = region.change();
    let held = held.bytes_allocated - held.bytes_deallocated;
    assert!(wide.mapped_bytes() > 2_700_000 && held < 50_000, "{held} bytes for {} mapped", wide.mapped_bytes());

    // A byte more of header, and no matrix lies where kernels can read it: it is held twice, as the network says.
    let odd = dir.path().join("odd");
    std::fs::create_dir(&odd).unwrap();
    std::fs::copy(dir.path().join("config.json"), odd.join("config.json")).unwrap();
    let file = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let (len, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let shifted = [&(header.len() as u64 + 1).to_le_bytes(), header, b" ", data].concat();
    std::fs::write(odd.join("model.safetensors"), shifted).unwrap();
    let region = Region::new(COUNTING);
    let copied = Network::load(&odd).unwrap();
    let held = region.change();
    let held = (held.bytes_allocated - held.bytes_deallocated) as u64;
    let range = copied.copied_bytes()..copied.copied_bytes() + 50_000;
    assert!(copied.copied_bytes() == copied.mapped_bytes() && range.contains(&held), "{held} bytes, {range:?}");
    drop(copied);

    // More rows than are worked on at once.
    let longest = 700;
    let e = engine(Isa::best(), 1, Backend::Ours);
    let [base, aux, kvp] = systems(&models);
    let pruned = |p: &str| System::Pruned(Pruned::new(Arc::clone(&models.base), p.parse().unwrap()));
    let pruned = ["RP-0.50", "SP-0.25", "L0.75-0.10", "GemFilter-1-5"].map(pruned);
    let spec_prefill = ["SpecPrefill-0.40-a3-c4", "SpecPrefill-0.40-a1"].map(|name| {
        let base = Arc::clone(&models.base);
        System::Pruned(Pruned { aux: models.aux.clone(), ..Pruned::new(base, name.parse().unwrap()) })
    });
    let pruned = pruned.into_iter().chain(spec_prefill);
    // Shared layers from keys and values, from hidden states, and by the layers' own projections.
    let load_shared = |to: &Path| KvPrediction::new(Arc::clone(&models.base), None, to).unwrap();
    let shared = [Input::Hidden, Input::Own].map(|input| {
        let (to, config) = (dir.path().join(format!("{input:?}")), models.base.config().clone());
        let layout = Layout::shared(config.layers.len(), 2, input);
        let spec = synth::Spec::custom_predictor("p", config, None, layout, DType::F32, 0);
        spec.make(&to, &|_, _| ()).unwrap();
        load_shared(&to)
    });
    let shared = shared.into_iter().chain([load_shared(&fixture("A2").join("predictor")), models.clone()]);
    let shared = shared.flat_map(|s| {
        [(1, 0, false), (4, 2, false), (4, 2, true)]
            .map(|(last, first, kept)| System::KvPrediction(s.clone().reading(OwnTokens { last, first, kept })))
    });
    let pipelined = System::KvPrediction(models.clone().ordered(Order::Pipelined));
    let systems = [base, aux, kvp, pipelined, System::Network(Arc::new(wide))].into_iter().chain(pruned).chain(shared);
    for system in systems {
        for precision in [Precision::F32, Precision::Bf16] {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                for (batch, prompt, generate) in [(1, 1, 1), (2, 9, 4), (3, longest, 2)] {
                    let spec = RunSpec { batch, prompt, generate, precision, extent };
                    let shapes = CostSystem::of(&system);
                    assert_eq!(memory_of(&shapes, &spec).allocated(), memory(&system, &spec).allocated());
                    // With tokens to be scored, where there can be some.
                    let lazy = matches!(&system, System::Pruned(s) if s.pruning.to_string().starts_with('L'));
                    let scored = if lazy || extent == Extent::FullNetwork { 0 } else { generate - 1 };
                    let planned = memory_of_scoring(&shapes, &spec, scored);
                    let region = Region::new(COUNTING);
                    let mut run = plan_scoring(&system, &spec, scored).unwrap();
                    let held = region.change();
                    let held = (held.bytes_allocated - held.bytes_deallocated) as u64;
                    // What is not counted: ids, tables of layers.
                    let slack = 16_384 + 4 * (batch * prompt) as u64;
                    let range = planned.allocated()..planned.allocated() + slack;
                    assert!(range.contains(&held), "{spec:?}: {planned:?}, {held} held");

                    // A token allocates next to nothing: everything was planned.
                    let ids = vec![1; batch * prompt];
                    run.first_token(&e, &ids).unwrap();
                    let region = Region::new(COUNTING);
                    run.first_token(&e, &ids).unwrap();
                    let change = region.change();
                    assert!(change.bytes_allocated < 65_536, "{spec:?}: {change:?}");
                }
            }
        }
    }

    // A fit holds what it said, less what it only has for a moment: raw keys and values, a cache, the equations.
    for (window, precision) in [(16, Precision::F32), (2 * longest, Precision::Bf16)] {
        let layout = Layout::shared(models.base.config().layers.len(), 2, Input::Hidden);
        let spec = fit::Spec { layout, target: fit::Target::Raw, window, precision };
        let said = spec.needs(models.base.config(), None);
        let ids = vec![1; spec.windows() * window];
        let region = Region::new(COUNTING);
        let mut fit = fit::Fit::new(Arc::clone(&models.base), None, spec).unwrap();
        fit.add(&e, &ids).unwrap();
        let change = region.change();
        let held = (change.bytes_allocated - change.bytes_deallocated) as u64;
        assert!(held <= said.memory && held > said.memory / 2, "{held} of {said:?}");
        assert!(said.sums < held, "{said:?}");
    }

    // What it has for a moment is counted too, and beside it what is held meanwhile: while it reads, solves and scores.
    let layers = models.base.config().layers.len();
    let from = |layer| Some(Origin { layer, input: Input::KeysAndValues });
    let own = |shared: usize| Layout {
        shared: Some(shared),
        layers: (0..layers).map(|i| if i < shared { None } else { from(i % shared) }).collect(),
    };
    for (layout, target) in [
        (Layout::shared(layers, 2, Input::Hidden), fit::Target::Raw),
        (Layout::shared(layers, 2, Input::Hidden), fit::Target::HeadRms),
        (own(2), fit::Target::HeadRms),
        (own(layers - 1), fit::Target::Raw),
        (own(1), fit::Target::Raw),
    ] {
        for (window, precision) in [(16, Precision::F32), (longest, Precision::Bf16)] {
            let spec = fit::Spec { layout: layout.clone(), target, window, precision };
            let (said, what) = (spec.needs(models.base.config(), None), format!("{spec:?}"));
            let ids: Vec<u32> = (0..spec.windows() * window).map(|i| (i * i * 7 + i) as u32 % 90).collect();
            let whole = || {
                let mut fit = fit::Fit::new(Arc::clone(&models.base), None, spec.clone()).unwrap();
                fit.add(&e, &ids).unwrap();
                let maps = fit.solve(1.0, DType::F32).unwrap();
                fit.score(&e, &maps, &mut fit::Explained::default(), &ids).unwrap();
            };
            // Buffers of the engine and of the library that solves outlive a fit: from the second one on they are there.
            whole();
            let (peak, ()) = PEAK.of(whole);
            assert!(peak <= said.memory && peak > said.memory / 2, "{peak} of {said:?}: {what}");
        }
    }
}
