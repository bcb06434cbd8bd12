//! Seeded normal numbers: what statistics are tested against, and what a calibration simulates with.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// A source of independent standard normal numbers.
#[derive(Debug)]
pub struct Normal(ChaCha8Rng);

impl Normal {
    /// The same seed always gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number of (0, 1).
    fn uniform(&mut self) -> f64 {
        (f64::from(self.0.next_u32()) + 0.5) / 4_294_967_296.0
    }

    /// The next standard normal number (Box and Muller).
    pub fn draw(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        radius * angle.cos()
    }

    /// True in half of the cases.
    pub fn coin(&mut self) -> bool {
        self.0.next_u32() & 1 == 1
    }
}
