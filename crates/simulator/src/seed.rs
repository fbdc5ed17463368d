//! Pseudo-random numbers from a seed (splitmix64): the same on every platform and in every version.
//! A reproducible chain needs that, and `rand`'s small generators do not promise it.

use alloy_primitives::{Address, B256};

/// A stream of 64-bit numbers that depends on nothing but its seed.
pub(crate) struct Bits(u64);

impl Bits {
    /// The stream that belongs to `words`.
    pub(crate) fn of(words: &[u64]) -> Self {
        Self(mix(words))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finish(self.0)
    }

    /// A number below `bound`, which must not be 0. The slight bias does no harm here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn hash(&mut self) -> B256 {
        let mut bytes = B256::ZERO;
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next().to_be_bytes());
        }
        bytes
    }

    pub(crate) fn address(&mut self) -> Address {
        Address::from_slice(&self.hash()[12..])
    }
}

/// Combines several numbers into one; each affects all bits of the result.
pub(crate) fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x243f_6a88_85a3_08d3, |state, word| {
        finish(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ finish(*word))
    })
}

fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
