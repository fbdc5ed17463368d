//! The events of simulated blocks: token events, as most events of a real chain are.

use alloy_primitives::{Address, B256, Bytes, Log, U256, b256};

use crate::body::to_index;
use crate::seed::Bits;

/// ERC-20 and ERC-721 have the same signature; the third argument is indexed only in ERC-721.
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
const APPROVAL: B256 = b256!("8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925");
const APPROVAL_FOR_ALL: B256 =
    b256!("17307eab39ab6107e8899845ad3d59bd9653f200f220920489ca2b5937696c31");
const TRANSFER_SINGLE: B256 =
    b256!("c3d58168c5ae7397731d063d5bbf3d657854427343f4c083240f7aacaa2d0f62");
const TRANSFER_BATCH: B256 =
    b256!("4a39dc06d4c0dbc64b70af90fd698a233a518aa5d07e595d983b8c0526c8f7fb");
const CONSECUTIVE_TRANSFER: B256 =
    b256!("deaa91b6123d068f5821d0fb0678463d1a8a6079fe8af5de3ce5e896dcf9133d");

/// The contracts whose events occur in one block.
pub(crate) struct Contracts {
    erc20: Vec<Address>,
    erc721: Vec<Address>,
    erc1155: Vec<Address>,
}

impl Contracts {
    pub(crate) fn of(bits: &mut Bits) -> Self {
        let mut some = |count: u8| (0..count).map(|_| bits.address()).collect();
        Self { erc20: some(24), erc721: some(6), erc1155: some(4) }
    }

    /// One event: four in five are of ERC-20.
    pub(crate) fn log(&self, bits: &mut Bits) -> Log {
        match bits.below(100) {
            0..80 => erc20(bits, &self.erc20),
            80..90 => erc721(bits, &self.erc721),
            90..98 => erc1155(bits, &self.erc1155),
            _ => erc2309(bits, &self.erc721),
        }
    }
}

fn one_of(bits: &mut Bits, contracts: &[Address]) -> Address {
    contracts[to_index(bits.below(contracts.len() as u64))]
}

fn word(number: u64) -> B256 {
    U256::from(number).into()
}

fn account(bits: &mut Bits) -> B256 {
    bits.address().into_word()
}

fn words(words: &[U256]) -> Bytes {
    words.iter().flat_map(U256::to_be_bytes::<32>).collect()
}

/// A Transfer, or one time in twenty an Approval: three topics and 32 bytes of data.
fn erc20(bits: &mut Bits, tokens: &[Address]) -> Log {
    let token = one_of(bits, tokens);
    let event = if bits.below(20) == 0 { APPROVAL } else { TRANSFER };
    let value = U256::from(bits.next()) * U256::from(1 + bits.below(1_000_000));
    Log::new_unchecked(token, vec![event, account(bits), account(bits)], words(&[value]))
}

/// A Transfer or an Approval of one token: four topics and no data; or an ApprovalForAll.
fn erc721(bits: &mut Bits, tokens: &[Address]) -> Log {
    let token = one_of(bits, tokens);
    let (from, to) = (account(bits), account(bits));
    let event = match bits.below(8) {
        0 => {
            let approved = U256::from(bits.below(2));
            return Log::new_unchecked(token, vec![APPROVAL_FOR_ALL, from, to], words(&[approved]));
        }
        1 => APPROVAL,
        _ => TRANSFER,
    };
    Log::new_unchecked(token, vec![event, from, to, word(bits.below(10_000))], Bytes::new())
}

/// A `TransferSingle`, or one time in three a `TransferBatch` of up to 8 ids, whose data are two
/// arrays of the same length, preceded by their offsets.
fn erc1155(bits: &mut Bits, tokens: &[Address]) -> Log {
    let token = one_of(bits, tokens);
    let parties = [account(bits), account(bits), account(bits)];
    let topics = |event| [vec![event], parties.to_vec()].concat();
    let mut amount = || U256::from(1 + bits.below(10_000));
    if amount() % U256::from(3) != U256::ZERO {
        let data = words(&[amount(), amount()]);
        return Log::new_unchecked(token, topics(TRANSFER_SINGLE), data);
    }
    let count = amount() % U256::from(9);
    let length = count.to::<usize>();
    let mut data = vec![U256::from(64), U256::from(64 + 32 * (1 + length))];
    for _ in 0..2 {
        data.push(count);
        data.extend((0..length).map(|_| amount()));
    }
    Log::new_unchecked(token, topics(TRANSFER_BATCH), words(&data))
}

/// A `ConsecutiveTransfer`: four topics, and the last id of the range as data.
fn erc2309(bits: &mut Bits, tokens: &[Address]) -> Log {
    let token = one_of(bits, tokens);
    let first = bits.below(10_000);
    let topics = vec![CONSECUTIVE_TRANSFER, word(first), account(bits), account(bits)];
    Log::new_unchecked(token, topics, words(&[U256::from(first + bits.below(5_000))]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alloy_primitives::keccak256;

    use super::*;

    #[test]
    fn events_have_the_topics_of_their_signatures_and_all_come() {
        let mut bits = Bits::of(&[1]);
        let contracts = Contracts::of(&mut bits);
        let mut seen: BTreeMap<(B256, usize), usize> = BTreeMap::new();
        for _ in 0..10_000 {
            let log = contracts.log(&mut bits);
            *seen.entry((log.topics()[0], log.topics().len())).or_default() += 1;
        }
        let expected = [
            ("Transfer(address,address,uint256)", 3),
            ("Transfer(address,address,uint256)", 4),
            ("Approval(address,address,uint256)", 3),
            ("Approval(address,address,uint256)", 4),
            ("ApprovalForAll(address,address,bool)", 3),
            ("TransferSingle(address,address,address,uint256,uint256)", 4),
            ("TransferBatch(address,address,address,uint256[],uint256[])", 4),
            ("ConsecutiveTransfer(uint256,uint256,address,address)", 4),
        ];
        for (signature, topics) in expected {
            let count = seen.remove(&(keccak256(signature), topics));
            assert!(count.is_some_and(|count| count > 50), "{signature} {topics}: {count:?}");
        }
        assert!(seen.is_empty(), "{seen:?}");
    }
}
