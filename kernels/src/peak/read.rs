//! Ways of reading memory once. Which is fastest depends on the CPU's own prefetchers, so that all are tried.

use crate::simd::{Kernel, Vector};

/// How a thread reads its piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Parts that are read side by side.
    streams: Streams,
    ahead: Prefetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streams {
    One,
    Four,
    Eight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefetch {
    None,
    /// To the second-level cache.
    L2,
    /// As what is read once.
    Once,
}

pub(super) const WAYS: [Way; 9] = {
    use {Prefetch::*, Streams::*};
    [
        Way { streams: One, ahead: None },
        Way { streams: One, ahead: L2 },
        Way { streams: One, ahead: Once },
        Way { streams: Four, ahead: None },
        Way { streams: Four, ahead: L2 },
        Way { streams: Four, ahead: Once },
        Way { streams: Eight, ahead: None },
        Way { streams: Eight, ahead: L2 },
        Way { streams: Eight, ahead: Once },
    ]
};

/// Bytes of a stream that are prefetched ahead: without, one core of Zen 4 does not keep memory busy. Prefetches past the second
/// level, equal there, read half as much on an Intel core (Sapphire Rapids and later).
const AHEAD: usize = 5 << 10;

/// Reads every byte once.
pub(super) struct Read<'a>(pub &'a [u8], pub Way);

impl Kernel for Read<'_> {
    type Output = u64;
    #[inline(always)]
    fn run<V: Vector>(self, v: V) -> u64 {
        match self.1.streams {
            Streams::One => read::<V, 1>(v, self.0, self.1.ahead),
            Streams::Four => read::<V, 4>(v, self.0, self.1.ahead),
            Streams::Eight => read::<V, 8>(v, self.0, self.1.ahead),
        }
    }
}

#[inline(always)]
fn read<V: Vector, const N: usize>(v: V, bytes: &[u8], ahead: Prefetch) -> u64 {
    match ahead {
        Prefetch::None => streams::<V, N>(v, bytes, |_| ()),
        Prefetch::L2 => streams::<V, N>(
            v,
            bytes,
            #[inline(always)]
            |p| v.prefetch_l2(p),
        ),
        Prefetch::Once => streams::<V, N>(
            v,
            bytes,
            #[inline(always)]
            |p| v.prefetch_once(p),
        ),
    }
}

/// All bits of `bytes` that are set anywhere in a lane, from `N` parts side by side, eight vectors a turn.
#[inline(always)]
fn streams<V: Vector, const N: usize>(v: V, bytes: &[u8], prefetch: impl Fn(*const u8)) -> u64 {
    const VECTORS: usize = 8;
    let (vector, turn) = (4 * V::LANES, VECTORS / N * 4 * V::LANES);
    let each = bytes.len() / N / turn * turn;
    let mut acc = [v.splat_u32s(0); VECTORS];
    for at in (0..each).step_by(turn) {
        for s in 0..N {
            let part = &bytes[s * each + at..][..turn];
            for line in (0..turn).step_by(64) {
                prefetch(part.as_ptr().wrapping_add(AHEAD + line));
            }
            for i in 0..VECTORS / N {
                let x = bytemuck::pod_read_unaligned(&part[i * vector..][..vector]);
                let acc = &mut acc[s * (VECTORS / N) + i];
                *acc = v.or_u32s(*acc, x);
            }
        }
    }
    let rest = bytes[N * each..].iter().fold(0, |s, x| s | x);
    bytemuck::cast_slice::<V::U32s, u8>(&acc).iter().fold(rest, |s, x| s | x).into()
}
