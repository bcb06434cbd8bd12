use std::time::Instant;
use half::bf16;
use ttft_kernels::*;
fn main() {
    let e = Engine::new(&Options::default()).unwrap();
    let fill = |n: usize, seed: u32| -> Vec<bf16> {
        let mut s = seed | 1;
        (0..n).map(|_| { s ^= s << 13; s ^= s >> 17; s ^= s << 5; bf16::from_f32((s >> 8) as f32 / 8388608.0 - 1.0) }).collect()
    };
    let k = 2048;
    let (count, n) = (24, 4096); // 16 MB each
    let aux: Vec<Vec<bf16>> = (0..count).map(|i| fill(n * k, i as u32 + 7)).collect();
    let base = fill(1 << 30, 3); // 2 GB
    let rows_all = base.len() / k;
    for m in [64usize, 128, 256] {
        let x = fill(m * k, 9);
        let mut y = vec![0f32; m * n];
        let xb = fill(k, 11);
        let mut yb = vec![0f32; rows_all];
        let mut at = 0usize;
        let mut rounds: Vec<(String, Vec<f64>, f64)> = Vec::new();
        let ratios = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for round in 0..9 {
            for (i, r) in ratios.iter().enumerate() {
                for mode in 0..2 {
                    let few = ((n as f64 * r) as usize).min(rows_all / 4);
                    let t = Instant::now();
                    for w in &aux {
                        if at + few > rows_all { at = 0; }
                        let wm = Weight::BF16(Mat::new(w, n, k));
                        let many = Product { x: Mat::new(&x, m, k), w: wm, out: Output::Store(MatMut::new(&mut y, m, n)) };
                        let wf = Weight::BF16(Mat::new(&base, rows_all, k)).rows_at(at, few);
                        let fewp = Product { x: Mat::new(&xb, 1, k), w: wf, out: Output::Store(MatMut::new(&mut yb[..few], 1, few)) };
                        if mode == 0 { e.linear_beside(many, fewp).unwrap(); } else { e.linear(many.x, many.w, many.out).unwrap(); e.linear(fewp.x, fewp.w, fewp.out).unwrap(); }
                        at += few;
                    }
                    let s = t.elapsed().as_secs_f64() / count as f64;
                    let id = i * 2 + mode;
                    if rounds.len() <= id { rounds.push((format!("m {m} ratio {r} {}", ["beside", "in turn"][mode]), vec![], ((n + few) * k * 2) as f64)); }
                    if round > 0 { rounds[id].1.push(s); }
                }
            }
        }
        for (name, mut t, bytes) in rounds {
            t.sort_by(f64::total_cmp);
            let s = t[t.len() / 2];
            println!("{name:28} {:8.3} ms {:7.0} GFLOP/s of the many {:6.1} GB/s", s * 1e3, 2.0 * (m * n * k) as f64 / s / 1e9, bytes / s / 1e9);
        }
    }
}
