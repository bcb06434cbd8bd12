//! `linear X W M N K REPEATS`: `y = x W^T` so many times on one thread, with X (f32, bf16) and W (f32, f16, bf16), after a
//! first one that touches all memory; prints the kernels that ran. For counting instructions: the difference between two
//! runs is that of their repeats.

use half::{bf16, f16};
use ttft_kernels::{Backend, DType, Element, Engine, Isa, Mat, MatMut, Output, Weight};
use ttft_tests::{engine, values};

fn run<A: Element>(e: &Engine, w: Weight<'_>, m: usize, repeats: usize) {
    let (n, k) = (w.n(), w.k());
    let x: Vec<A> = values(1, m * k, A::DTYPE).into_iter().map(A::from_f32).collect();
    let mut y = vec![0.0; m * n];
    for _ in 0..=repeats {
        e.linear(Mat::new(&x, m, k), w, Output::Store(MatMut::new(&mut y, m, n))).expect("the shapes agree");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [x, w, sizes @ ..] = args.as_slice() else { panic!("usage: linear X W M N K REPEATS") };
    let sizes: Vec<usize> = sizes.iter().map(|s| s.parse().expect("a size")).collect();
    let &[m, n, k, repeats] = sizes.as_slice() else { panic!("usage: linear X W M N K REPEATS") };

    let e = engine(Isa::best(), 1, Backend::Ours);
    let weights = |dtype| values(2, n * k, dtype).into_iter();
    let (f32s, f16s, bf16s): (Vec<f32>, Vec<f16>, Vec<bf16>);
    let w = match w.as_str() {
        "f32" => {
            f32s = weights(DType::F32).collect();
            Weight::F32(Mat::new(&f32s, n, k))
        }
        "f16" => {
            f16s = weights(DType::F16).map(f16::from_f32).collect();
            Weight::F16(Mat::new(&f16s, n, k))
        }
        "bf16" => {
            bf16s = weights(DType::BF16).map(bf16::from_f32).collect();
            Weight::BF16(Mat::new(&bf16s, n, k))
        }
        other => panic!("no weights of type {other}"),
    };
    match x.as_str() {
        "f32" => run::<f32>(&e, w, m, repeats),
        "bf16" => run::<bf16>(&e, w, m, repeats),
        other => panic!("no activations of type {other}"),
    }
    println!("{}", e.take_used().join(" "));
}
