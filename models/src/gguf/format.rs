//! How values of tensors are stored: plain, or in blocks with a common scale. One row for each format; those that can be
//! widened to f32 do exactly what llama.cpp's reference does, in the same order of operations.

use half::{bf16, f16};

/// A format of values.
pub struct Format {
    /// Its number in a file.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// Values of a block.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
    /// Widens whole blocks; None where nobody has written it yet.
    pub widen: Option<Widen>,
}

/// Widens whole blocks to as many values.
pub type Widen = fn(&[u8], &mut [f32]);

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn row(number: u32, name: &'static str, block: u64, bytes: u64, widen: Option<Widen>) -> Format {
    Format { number, name, block, bytes, widen }
}

/// Every format that llama.cpp writes to files.
pub static FORMATS: [Format; 32] = [
    row(0, "F32", 1, 4, Some(f32_to_f32)),
    row(1, "F16", 1, 2, Some(f16_to_f32)),
    row(30, "BF16", 1, 2, Some(bf16_to_f32)),
    row(2, "Q4_0", 32, 18, Some(q4_0)),
    row(3, "Q4_1", 32, 20, Some(q4_1)),
    row(6, "Q5_0", 32, 22, Some(q5_0)),
    row(7, "Q5_1", 32, 24, Some(q5_1)),
    row(8, "Q8_0", 32, 34, Some(q8_0)),
    row(12, "Q4_K", 256, 144, Some(q4_k)),
    row(13, "Q5_K", 256, 176, Some(q5_k)),
    row(14, "Q6_K", 256, 210, Some(q6_k)),
    row(10, "Q2_K", 256, 84, None),
    row(11, "Q3_K", 256, 110, None),
    row(16, "IQ2_XXS", 256, 66, None),
    row(17, "IQ2_XS", 256, 74, None),
    row(18, "IQ3_XXS", 256, 98, None),
    row(19, "IQ1_S", 256, 50, None),
    row(20, "IQ4_NL", 32, 18, None),
    row(21, "IQ3_S", 256, 110, None),
    row(22, "IQ2_S", 256, 82, None),
    row(23, "IQ4_XS", 256, 136, None),
    row(24, "I8", 1, 1, None),
    row(25, "I16", 1, 2, None),
    row(26, "I32", 1, 4, None),
    row(27, "I64", 1, 8, None),
    row(28, "F64", 1, 8, None),
    row(29, "IQ1_M", 256, 56, None),
    row(34, "TQ1_0", 256, 54, None),
    row(35, "TQ2_0", 256, 66, None),
    row(39, "MXFP4", 32, 17, None),
    row(40, "NVFP4", 64, 36, None),
    row(41, "Q1_0", 128, 18, None),
];

/// The format with this number.
pub fn numbered(number: u32) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.number == number)
}

/// The names of those that can be widened.
pub fn widened() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().filter(|f| f.widen.is_some()).map(|f| f.name)
}

/// Widens blocks of `BYTES` bytes and `VALUES` values.
fn blocks<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(b, o)| block(b, o));
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn f32_to_f32(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b, [o]: &mut [f32; 1]| *o = f32::from_le_bytes(*b));
}

fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b, [o]: &mut [f32; 1]| *o = f16::from_le_bytes(*b).to_f32());
}

fn bf16_to_f32(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b, [o]: &mut [f32; 1]| *o = bf16::from_le_bytes(*b).to_f32());
}

/// d, 16 bytes of two values each: the low halves are the first 16 values.
fn q4_0(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 18], o: &mut [f32; 32]| {
        let d = half_at(b, 0);
        for (j, q) in b[2..].iter().enumerate() {
            o[j] = d * (f32::from(q & 15) - 8.0);
            o[j + 16] = d * (f32::from(q >> 4) - 8.0);
        }
    });
}

/// d, m, 16 bytes of two values each.
fn q4_1(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 20], o: &mut [f32; 32]| {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        for (j, q) in b[4..].iter().enumerate() {
            o[j] = d * f32::from(q & 15) + m;
            o[j + 16] = d * f32::from(q >> 4) + m;
        }
    });
}

/// The fifth bits of 32 values and their lower four.
fn five_bits(high: &[u8], low: &[u8], j: usize) -> u8 {
    let four = if j < 16 { low[j] & 15 } else { low[j - 16] >> 4 };
    four | (high[j / 8] >> (j % 8) & 1) << 4
}

/// d, a fifth bit for each value, 16 bytes of two values each.
fn q5_0(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 22], o: &mut [f32; 32]| {
        let d = half_at(b, 0);
        for (j, o) in o.iter_mut().enumerate() {
            *o = d * (f32::from(five_bits(&b[2..6], &b[6..], j)) - 16.0);
        }
    });
}

/// d, m, a fifth bit for each value, 16 bytes of two values each.
fn q5_1(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 24], o: &mut [f32; 32]| {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        for (j, o) in o.iter_mut().enumerate() {
            *o = d * f32::from(five_bits(&b[4..8], &b[8..], j)) + m;
        }
    });
}

/// d, 32 signed bytes.
fn q8_0(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 34], o: &mut [f32; 32]| {
        let d = half_at(b, 0);
        for (o, q) in o.iter_mut().zip(&b[2..]) {
            *o = f32::from(*q as i8) * d;
        }
    });
}

/// Scale and minimum, of six bits each, of sub-block `j` of eight.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// d, dmin, scales and minima of eight sub-blocks, 128 bytes: 32 of them are two sub-blocks.
fn q4_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 144], o: &mut [f32; 256]| {
        let (d, dmin) = (half_at(b, 0), half_at(b, 2));
        for (j, o) in o.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(&b[4..16], j);
            let (d, m) = (d * scale, dmin * min);
            for (o, q) in o.iter_mut().zip(&b[16 + j / 2 * 32..]) {
                *o = d * f32::from(q >> (j % 2 * 4) & 15) - m;
            }
        }
    });
}

/// As [`q4_k`], with 32 bytes before, bit `j` of which belongs to sub-block `j`.
fn q5_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 176], o: &mut [f32; 256]| {
        let (d, dmin) = (half_at(b, 0), half_at(b, 2));
        for (j, o) in o.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(&b[4..16], j);
            let (d, m) = (d * scale, dmin * min);
            for ((o, q), high) in o.iter_mut().zip(&b[48 + j / 2 * 32..]).zip(&b[16..48]) {
                *o = d * f32::from(q >> (j % 2 * 4) & 15 | (high >> j & 1) << 4) - m;
            }
        }
    });
}

/// 128 bytes of lower halves, 64 of upper two bits, a signed scale for every 16 values, d.
fn q6_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, out, |b: &[u8; 210], o: &mut [f32; 256]| {
        let d = half_at(b, 208);
        for (j, o) in o.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // Two halves of the block; in each, the low and then the high halves of 64 bytes.
            let (half, part) = (j / 4, j % 4);
            let low = &b[half * 64 + part % 2 * 32..];
            let high = &b[128 + half * 32..];
            for (i, o) in o.iter_mut().enumerate() {
                let q = low[i] >> (part / 2 * 4) & 15 | (high[i] >> (part * 2) & 3) << 4;
                let scale = f32::from(b[192 + j * 2 + i / 16] as i8);
                *o = d * scale * (f32::from(q) - 32.0);
            }
        }
    });
}
