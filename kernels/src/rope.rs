//! Rotary position embedding, half-split (rotate-half).

/// Cosines and sines for positions `0..positions`: angle `p * f_j` for pair j.
#[derive(Clone, Debug)]
pub struct RopeTable {
    head_dim: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for heads of `head_dim` (even) features, `f_j = theta^(-2j/d)`.
    ///
    /// # Panics
    /// If `head_dim` is odd.
    pub fn new(head_dim: usize, theta: f64, positions: usize) -> Self {
        assert!(head_dim.is_multiple_of(2), "RoPE pairs features: head_dim {head_dim} is odd");
        let frequency = |j| theta.powf(-2.0 * j as f64 / head_dim as f64);
        RopeTable::of(&(0..head_dim / 2).map(frequency).collect::<Vec<_>>(), positions)
    }

    /// A table of these frequencies, one for each pair of features: by how much it turns from one position to the next.
    pub fn of(frequencies: &[f64], positions: usize) -> Self {
        let half = frequencies.len();
        let inv: Vec<f32> = frequencies.iter().map(|f| *f as f32).collect();
        let (mut cos, mut sin) = (Vec::with_capacity(half * positions), Vec::with_capacity(half * positions));
        for p in 0..positions {
            for &i in &inv {
                // The product is taken in f32, as the reference does; its cosine is then exact to f32.
                let a = f64::from(p as f32 * i);
                cos.push(a.cos() as f32);
                sin.push(a.sin() as f32);
            }
        }
        RopeTable { head_dim: 2 * half, positions, cos, sin }
    }

    /// Features of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions held.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of position `p`, `[head_dim / 2]` each.
    #[inline]
    pub fn at(&self, p: usize) -> (&[f32], &[f32]) {
        let h = self.head_dim / 2;
        (&self.cos[p * h..][..h], &self.sin[p * h..][..h])
    }

    /// Undoes the rotation at position `p`: the inverse of what [`crate::Engine::heads`] applied.
    pub fn unrotate(&self, p: usize, x: &mut [f32]) {
        let (cos, sin) = self.at(p);
        let (lo, hi) = x.split_at_mut(self.head_dim / 2);
        for (((a, b), c), s) in lo.iter_mut().zip(hi).zip(cos).zip(sin) {
            (*a, *b) = (*a * c + *b * s, *b * c - *a * s);
        }
    }
}
