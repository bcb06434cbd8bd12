//! The container: metadata and places of tensors. Everything that the file says is checked against its length.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use super::format::{self, Format};
use crate::{Error, Result};

/// Tensors start at a multiple of this unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;

/// Longest name of a key or tensor: the format's own bound.
const LONGEST_NAME: u64 = 65535;

/// A metadata value, where it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32.
    Float(f32),
    /// f64.
    Double(f64),
    /// bool.
    Bool(bool),
    /// Text, not yet checked to be UTF-8.
    Text(&'a [u8]),
    /// Values of one type.
    List(List<'a>),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(v) => v.fmt(f),
            Value::Signed(v) => v.fmt(f),
            Value::Float(v) => v.fmt(f),
            Value::Double(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::Text(v) => {
                let text: String = String::from_utf8_lossy(v).chars().take(80).collect();
                write!(f, "'{text}'")
            }
            Value::List(v) => write!(f, "a list of {} values", v.len),
        }
    }
}

/// Values of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct List<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> List<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values, which were checked when the file was read.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        let kind = self.kind;
        (0..self.len).map_while(move |_| reader.value(kind).ok())
    }
}

/// Type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

/// By their number in a file.
const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::List,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

/// A tensor, where it lies in the file.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// How its values are stored.
    pub format: &'static Format,
    /// `[out, in]`, or `[n]`: the last dimension is contiguous.
    pub shape: Vec<usize>,
    /// Whole blocks of the format; a row is a whole number of them.
    pub bytes: &'a [u8],
}

/// What a GGUF file holds.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    path: PathBuf,
    values: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, Tensor<'a>>,
}

impl<'a> Container<'a> {
    /// Reads a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Gguf`]: what is wrong, and at which byte, key or tensor.
    pub fn parse(path: &Path, bytes: &'a [u8]) -> Result<Container<'a>> {
        read(bytes)
            .map(|(values, tensors)| Container { path: path.to_owned(), values, tensors })
            .map_err(|reason| Error::Gguf { path: path.to_owned(), reason })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses the file for a reason.
    pub(super) fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Error::Gguf { path: self.path.clone(), reason: reason.into() })
    }

    /// All metadata.
    pub fn values(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.values.iter().map(|(k, v)| (*k, *v))
    }

    /// A metadata value.
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).copied()
    }

    /// All tensors.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &Tensor<'a>)> {
        self.tensors.iter().map(|(k, v)| (*k, v))
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.get(name)
    }

    fn typed<T>(&self, key: &str, expected: &str, of: impl FnOnce(Value<'a>) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match of(value) {
            Some(value) => Ok(Some(value)),
            None => self.refuse(format!("{key}: expected {expected}, found {value}")),
        }
    }

    /// A whole number, if the key is there.
    ///
    /// # Errors
    /// [`Error::Gguf`]: it is something else.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", |v| match v {
            Value::Unsigned(v) => Some(v),
            Value::Signed(v) => u64::try_from(v).ok(),
            _ => None,
        })
    }

    /// A real number, if the key is there. What is stored in 32 bits is the shortest decimal that rounds to it, as whoever
    /// wrote it had it in a config.json.
    ///
    /// # Errors
    /// [`Error::Gguf`]: it is something else, or not finite.
    pub fn real(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |v| match v {
            Value::Float(v) => v.to_string().parse().ok().filter(|v: &f64| v.is_finite()),
            Value::Double(v) => v.is_finite().then_some(v),
            Value::Unsigned(v) => Some(v as f64),
            Value::Signed(v) => Some(v as f64),
            _ => None,
        })
    }

    /// Yes or no, if the key is there.
    ///
    /// # Errors
    /// [`Error::Gguf`]: it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |v| if let Value::Bool(v) = v { Some(v) } else { None })
    }

    /// Text, if the key is there.
    ///
    /// # Errors
    /// [`Error::Gguf`]: it is something else, or not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "UTF-8 text", |v| if let Value::Text(v) = v { std::str::from_utf8(v).ok() } else { None })
    }

    /// A list, if the key is there.
    ///
    /// # Errors
    /// [`Error::Gguf`]: it is something else.
    pub fn list(&self, key: &str) -> Result<Option<List<'a>>> {
        self.typed(key, "a list", |v| if let Value::List(v) = v { Some(v) } else { None })
    }
}

type Content<'a> = (BTreeMap<&'a str, Value<'a>>, BTreeMap<&'a str, Tensor<'a>>);

fn read(bytes: &[u8]) -> Result<Content<'_>, String> {
    if let Some(what) = crate::json::stand_in(bytes) {
        return Err(what.into());
    }
    let mut r = Reader { bytes, at: 0 };
    let magic = r.take(4, "the four letters GGUF at its start")?;
    if magic != b"GGUF" {
        let found = String::from_utf8_lossy(magic).escape_debug().to_string();
        return Err(format!("expected the four letters GGUF at its start, found '{found}'"));
    }
    match r.u32("the version")? {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=3) => {
            return Err("it is big-endian: convert it with gguf_convert_endian.py of llama.cpp".into());
        }
        v => return Err(format!("expected version 2 or 3, found {v}: convert the model anew, or take a newer ttft")),
    }
    let tensor_count = r.u64("the number of tensors")?;
    let value_count = r.u64("the number of metadata values")?;

    // Nothing is allocated by these counts: whatever they promise has to be in the file.
    let mut values = BTreeMap::new();
    for i in 0..value_count {
        let key = r.name(&format!("metadata key {i} of {value_count}"))?;
        let kind = r.kind(key)?;
        let value = r.value(kind).map_err(|e| format!("{key}: {e}"))?;
        if values.insert(key, value).is_some() {
            return Err(format!("the metadata key '{key}' is there twice"));
        }
    }
    match values.get("split.count") {
        None | Some(Value::Unsigned(0 | 1)) => {}
        Some(v) => {
            return Err(format!(
                "split.count is {v}: this is one part of a model; put the parts together with `llama-gguf-split --merge`"
            ));
        }
    }
    let alignment = match values.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Unsigned(a)) if a.is_power_of_two() => *a,
        Some(v) => return Err(format!("general.alignment: expected a power of two, found {v}")),
    };

    let mut infos = BTreeMap::new();
    for i in 0..tensor_count {
        let name = r.name(&format!("the name of tensor {i} of {tensor_count}"))?;
        let info = r.tensor(alignment).map_err(|e| format!("tensor '{name}': {e}"))?;
        if infos.insert(name, info).is_some() {
            return Err(format!("the tensor '{name}' is there twice"));
        }
    }
    let tensors = if infos.is_empty() { BTreeMap::new() } else { r.data(alignment, infos)? };
    Ok((values, tensors))
}

/// What the file says of a tensor; its place is counted from where the data begins.
struct Info {
    format: &'static Format,
    shape: Vec<usize>,
    at: u64,
    bytes: u64,
}

/// A place in the file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let part = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let ends = || {
            format!(
                "it ends after {} bytes, within {what} (byte {} and {len} more): fetch the file again",
                self.bytes.len(),
                self.at
            )
        };
        let part = part.ok_or_else(ends)?;
        self.at += part.len();
        Ok(part)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        Ok(*self.take(N as u64, what)?.first_chunk().expect("as many bytes were taken"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn name(&mut self, what: &str) -> Result<&'a str, String> {
        let len = self.u64(what)?;
        if len > LONGEST_NAME {
            return Err(format!("{what}: expected at most {LONGEST_NAME} bytes, found {len}"));
        }
        std::str::from_utf8(self.take(len, what)?).map_err(|_| format!("{what} is not UTF-8"))
    }

    fn kind(&mut self, key: &str) -> Result<Kind, String> {
        let number = self.u32("the type of a value").map_err(|e| format!("{key}: {e}"))?;
        let kind = KINDS.get(number as usize).copied();
        kind.ok_or_else(|| format!("{key}: expected a type of value from 0 to {}, found {number}", KINDS.len() - 1))
    }

    fn value(&mut self, kind: Kind) -> Result<Value<'a>, String> {
        let what = "a value";
        Ok(match kind {
            Kind::U8 => Value::Unsigned(self.array::<1>(what)?[0].into()),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            Kind::U32 => Value::Unsigned(self.u32(what)?.into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            Kind::U64 => Value::Unsigned(self.u64(what)?),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array(what)?)),
            Kind::F64 => Value::Double(f64::from_le_bytes(self.array(what)?)),
            Kind::Bool => match self.array::<1>(what)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                v => return Err(format!("expected 0 or 1 as a truth value, found {v}")),
            },
            Kind::Text => {
                let len = self.u64("the length of a text")?;
                Value::Text(self.take(len, "a text")?)
            }
            Kind::List => {
                let kind = self.kind("a list")?;
                if kind == Kind::List {
                    return Err("a list of lists, which no model has".into());
                }
                let count = self.u64("the length of a list")?;
                let start = self.at;
                // Every value takes a byte at least, so this ends with the file.
                for i in 0..count {
                    self.value(kind).map_err(|e| format!("value {i} of {count}: {e}"))?;
                }
                Value::List(List { kind, len: count as usize, bytes: &self.bytes[start..self.at] })
            }
        })
    }

    fn tensor(&mut self, alignment: u64) -> Result<Info, String> {
        let dimensions = self.u32("the number of its dimensions")?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(format!("expected 1 to {MOST_DIMENSIONS} dimensions, found {dimensions}"));
        }
        let shape: Vec<u64> = (0..dimensions).map(|_| self.u64("a dimension")).collect::<Result<_, _>>()?;
        let number = self.u32("the type of its values")?;
        let at = self.u64("its place")?;
        let format = format::numbered(number)
            .ok_or_else(|| format!("its values have type {number}, which is unknown here: take a newer ttft"))?;
        // The first dimension is the contiguous one.
        let row = shape[0];
        if row == 0 || !row.is_multiple_of(format.block) {
            return Err(format!(
                "expected rows of a multiple of {} values, as {} is stored, found {row}",
                format.block, format.name
            ));
        }
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
        let bytes = elements.and_then(|n| (n / format.block).checked_mul(format.bytes));
        let bytes = bytes.ok_or_else(|| format!("its dimensions {shape:?} are beyond any file, or 0"))?;
        if !at.is_multiple_of(alignment) {
            return Err(format!("expected a place at a multiple of {alignment} bytes, found {at}"));
        }
        let size = |d: &u64| usize::try_from(*d).map_err(|_| format!("the dimension {d} is beyond this machine"));
        Ok(Info { format, shape: shape.iter().rev().map(size).collect::<Result<_, _>>()?, at, bytes })
    }

    /// The tensors within the data, which begins at the next multiple of the alignment.
    fn data(&self, alignment: u64, infos: BTreeMap<&'a str, Info>) -> Result<BTreeMap<&'a str, Tensor<'a>>, String> {
        let start = (self.at as u64).checked_next_multiple_of(alignment);
        let place = |info: &Info| -> Option<Range<u64>> {
            let from = start?.checked_add(info.at)?;
            Some(from..from.checked_add(info.bytes)?)
        };
        let mut places = Vec::with_capacity(infos.len());
        for (name, info) in &infos {
            let place =
                place(info).ok_or_else(|| format!("tensor '{name}': its place {} is beyond any file", info.at))?;
            if place.end > self.bytes.len() as u64 {
                return Err(format!(
                    "tensor '{name}': it lies at bytes {} to {}, and the file ends after {}: fetch the file again",
                    place.start,
                    place.end,
                    self.bytes.len()
                ));
            }
            places.push((place, *name));
        }
        let mut ordered: Vec<_> = places.iter().collect();
        ordered.sort_by_key(|(place, _)| place.start);
        if let Some([(_, a), (_, b)]) = ordered.array_windows().find(|[(a, _), (b, _)]| b.start < a.end) {
            return Err(format!("the tensors '{a}' and '{b}' lie over one another"));
        }
        let tensor = |((name, info), (place, _)): ((&'a str, Info), (Range<u64>, &str))| {
            let bytes = &self.bytes[place.start as usize..place.end as usize];
            (name, Tensor { format: info.format, shape: info.shape, bytes })
        };
        Ok(infos.into_iter().zip(places).map(tensor).collect())
    }
}
