//! Real reorgs of Polygon, from one node's answers in April 2021 (G3).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;

use alloy_primitives::B256;
use ethhook_domain::canonical::{Ask, Change};
use ethhook_domain::verify::verify;
use ethhook_domain::{CanonicalChain, Header, Profile, Proof};
use ethhook_testkit::chain_data::{self, RecordedBlock};
use serde_json::Value;

struct Session<'a> {
    blocks: &'a HashMap<B256, RecordedBlock>,
    chain: CanonicalChain,
    live: Vec<B256>,
    depths: Vec<usize>,
}

impl Session<'_> {
    fn header(&self, hash: B256) -> Header {
        self.blocks[&hash].header().unwrap()
    }

    fn take(&mut self, change: Change) {
        if !change.undo.is_empty() {
            self.depths.push(change.undo.len());
        }
        for block in change.undo {
            assert_eq!(self.live.pop(), Some(block.hash), "only the tip is taken back");
        }
        self.live.extend(change.new.iter().map(|header| header.block.hash));
    }

    /// Plays one recorded answer, and those that the chain requests because of it.
    fn play(&mut self, event: &Value) {
        let Some(hash) = event["result_block_hash"].as_str() else { return };
        let header = self.header(hash.parse().unwrap());
        let change = if event["params"][0] == "latest" {
            self.chain.told(header)
        } else {
            self.chain.answered(header)
        };
        self.take(change.unwrap());
        while let Some(Ask::Hash(parent)) = self.chain.ask() {
            let change = self.chain.answered(self.header(parent)).unwrap();
            self.take(change);
        }
    }
}

#[test]
fn the_recorded_sessions_replay_to_their_recorded_end() {
    let Some(dir) = chain_data::dir() else { return };
    let blocks: HashMap<_, _> = chain_data::polygon_reorg(&dir)
        .unwrap()
        .map(|block| block.unwrap())
        .map(|block| (block.header().unwrap().block.hash, block))
        .collect();
    let polygon = Profile::built_in().into_iter().find(|p| p.name == "polygon").unwrap();
    let profile = Profile { verify: Proof::Bloom, ..polygon };
    let (mut reorgs, mut logs, mut outside_bloom) = (Vec::new(), 0, 0);
    for recorded in chain_data::polygon_sessions(&dir).unwrap() {
        let chain = CanonicalChain::new(recorded["first_block"].as_u64().unwrap(), [], false);
        let mut session = Session { blocks: &blocks, chain, live: Vec::new(), depths: Vec::new() };
        recorded["events"].as_array().unwrap().iter().for_each(|event| session.play(event));

        let end: Vec<B256> = serde_json::from_value(recorded["canonical_at_end"].clone()).unwrap();
        assert_eq!(session.live, end, "session {}", recorded["session"]);
        reorgs.extend(session.depths);

        // The logs of the final canonical blocks all pass, including those of state syncs.
        for hash in &end {
            let block = &blocks[hash];
            let Some(body) = block.body().unwrap() else { continue };
            let verified = verify(&profile, &block.header().unwrap(), body).unwrap();
            assert_eq!(verified.logs.len(), block.logs.as_array().unwrap().len());
            logs += verified.logs.len();
            let plain = Profile { state_sync_until: 0, ..profile.clone() };
            let body = block.body().unwrap().unwrap();
            outside_bloom += usize::from(verify(&plain, &block.header().unwrap(), body).is_err());
        }
    }
    println!(
        "reorgs of depth {reorgs:?}, {logs} logs, {outside_bloom} blocks with state-sync logs"
    );
    // As recorded, and one more: the third session begins in the middle of a reorg, and its summary
    // omits that reorg's first step, which replaced the very first block.
    assert_eq!(reorgs, [1, 1, 2, 3, 3, 1]);
    assert!(logs > 5_000 && outside_bloom > 0);
}
