//! The trait behind which the element type of a run disappears, and what a run reports of its time.

use std::{any::Any, time::Duration};

use ttft_kernels::Mat;

use crate::{cache::NamedTensor, engine::Engine, error::Result, schedule::Step, spec::Phase};

/// What one phase took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// Its time.
    pub time: Duration,
    /// Parallel regions that it entered: starts of the engine's threads, none of an engine with one thread.
    pub regions: usize,
}

/// What a step of a schedule did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Rows of all sequences that it worked on: with those that LazyLLM revived.
    pub rows: usize,
    /// What it took.
    pub time: Duration,
    /// Parallel regions that it entered.
    pub regions: usize,
}

/// Where the time to first token went. The rest, `total` less the sum of the phases, is the checking of the ids; and, where the entries
/// of first tokens are kept, making those of tokens with which no call before has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes {
    /// Ids in memory to first token chosen for every sequence.
    pub total: Duration,
    /// In order of execution. KV prediction on one-token prompts has a base step alone.
    pub phases: Vec<PhaseTime>,
    /// What of the last phase the output head of the network that answers took.
    pub head: Duration,
}

/// The tokens of the prompts that a run chose before its base read them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen<'a> {
    /// Their positions, `[batch * count]`.
    pub kept: &'a [u32],
    /// What every token scored, `[batch * prompt]`.
    pub scores: &'a [f32],
}

/// A planned run: every buffer is allocated, weights are mapped.
pub trait Inference: Any + Send {
    /// Restarts from an empty cache, runs the prompts `ids` (`[batch * prompt]` row-major) and chooses the first token of
    /// every sequence.
    ///
    /// # Errors
    /// [`crate::Error::TokenCount`], [`crate::Error::TokenId`], [`crate::Error::Kernel`].
    fn first_token(&mut self, engine: &Engine, ids: &[u32]) -> Result<PhaseTimes>;

    /// The same, bit for bit, beginning behind the steps that `lender` has run on the same prompts: a run that was planned to lend
    /// to this system ([`crate::plan_lending`]), and whose last prompts these were. What it takes is no time to first token.
    ///
    /// # Errors
    /// Those of [`Inference::first_token`]; [`crate::Error::Loan`]: the other has read other prompts, has other networks, works in
    /// another type, or keeps nothing from which this run could begin.
    fn first_token_after(&mut self, engine: &Engine, ids: &[u32], lender: &dyn Inference) -> Result<PhaseTimes>;

    /// Appends the tokens last chosen and chooses the next, greedily, by the base network alone.
    ///
    /// # Errors
    /// [`crate::Error::CacheFull`] beyond the planned tokens, [`crate::Error::NotStarted`] before the first.
    fn next_token(&mut self, engine: &Engine) -> Result<Duration>;

    /// Logits `[batch * n, V]` of `n` tokens of each sequence that are given to follow its prompt, `[batch * n]`; up to as many
    /// as were planned. The run stays where [`Inference::first_token`] left it, so that others can be scored after it.
    ///
    /// # Errors
    /// [`crate::Error::NotBehindPrompt`] unless the first token was the last to be chosen; [`crate::Error::TokenCount`],
    /// [`crate::Error::TokenId`]; [`crate::Error::Spec`]: more than were planned.
    fn score(&mut self, engine: &Engine, ids: &[u32]) -> Result<Mat<'_, f32>>;

    /// Tokens chosen by the last call, `[batch]`.
    fn token_ids(&self) -> &[u32];

    /// Logits of the last call, `[batch, V]`.
    fn logits(&self) -> Mat<'_, f32>;

    /// What the last first token chose of the prompts, where tokens are dropped before the base runs.
    fn chosen(&self) -> Option<Chosen<'_>>;

    /// The steps of the last call, as far as it came, and what each did.
    fn trace(&self) -> (&[Step], &[Ran]);

    /// Keeps what [`Inference::cache_dump`] cannot recover: predicted keys before k_norm. Costs memory and time; off
    /// unless asked for.
    fn record(&mut self, on: bool);

    /// The caches as they stand, in f32, keys without RoPE, `[batch, kv_heads, len, head_dim]`: `base_cache.{i}.k|v` of a
    /// network; `kvp_cache.{i}.k|v`, `aux_cache.{j}.k|v`, `predicted.{i}.v|k_normed` (and `predicted.{i}.k` if
    /// recorded) of KV prediction; where nothing is predicted in a control, `kvp_cache` holds what the base read
    /// itself. Where tokens are dropped, `base_cache` holds those that the last call attended to, and `kept` (or `kept.{i}`, where
    /// layers differ) their positions, `[batch, len]`.
    fn cache_dump(&self) -> Vec<NamedTensor>;
}
