//! The blooms of a block's logs (yellow paper 4.3.1).

use alloy_primitives::map::{AddressMap, B256Map};
use alloy_primitives::{Bloom, keccak256};

use crate::Log;

/// Computes the blooms of one block's logs. The same contracts, events and accounts occur again and
/// again, so the bits of each item are hashed only once.
#[derive(Default)]
pub(super) struct Blooms {
    addresses: AddressMap<Bits>,
    topics: B256Map<Bits>,
}

/// The three bits that an address or topic sets (yellow paper 4.3.1), each as a byte and a mask.
type Bits = [(u8, u8); 3];

impl Blooms {
    pub(super) fn of<'a>(&mut self, logs: impl IntoIterator<Item = &'a Log>) -> Bloom {
        let mut bloom = Bloom::ZERO;
        let mut set = |bits: &Bits| {
            for (byte, mask) in bits {
                bloom.0[usize::from(*byte)] |= mask;
            }
        };
        for log in logs {
            set(self.addresses.entry(log.address).or_insert_with(|| bits(log.address.as_slice())));
            for topic in &log.topics {
                set(self.topics.entry(*topic).or_insert_with(|| bits(topic.as_slice())));
            }
        }
        bloom
    }
}

/// The low 11 bits of each of the hash's first three byte pairs are a bit's position, counted from
/// the bloom's last bit.
fn bits(item: &[u8]) -> Bits {
    let hash = keccak256(item);
    [0, 2, 4].map(|i| {
        let bit = u16::from_be_bytes([hash[i], hash[i + 1]]) & 0x7ff;
        let [_, byte] = (bit >> 3).to_be_bytes();
        (255 - byte, 1 << (bit & 7))
    })
}
