//! One engine, called by several threads at once, over all of its entry points: every result must be, to the bit, what the same
//! call gives when nobody else calls. `tests/sanitize.sh` runs this file under AddressSanitizer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use half::bf16;
use ttft_kernels::{
    AttnShape, Backend, DType, Element, Engine, HeadCache, HeadProjection, HeadsOut, Isa, Join, Mat, MatMut, Output,
    Positions, Product, Query, RopeTable, Weight,
};
use ttft_tests::{engine, isas, small, values};

/// A call with operands of its own; what it wrote, as bytes.
type Call = dyn Fn(&Engine) -> Vec<u8> + Sync;

struct Op {
    name: String,
    call: Box<Call>,
}

fn op(name: impl Into<String>, call: impl Fn(&Engine) -> Vec<u8> + Sync + 'static) -> Op {
    Op { name: name.into(), call: Box::new(call) }
}

fn bytes<T: bytemuck::Pod>(x: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(x).to_vec()
}

fn of<A: Element>(seed: u64, n: usize) -> Vec<A> {
    values(seed, n, A::DTYPE).into_iter().map(A::from_f32).collect()
}

fn filled<A: Element>(seed: u64, batch: usize, heads: usize, capacity: usize, d: usize) -> HeadCache<A> {
    let mut cache = HeadCache::new(batch, heads, capacity, d);
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let x = of::<A>(seed + (b * heads + h) as u64, capacity * d);
        let mut head = cache.head_mut(b, h);
        x.chunks_exact(d).enumerate().for_each(|(t, x)| head.row_mut(t).copy_from_slice(x));
    }
    cache
}

fn held<A: Element>(c: &HeadCache<A>) -> Vec<u8> {
    let heads = (0..c.batch()).flat_map(|b| (0..c.heads()).map(move |h| (b, h)));
    heads.flat_map(|(b, h)| (0..c.capacity()).flat_map(move |t| bytes(c.head(b, h).row(t)))).collect()
}

/// Products of every form: one task and many, few rows and many, packed and in place, shared and own panels of x.
fn products<A: Element>(out: &mut Vec<Op>) {
    for (m, n, k) in
        [(1, 8, 64), (1, 600, 512), (3, 12, 48), (20, 700, 256), (40, 12, 96), (130, 1024, 512), (300, 96, 640)]
    {
        for w in [DType::F32, DType::F16, DType::BF16] {
            let x = of::<A>(m as u64, m * k);
            let data = values(n as u64, n * k, w);
            let bias = values(3, n, DType::F32);
            let f16: Vec<_> = data.iter().map(|x| half::f16::from_f32(*x)).collect();
            let bf: Vec<_> = data.iter().map(|x| bf16::from_f32(*x)).collect();
            out.push(op(format!("linear {} x {w}, {m} x {n} x {k}", A::DTYPE), move |e| {
                let w = match w {
                    DType::F32 => Weight::F32(Mat::new(&data, n, k)),
                    DType::F16 => Weight::F16(Mat::new(&f16, n, k)),
                    DType::BF16 => Weight::BF16(Mat::new(&bf, n, k)),
                };
                let x = Mat::new(&x, m, k);
                let (mut y, mut z, mut gated) = (vec![0.5; m * n], vec![0.0; m * n], vec![A::default(); m * n / 2]);
                e.linear(x, w, Output::Add(MatMut::new(&mut y, m, n))).unwrap();
                e.linear(x, w, Output::Bias(MatMut::new(&mut z, m, n), &bias)).unwrap();
                e.linear(
                    x,
                    w.rows_at(0, n / 2),
                    Output::SwiGlu(MatMut::new(&mut gated, m, n / 2), w.rows_at(n / 2, n / 2)),
                )
                .unwrap();
                let biased = bytes(&z);
                // One of few rows beside it.
                let mut few = vec![0.0; n];
                let first = Product { x: x.rows_at(0, 1), w, out: Output::Store(MatMut::new(&mut few, 1, n)) };
                e.linear_beside(Product { x, w, out: Output::Store(MatMut::new(&mut z, m, n)) }, first).unwrap();
                [bytes(&y), biased, bytes(&z), bytes(&few), bytes(&gated)].concat()
            }));
        }
    }
}

/// Attention of one task and of many, in blocks and as a stream, and what token pruning needs.
fn attentions<A: Element>(out: &mut Vec<Op>) {
    for (batch, n, past, heads, group, d) in [
        (1, 12, 0, 1, 1, 64),
        (1, 40, 0, 1, 1, 64),
        (1, 60, 90, 1, 1, 32),
        (2, 70, 10, 2, 2, 64),
        (1, 1, 700, 2, 3, 64),
    ] {
        let (k, v) = (filled::<A>(1, batch, heads, past + n, d), filled::<A>(50, batch, heads, past + n, d));
        let (rows, cols) = (batch * n, heads * group * d);
        let q = of::<A>(9, rows * cols);
        out.push(op(format!("attention {} {batch} x {n} after {past}", A::DTYPE), move |e| {
            let (mut y, mut weights) = (vec![A::default(); rows * cols], vec![0.0; batch * heads * group * (past + n)]);
            let shape = AttnShape { batch, n, past };
            e.attention(Mat::new(&q, rows, cols), &k, &v, shape, MatMut::new(&mut y, rows, cols)).unwrap();
            e.attention_weights(Mat::new(&q[..batch * cols], batch, cols), &k, past + n, &mut weights).unwrap();
            let (mut scores, mut joined) = (weights.clone(), vec![0.0; batch * (past + n)]);
            e.attention_scores(Mat::new(&q[..batch * cols], batch, cols), &k, past + n, &mut scores).unwrap();
            e.pooled(&scores, past + n, 5, Join::Largest, &mut joined).unwrap();
            [bytes(&y), bytes(&weights), bytes(&scores), bytes(&joined)].concat()
        }));
    }
    let (k, v) = (filled::<A>(2, 3, 2, 600, 32), filled::<A>(60, 3, 2, 600, 32));
    let q = of::<A>(4, 4 * 64);
    out.push(op(format!("attention_each and gather {}", A::DTYPE), move |e| {
        let queries = [(0, 600), (2, 1), (1, 129), (0, 7)].map(|(sequence, sees)| Query { sequence, sees });
        let mut y = vec![A::default(); 4 * 64];
        e.attention_each(Mat::new(&q, 4, 64), &k, &v, &queries, MatMut::new(&mut y, 4, 64)).unwrap();
        let slots: Vec<u32> = (0..3 * 300).map(|i| i * 37 % 600).collect();
        let mut to = HeadCache::new(3, 2, 301, 32);
        e.gather(&k, &slots, &mut to).unwrap();
        [bytes(&y), held(&to)].concat()
    }));
}

/// Projections to heads: one task alone, several, and rows that make several tasks of one product.
fn projections<A: Element>(out: &mut Vec<Op>) {
    for (n, heads, k) in [(10, 1, 40), (200, 3, 96)] {
        let d = 16;
        let (x, w, bias) = (of::<A>(1, n * k), values(2, heads * d * k, DType::F32), values(3, heads * d, DType::F32));
        let (norm, table) = (values(4, d, DType::F32), RopeTable::new(d, 1e4, n));
        out.push(op(format!("project_heads {} {n} rows", A::DTYPE), move |e| {
            let mut caches = [HeadCache::<A>::new(1, heads, n, d), HeadCache::new(1, heads, n, d)];
            let mut keep = vec![0.0; n * heads * d];
            let mut keep_once = Some(&mut keep[..]);
            // The first size is one product and one task.
            let count = if heads == 1 { 1 } else { 2 };
            let mut jobs: Vec<_> = caches[..count]
                .iter_mut()
                .map(|cache| HeadProjection {
                    x: Mat::new(&x, n, k),
                    w: Weight::F32(Mat::new(&w, heads * d, k)),
                    bias: &bias,
                    norm: Some(&norm),
                    rope: Some(&table),
                    cache,
                    keep: keep_once.take(),
                })
                .collect();
            e.project_heads(1, 1e-6, &mut jobs).unwrap();
            [held(&caches[0]), held(&caches[1]), bytes(&keep)].concat()
        }));
    }
}

/// Row-wise operations, large enough to be shared among threads.
fn rowwise<A: Element>(out: &mut Vec<Op>) {
    let (rows, d, heads) = (96, 64, 8);
    let cols = heads * d;
    let (x, w) = (values(1, rows * cols, DType::F32), values(2, cols, DType::F32));
    let table = RopeTable::new(d, 1e4, rows);
    out.push(op(format!("row-wise {}", A::DTYPE), move |e| {
        let m = || Mat::new(&x, rows, cols);
        let (mut y, mut half) = (vec![A::default(); rows * cols], vec![A::default(); rows * cols / 2]);
        let (mut s, mut ids, mut all) = (x.clone(), vec![0; rows], Vec::new());
        e.convert(m(), MatMut::new(&mut y, rows, cols)).unwrap();
        all.push(bytes(&y));
        e.rms_norm(m(), &w, 1e-6, MatMut::new(&mut y, rows, cols)).unwrap();
        all.push(bytes(&y));
        let rope = Some((&table, Positions::From(0)));
        e.heads(m(), 1, d, Some(&w[..d]), 1e-6, rope, HeadsOut::Rows(MatMut::new(&mut y, rows, cols))).unwrap();
        all.push(bytes(&y));
        let mut cache = HeadCache::<A>::new(1, heads, rows, d);
        e.heads(m(), 1, d, None, 1e-6, rope, HeadsOut::Cache(&mut cache, 0)).unwrap();
        all.push(held(&cache));
        e.silu_mul(m(), MatMut::new(&mut half, rows, cols / 2)).unwrap();
        all.push(bytes(&half));
        e.softmax(MatMut::new(&mut s, rows, cols));
        all.push(bytes(&s));
        e.argmax(m(), &mut ids).unwrap();
        all.push(bytes(&ids));
        let of_rows: Vec<u32> = (0..rows as u32).rev().collect();
        e.embed(Weight::F32(m()), &of_rows, MatMut::new(&mut s, rows, cols)).unwrap();
        all.push(bytes(&s));
        all.concat()
    }));
}

#[test]
fn callers_that_share_an_engine_get_what_they_would_get_alone() {
    let mut ops = Vec::new();
    products::<f32>(&mut ops);
    products::<bf16>(&mut ops);
    attentions::<f32>(&mut ops);
    attentions::<bf16>(&mut ops);
    projections::<f32>(&mut ops);
    projections::<bf16>(&mut ops);
    rowwise::<f32>(&mut ops);
    rowwise::<bf16>(&mut ops);
    if small() {
        // What is shared is the same on every machine, and tried in full outside of emulators.
        let mut at = 0;
        ops.retain(|_| {
            at += 1;
            at % 4 == 1
        });
    }
    for isa in isas() {
        let gemm = Some((2, Backend::Gemm, 1)).filter(|_| isa == Isa::best());
        for (threads, backend, rounds) in
            [(2, Backend::Ours, 4), (3, Backend::Ours, 1), (1, Backend::Ours, 1)].into_iter().chain(gemm)
        {
            let (rounds, callers) = match isa {
                // Slow, and the same loops.
                Isa::Portable | Isa::AmxPlain if threads != 2 => continue,
                Isa::Portable | Isa::AmxPlain => (1, 2),
                _ if small() && threads != 2 => continue,
                _ if small() => (1, 2),
                _ => (rounds, 4),
            };
            let e = engine(isa, threads, backend);
            let alone: Vec<_> = ops.iter().map(|op| (op.call)(&e)).collect();
            // A fresh engine, so that its working memory grows while others call.
            let e = &engine(isa, threads, backend);
            std::thread::scope(|s| {
                for caller in 0..callers {
                    let (ops, alone) = (&ops, &alone);
                    s.spawn(move || {
                        // Each caller goes through the calls in an order of its own: 7, 11, 13 and 17 steps at a time.
                        let step = [7, 11, 13, 17][caller];
                        for i in 0..rounds * ops.len() {
                            let at = (i * step + caller) % ops.len();
                            let found = (ops[at].call)(e);
                            assert!(found == alone[at], "{isa}, {threads} threads: {} differs", ops[at].name);
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn a_call_inside_a_region_of_the_same_engine_is_refused() {
    let (x, w) = (vec![1f32; 64 * 64], vec![1f32; 64 * 64]);
    for threads in [1, 2, 3] {
        let e = engine(isas()[0], threads, Backend::Ours);
        let product = |e: &Engine| {
            let mut y = vec![0.0; 64 * 64];
            e.linear(
                Mat::new(&x, 64, 64),
                Weight::F32(Mat::new(&w, 64, 64)),
                Output::Store(MatMut::new(&mut y, 64, 64)),
            )
            .unwrap();
            y
        };
        for tasks in [1, 9] {
            let panic =
                catch_unwind(AssertUnwindSafe(|| e.pool().for_each(tasks, |_, _| drop(product(&e))))).unwrap_err();
            let text = panic.downcast_ref::<&str>().expect("a message");
            assert!(text.contains("inside a parallel region"), "{threads} threads, {tasks} tasks: {text}");
            // The engine works on.
            assert_eq!(product(&e), vec![64.0; 64 * 64]);
        }
        let other = engine(isas()[0], 2, Backend::Ours);
        let nested = catch_unwind(AssertUnwindSafe(|| other.pool().run(|_| drop(product(&e)))));
        assert!(nested.is_err(), "two engines that call each other could wait for each other");
    }
}
