//! Scenarios: what a run measures, as data.
//!
//! A scenario names systems, a weight type and a grid of prompt lengths and batch sizes. Presets are the TOML files of
//! `bench/scenarios`; any other file of the same form will do.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use ttft_kernels::DType;
use ttft_models::{
    Extent, KvPrediction, Network, Precision, Pruned, Pruning, System,
    kv_prediction::layout::{Order, OwnTokens},
    zoo,
};
use ttft_reports::{
    schema::{Kind, Start},
    text::{printable, stand_in},
};

use crate::{
    catalog::{Asked, Catalog, TokenPruned},
    console::Misuse,
    identity, output,
};

/// Longest scenario file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The presets by name, with their text. A new preset is a file and a row here.
pub const PRESETS: &[(&str, &str)] = &[
    ("quick", include_str!("../scenarios/quick.toml")),
    ("grid", include_str!("../scenarios/grid.toml")),
    ("table5", include_str!("../scenarios/table5.toml")),
    ("table5-3b", include_str!("../scenarios/table5-3b.toml")),
    ("fig1", include_str!("../scenarios/fig1.toml")),
    ("fig5b", include_str!("../scenarios/fig5b.toml")),
    ("shared", include_str!("../scenarios/shared.toml")),
    ("base-tokens", include_str!("../scenarios/base-tokens.toml")),
    ("rivals", include_str!("../scenarios/rivals.toml")),
    ("controls", include_str!("../scenarios/controls.toml")),
    ("cold", include_str!("../scenarios/cold.toml")),
    ("calibrate", include_str!("../scenarios/calibrate.toml")),
    ("llama", include_str!("../scenarios/llama.toml")),
    ("qwen", include_str!("../scenarios/qwen.toml")),
    ("smollm", include_str!("../scenarios/smollm.toml")),
    ("long", include_str!("../scenarios/long.toml")),
];

/// A scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in records.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Pairs (each stands for its base alone, its auxiliary alone and the KV prediction) and single networks: a
    /// layer-pruned one is compared with the network it was made from, any other with `base`; and networks on part of their
    /// tokens (`OE1.1B-RP-0.50`, or by a pair's auxiliary `OE1.1B-KVP-C-450M-SpecPrefill-0.40`). What stands here twice is measured twice, as a control. It may be missing where there are
    /// pairs of one's own.
    #[serde(default)]
    pub systems: Vec<String>,
    /// The user's own pairs, measured before the others.
    #[serde(default)]
    pub pair: Vec<Asked>,
    /// The network that single canonical networks are compared with; by default each stands for itself.
    pub base: Option<String>,
    /// Type of the synthetic weights: `f32`, `f16` or `bf16`.
    #[serde(deserialize_with = "named::<_, DType>")]
    pub dtype: DType,
    /// Type of activations and caches: `f32` or `bf16`; by default bf16 for bf16 weights, else f32.
    #[serde(default, deserialize_with = "maybe_named::<_, Precision>")]
    pub precision: Option<Precision>,
    /// `first_token` (default) or `full_network`.
    #[serde(default, deserialize_with = "maybe_named::<_, Extent>")]
    pub extent: Option<Extent>,
    /// `warm` (default) or `cold`: whether weights are in memory when the clock starts.
    #[serde(default, deserialize_with = "maybe_named::<_, Start>")]
    pub start: Option<Start>,
    /// Prompt lengths.
    pub lengths: Vec<usize>,
    /// Batch sizes.
    pub batches: Vec<usize>,
    /// Samples of each cell (criterion takes at least 10).
    pub rounds: u32,
    /// Tokens after the first that are timed with every sample.
    #[serde(default)]
    pub decode: u32,
    /// Seconds that all of it may take, weights included.
    pub budget_s: f64,
    /// Seed of weights and prompts.
    #[serde(default)]
    pub seed: u64,
    /// SHA-256 of the file's bytes, lower-case hexadecimal.
    #[serde(skip)]
    pub sha256: String,
    /// What the names of its systems mean.
    #[serde(skip)]
    pub catalog: Catalog,
}

/// A value of this crate's neighbours that scenarios and the command line give by name.
pub trait Named: Copy + 'static {
    /// Every value with its name.
    const NAMES: &'static [(&'static str, Self)];

    /// The value of a name.
    ///
    /// # Errors
    /// An unknown name, with the list.
    fn from_name(name: &str) -> Result<Self, String> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, v)| *v).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(n, _)| *n).collect();
            format!("unknown name '{name}', expected one of: {}", names.join(", "))
        })
    }
}

impl Named for DType {
    const NAMES: &'static [(&'static str, Self)] = &[("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
}

impl Named for Precision {
    const NAMES: &'static [(&'static str, Self)] = &[("f32", Precision::F32), ("bf16", Precision::Bf16)];
}

impl Named for Extent {
    const NAMES: &'static [(&'static str, Self)] =
        &[("first_token", Extent::FirstToken), ("full_network", Extent::FullNetwork)];
}

impl Named for Start {
    const NAMES: &'static [(&'static str, Self)] = &[("warm", Start::Warm), ("cold", Start::Cold)];
}

impl Named for ttft_kernels::Backend {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("ttft", ttft_kernels::Backend::Ours),
        ("gemm", ttft_kernels::Backend::Gemm),
        #[cfg(all(target_os = "macos", feature = "accelerate"))]
        ("accelerate", ttft_kernels::Backend::Accelerate),
    ];
}

fn named<'de, D: serde::Deserializer<'de>, T: Named>(d: D) -> Result<T, D::Error> {
    T::from_name(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn maybe_named<'de, D: serde::Deserializer<'de>, T: Named>(d: D) -> Result<Option<T>, D::Error> {
    named(d).map(Some)
}

/// One system of a scenario: what is timed in every (batch, prompt) group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// Base alone, auxiliary alone or KV prediction.
    pub kind: Kind,
    /// Name in the zoo, of the network or the pair.
    pub system: String,
    /// The base it is compared with.
    pub base: String,
    /// The auxiliary of a KV prediction, none where it shares layers of its base; or the network that chooses the tokens.
    pub aux: Option<String>,
    /// 1, or higher for one that is measured again beside itself.
    pub copy: u32,
    /// What is in memory when its clock starts.
    #[serde(default)]
    pub start: Start,
}

impl Arm {
    /// `ttft/OE1.1B-KVP-C-450M/kvp/b4/p256`; of a copy with its number behind, of a cold start with that word.
    pub fn id(&self, batch: usize, prompt: usize) -> String {
        let copy = if self.copy > 1 { format!("/{}", self.copy) } else { String::new() };
        let start = if self.start == Start::Cold { "/cold" } else { "" };
        format!("ttft/{}/{}/b{batch}/p{prompt}{copy}{start}", self.system, self.kind.name())
    }

    /// The networks it runs.
    pub fn networks(&self) -> Vec<&str> {
        match &self.aux {
            Some(aux) => vec![&self.base, aux],
            None if self.pruning().is_some() || self.kind == Kind::Kvp => vec![&self.base],
            None => vec![&self.system],
        }
    }

    /// The system, out of its networks in that order and its predictor.
    ///
    /// # Errors
    /// No network.
    pub fn assemble(
        &self,
        networks: Vec<Arc<Network>>,
        predictor: Option<(PathBuf, OwnTokens, Order)>,
    ) -> Result<System> {
        let mut networks = networks.into_iter();
        let base = networks.next().with_context(|| format!("{}: a system without a network", self.system))?;
        Ok(match (predictor, self.pruning()) {
            (Some((dir, own, order)), _) => {
                System::KvPrediction(KvPrediction::new(base, networks.next(), &dir)?.reading(own).ordered(order))
            }
            (None, Some(pruning)) => System::Pruned(Pruned { aux: networks.next(), ..Pruned::new(base, pruning) }),
            (None, None) => System::Network(base),
        })
    }

    /// The token pruning it is, if it is one.
    pub fn pruning(&self) -> Option<Pruning> {
        match self.kind {
            Kind::Base | Kind::Aux | Kind::Kvp => None,
            _ => Pruning::behind(&self.system).map(|(_, pruning)| pruning),
        }
    }
}

/// What a list of systems stands for, each network once: bases first, then smaller networks, then KV predictions, then
/// what stands in the list again.
///
/// # Errors
/// A name that is not in the zoo.
pub fn arms(catalog: &Catalog, base: Option<&str>, systems: &[impl AsRef<str>]) -> Result<Vec<Arm>> {
    if let Some(base) = base {
        zoo::network(base).context("base")?;
    }
    let names: Vec<&str> = systems.iter().map(AsRef::as_ref).collect();
    let mut arms: Vec<Arm> = Vec::new();
    for name in base.iter().chain(&names) {
        for arm in arms_of(catalog, name, base).context("systems")? {
            if !arms.iter().any(|a| (&a.system, &a.aux) == (&arm.system, &arm.aux)) {
                arms.push(arm);
            }
        }
    }
    arms.sort_by_key(|a| a.kind);
    for (i, name) in names.iter().enumerate() {
        let before = names[..i].iter().filter(|n| *n == name).count();
        let again = arms.iter().find(|a| a.system == *name).filter(|_| before > 0).cloned();
        arms.extend(again.map(|a| Arm { copy: before as u32 + 1, ..a }));
    }
    Ok(arms)
}

/// What one name of the list stands for.
fn arms_of(catalog: &Catalog, name: &str, base: Option<&str>) -> Result<Vec<Arm>> {
    let alone = |system: &str, base: &str| Arm {
        kind: if system == base { Kind::Base } else { Kind::Aux },
        system: system.into(),
        base: base.into(),
        aux: None,
        copy: 1,
        start: Start::Warm,
    };
    if let Ok(p) = catalog.pair(name) {
        let kvp = Arm { kind: Kind::Kvp, aux: p.aux.clone(), ..alone(name, &p.base) };
        return Ok([&p.base].into_iter().chain(&p.aux).map(|n| alone(n, &p.base)).chain([kvp]).collect());
    }
    if Pruning::behind(name).is_some() {
        let TokenPruned { base, aux, pruning } = catalog.pruned(name).with_context(|| name.to_owned())?;
        let kind = match pruning {
            Pruning::Random(_) => Kind::RandomPruned,
            Pruning::Static(_) => Kind::StaticPruned,
            Pruning::Lazy { .. } => Kind::LazyPruned,
            Pruning::Spec(_) => Kind::SpecPrefill,
            Pruning::Gem(_) => Kind::GemFilter,
        };
        return Ok(vec![alone(&base, &base), Arm { kind, aux, ..alone(name, &base) }]);
    }
    if catalog.network(name).is_err() {
        let [networks, pairs, prunings] = [&zoo::NETWORKS[..], &zoo::PAIRS, &zoo::PRUNINGS].map(|n| n.join(", "));
        let rivals = zoo::RIVALS.join(", ");
        bail!(
            "'{name}' is neither a network ({networks}) nor a pair ({pairs}) nor a network that shares its first k layers with \
             -KVP-Sk or -KVP-Skown behind its name, either of the two with -mM and -sS behind its name or without (M last and S \
             first tokens that the base reads itself; -sSkept if the latter are kept) and a pair also with -pipelined at the end, nor a network with a token pruning ({prunings}) behind its name, nor a rival \
             ({rivals})"
        );
    }
    let base = zoo::pruned_from(name).or(base).unwrap_or(name);
    Ok(vec![alone(base, base), alone(name, base)])
}

/// The text of a preset by name, or of a scenario file by path.
///
/// # Errors
/// No such preset or file.
pub fn text(name: &str) -> Result<String> {
    if let Some((_, text)) = PRESETS.iter().find(|(n, _)| *n == name) {
        return Ok((*text).to_owned());
    }
    if !Path::new(name).exists() {
        let presets: Vec<_> = PRESETS.iter().map(|(n, _)| *n).collect();
        let presets = presets.join(", ");
        bail!(Misuse(format!("no preset and no file is called '{name}'; the presets are: {presets}")));
    }
    let cannot = || format!("{name}: cannot read the scenario");
    let mut text = Vec::new();
    File::open(name).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut text)).with_context(cannot)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "{name}: it is longer than {MAX_BYTES} bytes, so it is no scenario");
    if let Some(what) = stand_in(&text) {
        bail!("scenario {name}: {what}");
    }
    String::from_utf8(text).with_context(cannot)
}

impl Scenario {
    /// A preset by name, or a file by path.
    ///
    /// # Errors
    /// No such preset or file; what is wrong in the file, and where.
    pub fn load(name: &str) -> Result<Scenario> {
        let what = if PRESETS.iter().any(|(n, _)| *n == name) { "preset" } else { "scenario" };
        let parsed = Self::parse(&text(name)?).and_then(Scenario::resolved);
        parsed.with_context(|| format!("{what} {name}"))
    }

    /// A scenario from the text of its file. If it has pairs of its own, these are not looked at yet, nor what names them.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Scenario> {
        let mut s: Scenario = toml::from_str(text.strip_prefix('\u{feff}').unwrap_or(text))?;
        s.sha256 = identity::sha256(text);
        ensure!(
            output::is_file_name(&s.name) && !s.name.contains(char::is_whitespace),
            "name: expected a word that can name a file (no '/', '\\' or ':', no '.' at its start), found '{}'",
            printable(&s.name)
        );
        ensure!(!s.systems.is_empty() || !s.pair.is_empty(), "systems: the list is empty, and there is no [[pair]]");
        for (what, list, most) in [("lengths", &s.lengths, 1 << 17), ("batches", &s.batches, 1 << 12)] {
            ensure!(!list.is_empty(), "{what}: the list is empty");
            for &n in list {
                ensure!((1..=most).contains(&n), "{what}: expected 1 to {most}, found {n}");
            }
        }
        ensure!((1..=1_000_000).contains(&s.rounds), "rounds: expected 1 to 1000000, found {}", s.rounds);
        ensure!(s.decode <= 1000, "decode: expected 0 to 1000, found {}", s.decode);
        ensure!(
            s.budget_s > 0.0 && s.budget_s.is_finite(),
            "budget_s: expected a positive number, found {}",
            s.budget_s
        );
        if s.pair.is_empty() {
            s.arms()?;
        }
        Ok(s)
    }

    /// Looks up its own pairs, which become the first of its systems.
    fn resolved(mut self) -> Result<Scenario> {
        if self.pair.is_empty() {
            return Ok(self);
        }
        let (catalog, names) = Catalog::new(&self.pair).context("pair")?;
        if let Some(dtype) = catalog.dtype()? {
            ensure!(dtype == self.dtype, "dtype: the weights of its pairs are {dtype}: write dtype = \"{dtype}\"");
        }
        self.catalog = catalog;
        self.systems.splice(..0, names);
        self.arms()?;
        Ok(self)
    }

    /// The same grid for one pair, or one network, instead of its systems. Weights that lie in folders decide the type.
    ///
    /// # Errors
    /// As [`Catalog::new`].
    pub fn of(mut self, asked: Asked) -> Result<Scenario> {
        let (catalog, names) = Catalog::new(&[asked])?;
        self.dtype = catalog.dtype()?.unwrap_or(self.dtype);
        (self.catalog, self.systems, self.base) = (catalog, names, None);
        Ok(self)
    }

    /// The same with the first tokens kept of every KV prediction that has some, which are then called so.
    ///
    /// # Errors
    /// None has any.
    pub fn keeping_sinks(mut self) -> Result<Scenario> {
        let mut some = false;
        for name in &mut self.systems {
            let Ok(pair) = self.catalog.pair(name) else { continue };
            // A pair of one's own is found by its whole name.
            let (plain, order) = if self.catalog.holds(name) {
                (name.as_str(), Order::InTurn)
            } else {
                let (rest, order) = Order::strip(name);
                (OwnTokens::strip(rest).0, order)
            };
            if pair.own.first > 0 {
                *name = format!("{plain}{}{}", OwnTokens { kept: true, ..pair.own }.suffix(), order.suffix());
                some = true;
            }
        }
        ensure!(
            some,
            "--keep-sinks: no system of this scenario has first tokens that its base reads itself: name some with -sS behind, such as {}",
            zoo::SHARED[0]
        );
        Ok(self)
    }

    /// What is timed in every group.
    ///
    /// # Errors
    /// A name that is not in the zoo.
    pub fn arms(&self) -> Result<Vec<Arm>> {
        let arms = arms(&self.catalog, self.base.as_deref(), &self.systems)?;
        Ok(arms.into_iter().map(|arm| Arm { start: self.start(), ..arm }).collect())
    }

    /// The (batch, prompt) groups, cheapest first.
    pub fn groups(&self) -> Vec<(usize, usize)> {
        let mut groups: Vec<_> = self.batches.iter().flat_map(|&b| self.lengths.iter().map(move |&n| (b, n))).collect();
        groups.sort_by_key(|&(b, n)| (b * n, n));
        groups.dedup();
        groups
    }

    /// The type of activations and caches in force.
    pub fn precision(&self) -> Precision {
        self.precision.unwrap_or(Precision::natural(self.dtype))
    }

    /// The start in force.
    pub fn start(&self) -> Start {
        self.start.unwrap_or_default()
    }

    /// The extent in force.
    pub fn extent(&self) -> Extent {
        self.extent.unwrap_or(Extent::FirstToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "x"
        description = "d"
        systems = ["OE1.1B-KVP-C-450M", "OE270M", "OE1.1B-KVP-C-270M"]
        dtype = "bf16"
        lengths = [64, 8]
        batches = [2, 1]
        rounds = 3
        budget_s = 10
    "#;

    #[test]
    fn presets_parse_and_keep_their_name() {
        for (name, _) in PRESETS {
            assert_eq!(Scenario::load(name).unwrap().name, *name);
        }
    }

    #[test]
    fn shared_networks_are_measured_once() {
        let ids: Vec<_> = Scenario::parse(GOOD).unwrap().arms().unwrap().iter().map(|a| a.id(4, 256)).collect();
        assert_eq!(
            ids,
            [
                "ttft/OE1.1B/base/b4/p256",
                "ttft/OE270M/base/b4/p256",
                "ttft/OE450M/aux/b4/p256",
                "ttft/OE1.1B-KVP-C-450M/kvp/b4/p256",
                "ttft/OE1.1B-KVP-C-270M/kvp/b4/p256",
            ]
        );
    }

    fn ids(systems: &str) -> Vec<String> {
        let text = GOOD.replace(r#"systems = ["OE1.1B-KVP-C-450M", "OE270M", "OE1.1B-KVP-C-270M"]"#, systems);
        Scenario::parse(&text).unwrap().arms().unwrap().iter().map(|a| format!("{} {}", a.id(1, 8), a.base)).collect()
    }

    #[test]
    fn smaller_networks_are_compared_with_their_base() {
        assert_eq!(
            ids(r#"systems = ["OE1.1B-LP-0.50"]"#),
            ["ttft/OE1.1B/base/b1/p8 OE1.1B", "ttft/OE1.1B-LP-0.50/aux/b1/p8 OE1.1B"]
        );
        assert_eq!(
            ids("base = \"OE1.1B\"\nsystems = [\"OE450M\"]"),
            ["ttft/OE1.1B/base/b1/p8 OE1.1B", "ttft/OE450M/aux/b1/p8 OE1.1B"]
        );
        assert_eq!(ids(r#"systems = ["OE450M"]"#), ["ttft/OE450M/base/b1/p8 OE450M"]);
    }

    #[test]
    fn token_prunings_are_compared_with_their_network() {
        assert_eq!(
            ids(r#"systems = ["OE270M-L0.75-0.10", "OE270M-RP-0.33"]"#),
            [
                "ttft/OE270M/base/b1/p8 OE270M",
                "ttft/OE270M-RP-0.33/random_pruned/b1/p8 OE270M",
                "ttft/OE270M-L0.75-0.10/lazy_pruned/b1/p8 OE270M",
            ]
        );
    }

    #[test]
    fn rivals_are_compared_with_the_network_that_answers() {
        assert_eq!(
            ids(r#"systems = ["OE1.1B-KVP-C-450M-SpecPrefill-0.30-a2", "OE1.1B-GemFilter-3-64", "OE1.1B-SP-0.50"]"#),
            [
                "ttft/OE1.1B/base/b1/p8 OE1.1B",
                "ttft/OE1.1B-SP-0.50/static_pruned/b1/p8 OE1.1B",
                "ttft/OE1.1B-KVP-C-450M-SpecPrefill-0.30-a2/spec_prefill/b1/p8 OE1.1B",
                "ttft/OE1.1B-GemFilter-3-64/gem_filter/b1/p8 OE1.1B",
            ]
        );
        let arms = Scenario::load("rivals").unwrap().arms().unwrap();
        let chooses = arms.iter().find(|a| a.kind == Kind::SpecPrefill).unwrap();
        assert_eq!(chooses.networks(), ["OE1.1B", "OE450M"]);
        let error = |name: &str| format!("{:#}", arms_of(&Catalog::default(), name, None).unwrap_err());
        for (name, word) in [
            ("OE1.1B-SpecPrefill-0.40", "auxiliary"),
            ("OE1.1B-GemFilter-28-64", "0 to 27"),
            ("OE1.1B-GemFilter-28", "GemFilter-11-128"),
        ] {
            assert!(error(name).contains(word), "{}", error(name));
        }
    }

    #[test]
    fn sinks_are_kept_where_there_are_some() {
        let scenario = Scenario::load("shared").unwrap().keeping_sinks().unwrap();
        assert_eq!(scenario.systems[0], "OE1.1B-KVP-S10-m15-s1kept");
        let own = scenario.catalog.pair(&scenario.systems[0]).unwrap().own;
        assert_eq!(own, OwnTokens { last: 15, first: 1, kept: true });
        assert_eq!(scenario.keeping_sinks().unwrap().systems[0], "OE1.1B-KVP-S10-m15-s1kept");
        let pipelined = GOOD.replace("OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-450M-m2-s1-pipelined");
        let scenario = Scenario::parse(&pipelined).unwrap().keeping_sinks().unwrap();
        assert_eq!(scenario.systems[0], "OE1.1B-KVP-C-450M-m2-s1kept-pipelined");
        let e = Scenario::load("quick").unwrap().keeping_sinks().unwrap_err().to_string();
        assert!(e.contains("--keep-sinks") && e.contains("-sS"), "{e}");
    }

    #[test]
    fn shared_layers_have_no_auxiliary_and_tokens_of_the_base_no_networks() {
        assert_eq!(
            ids(r#"systems = ["OE1.1B-KVP-S19own-m15-s1", "OE1.1B-KVP-C-450M-m16", "OE1.1B-KVP-C-450M"]"#),
            [
                "ttft/OE1.1B/base/b1/p8 OE1.1B",
                "ttft/OE450M/aux/b1/p8 OE1.1B",
                "ttft/OE1.1B-KVP-S19own-m15-s1/kvp/b1/p8 OE1.1B",
                "ttft/OE1.1B-KVP-C-450M-m16/kvp/b1/p8 OE1.1B",
                "ttft/OE1.1B-KVP-C-450M/kvp/b1/p8 OE1.1B",
            ]
        );
    }

    #[test]
    fn what_is_listed_twice_is_measured_twice() {
        assert_eq!(
            ids(r#"systems = ["OE1.1B", "OE1.1B", "OE1.1B-KVP-SELF"]"#),
            [
                "ttft/OE1.1B/base/b1/p8 OE1.1B",
                "ttft/OE1.1B-KVP-SELF/kvp/b1/p8 OE1.1B",
                "ttft/OE1.1B/base/b1/p8/2 OE1.1B",
            ]
        );
    }

    /// Every cell of the paper's table is a cell of the preset, so that the two can be compared.
    #[test]
    fn table_5_is_the_papers() {
        let scenario = Scenario::load("table5").unwrap();
        let arms = scenario.arms().unwrap();
        let ours: Vec<_> = arms.iter().map(|a| a.id(64, 59)).collect();
        let paper = ttft_reports::paper::table5().cells;
        for cell in &paper {
            assert!(ours.contains(&cell.id), "{} is not measured", cell.id);
        }
        // And the paper's two canonical pairs in the pipelined order.
        let more = arms.iter().filter(|a| a.system.ends_with("-pipelined")).count();
        assert_eq!((arms.len(), more, scenario.groups()), (paper.len() + 2, 2, vec![(64, 59)]));
    }

    #[test]
    fn groups_grow() {
        assert_eq!(Scenario::parse(GOOD).unwrap().groups(), [(1, 8), (2, 8), (1, 64), (2, 64)]);
    }

    #[test]
    fn cold_starts_have_ids_of_their_own() {
        let ids =
            |text: &str| Scenario::parse(text).unwrap().arms().unwrap().iter().map(|a| a.id(1, 8)).collect::<Vec<_>>();
        let cold = ids(&GOOD.replace("rounds", "start = \"cold\"\n rounds"));
        assert_eq!(cold[0], "ttft/OE1.1B/base/b1/p8/cold");
        assert!(ids(GOOD).iter().zip(&cold).all(|(warm, cold)| format!("{warm}/cold") == *cold));
        assert_eq!(ids(&GOOD.replace("rounds", "start = \"warm\"\n rounds")), ids(GOOD));
    }

    #[test]
    fn faults_are_named() {
        for (from, to, word) in [
            ("\"bf16\"", "\"fp8\"", "f32, f16, bf16"),
            ("OE270M", "OE7B", "neither a network"),
            ("rounds = 3", "rounds = 3\nstart = \"hot\"", "warm, cold"),
            ("[64, 8]", "[]", "lengths"),
            ("[2, 1]", "[0]", "batches"),
            ("rounds = 3", "rounds = 0", "rounds"),
            ("budget_s = 10", "budget_s = -1", "budget_s"),
            ("rounds = 3", "rounds = 3\nround = 4", "round"),
            ("name = \"x\"", "name = \"x y\"", "name"),
            ("name = \"x\"", "name = \"a/b\"", "name"),
            ("name = \"x\"", "name = \"../../x\"", "name"),
            ("name = \"x\"", "name = \"/tmp/x\"", "name"),
            ("name = \"x\"", "name = \"..\"", "name"),
            ("name = \"x\"", "name = \"a\\u001bb\"", "name"),
        ] {
            let text = GOOD.replace(from, to);
            let e = format!("{:#}", Scenario::parse(&text).unwrap_err());
            assert!(e.contains(word), "{to}: {e}");
        }
        assert!(Scenario::load("quik").unwrap_err().to_string().contains("quick, grid"));
    }
}
