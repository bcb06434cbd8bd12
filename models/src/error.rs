use std::path::PathBuf;

/// What loading, planning, running or fitting a model can refuse. Messages about files name the file, and the tensor or key at
/// fault; messages about requests say what was expected and what was found, or what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file or folder.
    #[error("{}: cannot {doing}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted: "map", "create", ...
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A JSON file that does not parse, or lacks a field.
    #[error("{}: not the JSON expected: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A safetensors header that is truncated, lies, or does not parse.
    #[error("{}: bad safetensors header: {reason}", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that a folder, or an index of shards, promises.
    #[error("{}: missing; {wanted_by}", .path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// Who asks for it.
        wanted_by: String,
    },
    /// A tensor that the configuration asks for.
    #[error("{}: tensor '{tensor}' is missing", .path.display())]
    MissingTensor {
        /// The file, or the folder of shards.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A storage type that is not supported.
    #[error("{}: tensor '{tensor}': expected dtype F32, F16 or BF16, found {found}", .path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type as the file spells it.
        found: String,
    },
    /// A tensor whose shape is not the one that the configuration implies.
    #[error("{}: tensor '{tensor}': expected shape {expected:?}, found {found:?}", .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// From the configuration.
        expected: Vec<usize>,
        /// From the file.
        found: Vec<usize>,
    },
    /// A tensor that cannot be used in place, and for whose copy there is no memory.
    #[error(
        "{}: tensor '{tensor}' starts at byte {offset}, not a multiple of its {align}-byte elements, and there is no memory \
         for a copy of {bytes} bytes; save the file again with an aligned header",
        .path.display()
    )]
    Misaligned {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Offset in the file.
        offset: usize,
        /// Alignment of its type.
        align: usize,
        /// Size of the copy.
        bytes: usize,
    },
    /// A configuration value that is missing, inconsistent or out of bounds.
    #[error("{}: {key}: expected {expected}, found {found}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A model family that this crate does not know.
    #[error("{}: unknown architecture '{found}'; known: {}", .path.display(), .known.join(", "))]
    UnknownArchitecture {
        /// The configuration file.
        path: PathBuf,
        /// What it names.
        found: String,
        /// What is known.
        known: Vec<&'static str>,
    },
    /// A name that the zoo does not have.
    #[error("unknown {what} '{name}'; known: {}", .known.join(", "))]
    UnknownName {
        /// "network" or "pair".
        what: &'static str,
        /// The name given.
        name: String,
        /// The names that exist.
        known: Vec<&'static str>,
    },
    /// A name that is no token pruning.
    #[error(
        "unknown token pruning '{name}', expected RP-r, SP-r, La-b or SpecPrefill-r with fractions from 0.01 to 1.00 in two \
         decimals and b at most a, such as RP-0.75 or L0.75-0.10, or GemFilter-LAYER-COUNT, such as GemFilter-11-128; behind the \
         last two -pP for a window of P, an odd number, and behind SpecPrefill-r before it -aA for a look-ahead of 1 to 1024 and \
         -cC for chunks of C"
    )]
    Pruning {
        /// The name given.
        name: String,
    },
    /// A layer is to choose tokens that the network does not have.
    #[error("{pruning}: layer {layer} is to choose the tokens, and the base has {layers} layers: take one of 0 to {}", .layers - 1)]
    PruningLayer {
        /// The token pruning.
        pruning: String,
        /// Its layer.
        layer: usize,
        /// How many there are.
        layers: usize,
    },
    /// A token pruning has an auxiliary that it does not use, or lacks one.
    #[error("{pruning}: {problem}")]
    PruningNetworks {
        /// The token pruning.
        pruning: String,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// A token pruning was given a number that it does not have, or not of this size.
    #[error(
        "{pruning}: {what} {found} does not fit: look-ahead (1 to 1024) and chunk (1 or more) belong to SpecPrefill, pool (an odd \
         number) to SpecPrefill and GemFilter"
    )]
    PruningNumber {
        /// The token pruning.
        pruning: String,
        /// Which number.
        what: &'static str,
        /// What was given.
        found: usize,
    },
    /// Text is to be scored by a KV prediction without an auxiliary.
    #[error(
        "text is scored by KV predictions that have an auxiliary, and this one shares layers of its base: score it with the \
         base alone"
    )]
    NoAuxiliary,
    /// A prompt without tokens.
    #[error("prompt {row} is empty; give at least one token")]
    EmptyPrompt {
        /// Which prompt of the batch.
        row: usize,
    },
    /// A batch whose prompts differ in length.
    #[error("prompt {row} has {found} tokens, prompt 0 has {expected}; all prompts of a batch must be equally long")]
    Ragged {
        /// The first prompt that differs.
        row: usize,
        /// Length of prompt 0.
        expected: usize,
        /// Length of this one.
        found: usize,
    },
    /// A batch without prompts.
    #[error("the batch is empty; give at least one prompt")]
    EmptyBatch,
    /// Token ids that are not the planned `batch * prompt`.
    #[error("expected {batch} x {prompt} = {expected} token ids, found {found}")]
    TokenCount {
        /// Sequences planned.
        batch: usize,
        /// Tokens of each.
        prompt: usize,
        /// Their product.
        expected: usize,
        /// Ids given.
        found: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} (sequence {row}, position {position}) is outside the vocabulary of {vocab}")]
    TokenId {
        /// The id.
        id: u32,
        /// Its sequence.
        row: usize,
        /// Its place in the sequence.
        position: usize,
        /// Rows of the embedding table; the smaller one of base and auxiliary.
        vocab: usize,
    },
    /// More tokens were asked for than [`crate::plan`] allocated.
    #[error(
        "the cache is full: {planned} positions were planned (prompt {prompt}, generate {generate}); plan more tokens"
    )]
    CacheFull {
        /// Positions allocated.
        planned: usize,
        /// Of which prompt.
        prompt: usize,
        /// Tokens to generate, the first included.
        generate: usize,
    },
    /// A token was asked for before the first one.
    #[error("next_token before first_token: there is no cache yet; call first_token first")]
    NotStarted,
    /// Given tokens were to be scored before the first token was chosen, or after a later one.
    #[error(
        "given tokens are scored right behind the prompt: call first_token before score, and no next_token in between"
    )]
    NotBehindPrompt,
    /// A run was to begin from what another has kept.
    #[error("a run cannot begin from what another has kept: {reason}")]
    Loan {
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// A run specification that makes no sense.
    #[error("{what}: expected {expected}, found {found}")]
    Spec {
        /// The field.
        what: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: u64,
    },
    /// The memory that a run or a fit needs cannot be had.
    #[error(
        "cannot allocate {bytes} bytes: free some memory; a run takes less with a smaller batch or prompt, a fit with \
         shorter windows or fewer maps"
    )]
    Memory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Base, auxiliary and predictor that do not belong together.
    #[error("{}: {what}: expected {expected}, found {found}", .path.display())]
    Pair {
        /// The predictor's folder or file.
        path: PathBuf,
        /// What does not fit.
        what: String,
        /// What would.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Too little disk space.
    #[error("{}: {needed} bytes are needed, {free} are free; free some space or choose another folder", .path.display())]
    DiskSpace {
        /// The folder to be written.
        path: PathBuf,
        /// Bytes to be written.
        needed: u64,
        /// Bytes available.
        free: u64,
    },
    /// A folder that was not written by [`crate::synth`] is in the way.
    #[error("{}: exists and holds no synthetic weights; choose another folder or remove it", .path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is to be filled, and holds something.
    #[error("{}: exists and is not empty; choose another folder or remove it", .path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A GGUF file that is broken, or holds what cannot be converted.
    #[error("{}: cannot read this GGUF file: {reason}", .path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What was found, and what to do about it.
        reason: String,
    },
    /// A text that is too short for the features of maps.
    #[error(
        "the text gives {rows} tokens to fit to, and a map reads {features} features: give at least as many tokens, better 50 \
         for each feature"
    )]
    FewTokens {
        /// Tokens that count.
        rows: usize,
        /// Features of a map.
        features: usize,
    },
    /// Sums from which no maps follow.
    #[error("no maps fit this text: {reason}")]
    Unfit {
        /// Why, and what to do about it.
        reason: String,
    },
    /// The sums of an interrupted fit that cannot be taken up.
    #[error("{}: the sums of an interrupted fit that cannot go on: {reason}; remove it to begin anew, or give another output folder", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, or differs.
        reason: String,
    },
    /// A cached folder of synthetic weights that cannot be trusted.
    #[error("{}: not the synthetic weights expected: {reason}", .path.display())]
    Stale {
        /// The file at fault.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A kernel refused its operands.
    #[error(transparent)]
    Kernel(#[from] ttft_kernels::Error),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &std::path::Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, doing, source }
    }

    pub(crate) fn json(path: &std::path::Path) -> impl FnOnce(serde_json::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Json { path, source }
    }
}
