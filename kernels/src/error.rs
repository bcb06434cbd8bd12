use crate::isa::Isa;

/// What a kernel call can refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operands whose shapes do not fit together.
    #[error("{op}: {what}: expected {expected}, found {found}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which dimension.
        what: &'static str,
        /// What the other operands ask for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A token id outside the embedding table.
    #[error("token id {id} (row {row}) is outside the vocabulary of {vocab}")]
    TokenId {
        /// The id.
        id: u32,
        /// Its place in the list of ids.
        row: usize,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// An instruction set that this CPU lacks.
    #[error("ISA '{wanted}' is not available on this CPU; it has: {}", list(.have))]
    IsaUnavailable {
        /// The one asked for.
        wanted: Isa,
        /// Those that this CPU has.
        have: Vec<Isa>,
    },
    /// A name that is no instruction set of this build.
    #[error("unknown ISA '{name}'; this CPU has: {}", list(.have))]
    IsaUnknown {
        /// The name given.
        name: String,
        /// Those that this CPU has.
        have: Vec<Isa>,
    },
    /// A kernel name that this ISA does not offer.
    #[error("unknown kernel '{name}' for ISA {isa}; it has: {}", .have.join(", "))]
    KernelUnknown {
        /// The name given.
        name: String,
        /// The ISA in force.
        isa: Isa,
        /// Kernels of that ISA.
        have: Vec<&'static str>,
    },
    /// A thread count that makes no sense.
    #[error("{0} threads asked for; give 1 to 1024")]
    Threads(usize),
    /// A limit on processes or on memory that holds fewer threads than asked for.
    #[error("{asked} threads asked for, and the system gives this process {given}: ask for fewer, or raise its limit")]
    ThreadsUnavailable {
        /// What was asked for.
        asked: usize,
        /// What there is, the calling thread included.
        given: usize,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn list(isas: &[Isa]) -> String {
    isas.iter().map(|i| i.name()).collect::<Vec<_>>().join(", ")
}

/// `Ok` if `found == expected`, else [`Error::Shape`].
pub(crate) fn expect(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::Shape { op, what, expected, found }) }
}

/// `Ok` if `found >= least`, else [`Error::Shape`].
pub(crate) fn at_least(op: &'static str, what: &'static str, least: usize, found: usize) -> Result<()> {
    if found >= least { Ok(()) } else { Err(Error::Shape { op, what, expected: least, found }) }
}
