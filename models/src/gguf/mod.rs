//! GGUF, the files of llama.cpp: what they hold, and how they become folders as on the Hub.
//!
//! [`container`] reads and checks a file, [`mod@format`] widens its blocks to f32, `config` says which network it is,
//! `tokenizer` rebuilds its `tokenizer.json`, and [`convert`] writes the folder. Nothing but the mapped file is held: lists
//! and tensors stay where they lie.

mod config;
pub mod container;
pub mod convert;
pub mod format;
mod tokenizer;

pub use container::Container;
pub use convert::Conversion;
