//! `Seed`: 64 bits that name a run, split into named, keyed streams.
//!
//! A draw depends on `(seed, stream, key, index)` and on nothing else, so that taking a fault out of
//! a plan, or adding a message to one connection, does not reshuffle the draws of anything else.

use std::{fmt, str::FromStr};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// 64 bits that name a run of a workload.
///
/// ```
/// let seed: sim::Seed = "0x5eed".parse().unwrap();
/// assert_eq!(seed, sim::Seed(24301));
/// assert_eq!(seed.to_string(), "0x5eed");
/// // The same stream and key draw the same numbers, whatever else was drawn.
/// assert_eq!(seed.stream("net", 7).next(), seed.stream("net", 7).next());
/// assert_ne!(seed.stream("net", 7).next(), seed.stream("disk", 7).next());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seed(pub u64);

impl Seed {
    /// The draws of stream `name` for `key` (a node, a link, a connection).
    pub fn stream(self, name: &str, key: u64) -> Stream {
        let base = xxh3_64_with_seed(name.as_bytes(), self.0);
        Stream {
            key: mix(base ^ mix(key)),
            index: 0,
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why a text is not a seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a seed: write a decimal number or 0x and hexadecimal digits, below 2^64")]
pub struct SeedError(String);

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map(Seed).map_err(|_| SeedError(text.to_owned()))
    }
}

/// One keyed stream of a seed: the n-th draw is a pure function of the stream's key and of n.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    index: u64,
}

impl Stream {
    /// The next 64 bits.
    // Not an iterator: a stream never ends, and `for` over it would not either.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.index += 1;
        mix(self.key.wrapping_add(self.index.wrapping_mul(GOLDEN)))
    }

    /// A number below `bound`, which is above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below zero");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `per_mille` of 1,000 draws.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

impl rand_core::RngCore for Stream {
    fn next_u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.next()
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_seed_is_refused_by_name() {
        for text in ["", "0x", "-1", "5eed", "0x1_0000", "18446744073709551616"] {
            let error = text.parse::<Seed>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{text}`")));
        }
    }

    #[test]
    fn draws_are_spread() {
        let mut stream = Seed(1).stream("test", 0);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[stream.below(10) as usize] += 1;
        }
        assert!(
            seen.iter().all(|count| (900..1100).contains(count)),
            "{seen:?}"
        );
    }
}
