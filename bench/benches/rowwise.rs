//! Row-wise operations: GB/s of what each reads and writes, against the read bandwidth measured around it.
//!
//! Once on the rows of a 1x64 prefill, which stay in the cache, and once on more than a cache holds. `TTFT_SHAPES=full`
//! takes more sizes, and f32 activations.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use common::Group;
use criterion::Throughput;
use half::bf16;
use ttft_bench::micro::{self, Operand, Series, Setup, percent, time, value};
use ttft_kernels::{DType, Engine, HeadsOut, Mat, MatMut, Positions, RopeTable};

/// Widths of OpenELM-1.1B: residual stream (and queries), a head, gated activations of the last layer, vocabulary.
const DIM: usize = 2048;
const HEAD_DIM: usize = 64;
const FFN: usize = 8192;
const VOCAB: usize = 32000;

const EPS: f32 = 1e-6;

/// Rows, and whether a plain `cargo bench` takes them; of long rows, as many of them as [`Buffers`] hold.
const ROWS: [(usize, bool); 4] = [(1, false), (64, true), (1024, false), (8192, true)];

/// An operation on rows of `cols` elements.
struct Op<A> {
    name: &'static str,
    cols: usize,
    /// Bytes read and written for each element of the input.
    bytes: usize,
    run: fn(&Engine, &mut Buffers<A>, usize),
}

/// Operands of every operation.
struct Buffers<A> {
    x: Vec<f32>,
    y: Vec<A>,
    table: Vec<A>,
    weight: Vec<f32>,
    ids: Vec<u32>,
    rope: RopeTable,
}

/// Elements of the larger operand.
fn elements(setup: &Setup) -> usize {
    if setup.smoke { 64 * VOCAB } else { 8192 * DIM }
}

impl<A: Operand> Buffers<A> {
    fn new(setup: &Setup) -> Buffers<A> {
        let rows = elements(setup) / DIM;
        Buffers {
            x: (0..elements(setup)).map(value).collect(),
            y: vec![A::default(); elements(setup)],
            table: (0..VOCAB * DIM).map(value).collect(),
            weight: (0..DIM).map(value).collect(),
            ids: (0..rows).map(|i| (i.wrapping_mul(2_654_435_761) % VOCAB) as u32).collect(),
            rope: RopeTable::new(HEAD_DIM, 10000.0, rows),
        }
    }
}

fn x<T>(data: &[T], rows: usize, cols: usize) -> Mat<'_, T> {
    Mat::new(&data[..rows * cols], rows, cols)
}

fn y<T>(data: &mut [T], rows: usize, cols: usize) -> MatMut<'_, T> {
    MatMut::new(&mut data[..rows * cols], rows, cols)
}

const FITS: &str = "the shapes fit";

/// The table of operations.
fn ops<A: Operand>() -> [Op<A>; 8] {
    let a = size_of::<A>();
    [
        Op {
            name: "rms_norm",
            cols: DIM,
            bytes: 4 + a,
            run: |e, b, m| e.rms_norm(x(&b.x, m, DIM), &b.weight, EPS, y(&mut b.y, m, DIM)).expect(FITS),
        },
        Op {
            name: "heads, norm and RoPE",
            cols: DIM,
            bytes: 4 + a,
            run: |e, b, m| {
                let (norm, out) = (Some(&b.weight[..HEAD_DIM]), HeadsOut::Rows(y(&mut b.y, m, DIM)));
                e.heads(x(&b.x, m, DIM), 1, HEAD_DIM, norm, EPS, Some((&b.rope, Positions::From(0))), out).expect(FITS);
            },
        },
        Op {
            name: "heads",
            cols: DIM,
            bytes: 4 + a,
            run: |e, b, m| {
                let out = HeadsOut::Rows(y(&mut b.y, m, DIM));
                e.heads(x(&b.x, m, DIM), 1, HEAD_DIM, None, EPS, None, out).expect(FITS);
            },
        },
        Op {
            name: "silu_mul",
            cols: 2 * FFN,
            bytes: 4 + a / 2,
            run: |e, b, m| e.silu_mul(x(&b.x, m, 2 * FFN), y(&mut b.y, m, FFN)).expect(FITS),
        },
        Op { name: "softmax", cols: VOCAB, bytes: 8, run: |e, b, m| e.softmax(y(&mut b.x, m, VOCAB)) },
        Op {
            name: "argmax",
            cols: VOCAB,
            bytes: 4,
            run: |e, b, m| e.argmax(x(&b.x, m, VOCAB), &mut b.ids[..m]).expect(FITS),
        },
        Op {
            name: "convert",
            cols: DIM,
            bytes: 4 + a,
            run: |e, b, m| e.convert(x(&b.x, m, DIM), y(&mut b.y, m, DIM)).expect(FITS),
        },
        Op {
            name: "embed",
            cols: DIM,
            bytes: 4 + a,
            run: |e, b, m| {
                let table = A::weight(x(&b.table, VOCAB, DIM));
                e.embed(table, &b.ids[..m], y(&mut b.x, m, DIM)).expect(FITS);
            },
        },
    ]
}

/// What was measured of one operation.
struct Cell {
    dtype: DType,
    name: &'static str,
    rows: usize,
    cols: usize,
    bytes: usize,
    series: Series,
}

fn main() -> ExitCode {
    common::main("rowwise", |group, setup| {
        let mut cells = measure::<bf16>(group, setup)?;
        if setup.full {
            cells.extend(measure::<f32>(group, setup)?);
        }
        show(setup, &cells);
        Ok(())
    })
}

fn measure<A: Operand>(group: &mut Group<'_>, setup: &Setup) -> Result<Vec<Cell>> {
    let mut buffers = None;
    let mut cells = Vec::new();
    for (most, _) in ROWS.into_iter().filter(|(_, quick)| setup.full || *quick) {
        for op in ops::<A>() {
            let rows = most.min(elements(setup) / op.cols);
            let bytes = rows * op.cols * op.bytes;
            let id = format!("{}/{}/m{most}", op.name, A::DTYPE);
            let throughput = Throughput::Bytes(bytes as u64);
            let series = group.measure(
                &id,
                throughput,
                DType::F32,
                || Ok(buffers.get_or_insert_with(|| Buffers::<A>::new(setup))),
                |b, turn, iters| Ok(micro::in_turn(1, turn, iters, |_| time(|| (op.run)(&setup.engine, b, rows)))),
            )?;
            let cell = |series| Cell { dtype: A::DTYPE, name: op.name, rows, cols: op.cols, bytes, series };
            cells.extend(series.map(cell));
        }
    }
    Ok(cells)
}

fn show(setup: &Setup, cells: &[Cell]) {
    let header = ["operation", "activations", "rows x columns", "us", "GB/s", "% of read"];
    let row = |c: &Cell| {
        let gb_s = c.bytes as f64 / c.series.seconds(0) / 1e9;
        vec![
            c.name.to_owned(),
            c.dtype.name().to_owned(),
            format!("{} x {}", c.rows, c.cols),
            format!("{:.1}", c.series.seconds(0) * 1e6),
            format!("{gb_s:.1}"),
            percent(gb_s, c.series.speed().gb_s),
        ]
    };
    micro::print(setup, "64 rows in the cache, more in memory", &header, cells.iter().map(row));
}
