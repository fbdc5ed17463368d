//! The canonical chain against tables of blocks such as `4a` (height and branch letter), and
//! against random trees of heads (G1, G3, G10).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;

use alloy_primitives::{B256, keccak256};
use ethhook_domain::block::Seal;
use ethhook_domain::canonical::{Ask, Change, FinalityViolation, SIGHTINGS};
use ethhook_domain::{BlockRef, CanonicalChain, Header};
use proptest::prelude::*;

fn header(name: &str, parent: &str) -> Header {
    let number = name.trim_end_matches(char::is_alphabetic).parse().unwrap();
    Header {
        block: BlockRef {
            number,
            hash: keccak256(name),
            parent_hash: keccak256(parent),
            timestamp: number,
        },
        transactions_root: B256::ZERO,
        receipts_root: B256::ZERO,
        logs_bloom: Box::default(),
        gas_used: 0,
        seal: Seal::Matches,
    }
}

/// A node that knows every block ever made, and which of them are canonical in its view.
#[derive(Default)]
struct Node {
    names: HashMap<B256, String>,
    blocks: HashMap<String, Header>,
    canonical: Vec<String>,
}

impl Node {
    /// Adds branches, separated by `;`: each block's parent is the one before it. The first block
    /// of a branch has the parent at the height below it in the `from` branch (`3b<2a`).
    fn with(tree: &str) -> Self {
        let mut node = Self::default();
        for branch in tree.split(';') {
            let mut parent = "0".to_owned();
            for token in branch.split_whitespace() {
                let (name, from) = token.split_once('<').unwrap_or((token, &parent));
                node.add(name, from);
                parent = name.to_owned();
            }
        }
        node
    }

    fn add(&mut self, name: &str, parent: &str) {
        let header = header(name, parent);
        self.names.insert(header.block.hash, name.to_owned());
        self.blocks.insert(name.to_owned(), header);
    }

    /// Makes the branch ending in `tip` canonical.
    fn follow(&mut self, tip: &str) {
        let mut name = tip.to_owned();
        self.canonical.clear();
        while let Some(header) = self.blocks.get(&name) {
            self.canonical.push(name.clone());
            name = self.names.get(&header.block.parent_hash).cloned().unwrap_or_default();
        }
        self.canonical.reverse();
    }

    fn latest(&self) -> Header {
        self.blocks[self.canonical.last().unwrap()].clone()
    }

    /// Answers all questions of `chain` until it has none left.
    fn satisfy(
        &self,
        chain: &mut CanonicalChain,
        told: &mut Steps,
    ) -> Result<(), Box<FinalityViolation>> {
        for _ in 0..10_000 {
            let Some(ask) = chain.ask() else { return Ok(()) };
            match ask {
                Ask::Latest => told.take(&self.names, chain.told(self.latest())?),
                Ask::Hash(hash) => match self.names.get(&hash) {
                    Some(name) => {
                        told.take(&self.names, chain.answered(self.blocks[name].clone())?)
                    }
                    None => chain.unanswered(),
                },
                Ask::Numbers(mut numbers) => {
                    let first = self.blocks[&self.canonical[0]].block.number;
                    let at =
                        |n: u64| self.canonical.get(usize::try_from(n.checked_sub(first)?).ok()?);
                    match numbers.next().and_then(at) {
                        Some(name) => {
                            told.take(&self.names, chain.answered(self.blocks[name].clone())?);
                        }
                        None => chain.unanswered(),
                    }
                }
            }
        }
        panic!("the chain never stops asking");
    }

    /// Polls as many times as a lower branch needs to be believed.
    fn settle(
        &self,
        chain: &mut CanonicalChain,
        told: &mut Steps,
    ) -> Result<(), Box<FinalityViolation>> {
        for _ in 0..SIGHTINGS {
            chain.doubt();
            self.satisfy(chain, told)?;
        }
        Ok(())
    }
}

/// The steps so far, such as `+1a +2a -2a +2b`.
#[derive(Default)]
struct Steps(Vec<String>);

impl Steps {
    fn take(&mut self, names: &HashMap<B256, String>, change: Change) {
        self.0.extend(change.undo.iter().map(|b| format!("-{}", names[&b.hash])));
        self.0.extend(change.new.iter().map(|h| format!("+{}", names[&h.block.hash])));
    }

    /// Replays the steps; each undo must name the tip, and each new block's parent must be the tip.
    fn replay(&self, node: &Node) -> Vec<String> {
        let mut chain: Vec<String> = Vec::new();
        for step in &self.0 {
            let (sign, name) = step.split_at(1);
            if sign == "-" {
                assert_eq!(
                    chain.pop().as_deref(),
                    Some(name),
                    "undo of another block than the tip"
                );
            } else {
                if let Some(tip) = chain.last() {
                    assert_eq!(node.blocks[name].block.parent_hash, node.blocks[tip].block.hash);
                }
                chain.push(name.to_owned());
            }
        }
        chain
    }
}

/// Runs a script of `head X` (the node switches to X and its head is heard), `late X` (X is heard
/// again), `quiet X` (the node switches, nothing is heard), `poll`, `settle` and `final N`.
fn check(tree: &str, script: &str, expected: &str) {
    let mut node = Node::with(tree);
    let mut chain = CanonicalChain::new(1, [], false);
    let mut steps = Steps::default();
    for line in script.split(',') {
        let (word, name) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let result = match word {
            "head" | "late" => {
                if word == "head" {
                    node.follow(name);
                }
                steps.take(&node.names, chain.heard(node.blocks[name].clone()));
                node.satisfy(&mut chain, &mut steps)
            }
            "quiet" => {
                node.follow(name);
                Ok(())
            }
            "poll" => {
                chain.doubt();
                node.satisfy(&mut chain, &mut steps)
            }
            "settle" => node.settle(&mut chain, &mut steps),
            "final" => {
                chain.finalize(name.parse().unwrap());
                Ok(())
            }
            other => panic!("unknown word {other}"),
        };
        if let Err(violation) = result {
            steps.0.push(format!("!{}", node.names[&violation.theirs.hash]));
        }
    }
    assert_eq!(steps.0.join(" "), expected, "{tree} | {script}");
}

#[test]
fn follows_heads_and_fills_gaps_by_number() {
    let tree = "1a 2a 3a 4a 5a";
    check(tree, "head 1a, head 2a, head 3a", "+1a +2a +3a");
    check(tree, "head 1a, head 5a", "+1a +2a +3a +4a +5a");
    check(tree, "quiet 3a, poll, head 4a", "+1a +2a +3a +4a");
    check(tree, "head 2a, head 4a, late 3a, late 4a, late 1a", "+1a +2a +3a +4a");
}

#[test]
fn g3_takes_orphans_back_and_follows_the_new_branch() {
    let tree = "1a 2a 3a 4a; 3b<2a 4b 5b; 2c<1a 3c 4c 5c 6c";
    check(tree, "head 4a, head 5b", "+1a +2a +3a +4a -4a -3a +3b +4b +5b");
    check(tree, "head 4a, head 4b", "+1a +2a +3a +4a -4a -3a +3b +4b");
    check(tree, "head 4a, head 4b, head 4a", "+1a +2a +3a +4a -4a -3a +3b +4b -4b -3b +3a +4a");
    check(
        tree,
        "head 4a, head 5b, head 6c",
        "+1a +2a +3a +4a -4a -3a +3b +4b +5b -5b -4b -3b -2a +2c +3c +4c +5c +6c",
    );
    // The reorg happened while nothing was heard, and the new branch is higher.
    check(tree, "head 3a, quiet 6c, poll", "+1a +2a +3a -3a -2a +2c +3c +4c +5c +6c");
}

#[test]
fn g3_a_head_by_itself_is_never_a_reorg() {
    let tree = "1a 2a 3a 4a; 3b<2a 4b 5b";
    // Late heads of an orphaned branch, including one higher than the tip.
    check(tree, "head 4a, late 3b, late 4b, late 5b, late 5b", "+1a +2a +3a +4a");
    // A lagging node reports known blocks, however often.
    check(tree, "head 4a, quiet 1a, settle, settle, late 1a", "+1a +2a +3a +4a");
}

#[test]
fn a_lower_branch_is_believed_when_the_node_insists() {
    let tree = "1a 2a 3a 4a 5a; 3b<2a 4b";
    check(tree, "head 5a, head 4b", "+1a +2a +3a +4a +5a");
    check(tree, "head 5a, head 4b, poll, poll", "+1a +2a +3a +4a +5a -5a -4a -3a +3b +4b");
    check(tree, "head 5a, quiet 4b, poll, quiet 5a, poll, quiet 4b, poll", "+1a +2a +3a +4a +5a");
    // The node reports the branch twice, returns to ours, and starts over.
    let wavering = "head 5a, quiet 4b, poll, poll, quiet 5a, poll, quiet 4b, poll";
    check(tree, wavering, "+1a +2a +3a +4a +5a");
    // A report of our own block at the branch's height has the same effect, although it is not our
    // tip; one of a lower block proves nothing.
    let between =
        "head 5a, quiet 4b, poll, quiet 4a, poll, quiet 4b, poll, quiet 3a, poll, quiet 4b, poll";
    check(tree, between, "+1a +2a +3a +4a +5a");
    let below =
        "head 5a, quiet 4b, poll, quiet 2a, poll, quiet 4b, poll, quiet 1a, poll, quiet 4b, poll";
    check(tree, below, "+1a +2a +3a +4a +5a -5a -4a -3a +3b +4b");
}

#[test]
fn g7_a_block_for_which_there_is_no_room_is_asked_for_by_number_later() {
    let mut node = Node::with("1a 2a 3a 4a");
    node.follow("4a");
    let (mut chain, mut steps) = (CanonicalChain::new(1, [], false), Steps::default());
    node.follow("2a");
    node.settle(&mut chain, &mut steps).unwrap();
    let next = node.blocks["3a"].block;
    assert!(chain.is_next(&next) && !chain.is_next(&node.blocks["4a"].block));
    chain.postpone(&next);
    chain.heard_of(4);
    assert_eq!(chain.ask(), Some(Ask::Numbers(3..=4)));
    node.follow("4a");
    node.satisfy(&mut chain, &mut steps).unwrap();
    assert_eq!(steps.0.join(" "), "+1a +2a +3a +4a");
}

#[test]
fn of_a_head_on_another_parent_than_the_tip_the_node_is_asked_at_once() {
    let mut node = Node::with("1a 2a 3a; 3b<2a 4b");
    node.follow("3a");
    let (mut chain, mut steps) = (CanonicalChain::new(1, [], false), Steps::default());
    node.settle(&mut chain, &mut steps).unwrap();
    assert_eq!(chain.ask(), None);
    assert!(chain.heard(node.blocks["4b"].clone()).is_empty());
    assert_eq!(chain.ask(), Some(Ask::Latest));
}

#[test]
fn the_first_block_has_a_free_parent() {
    check("1a 2a; 1b 2b 3b", "head 2a, head 3b", "+1a +2a -2a -1a +1b +2b +3b");
    check("0x 1a 2a", "head 2a", "+1a +2a");
}

#[test]
fn g10_nothing_final_is_taken_back() {
    let tree = "1a 2a 3a 4a; 3b<2a 4b 5b; 2c<1a 3c 4c 5c 6c";
    check(tree, "head 4a, final 2, head 5b", "+1a +2a +3a +4a -4a -3a +3b +4b +5b");
    // Below the finalized block: only an insisting node raises the alarm, and nothing moves.
    check(tree, "head 4a, final 3, head 5b", "+1a +2a +3a +4a");
    check(tree, "head 4a, final 3, head 5b, poll, poll", "+1a +2a +3a +4a !3b");
    check(tree, "head 4a, final 2, head 6c, settle", "+1a +2a +3a +4a !2c");
    check(tree, "head 4a, final 3, quiet 2a, poll, poll, poll, poll", "+1a +2a +3a +4a"); // the node lags
    check(tree, "head 4a, final 3, quiet 2c, poll, poll, poll, poll", "+1a +2a +3a +4a"); // nothing can be concluded
    check(tree, "head 4a, final 1, head 6c", "+1a +2a +3a +4a -4a -3a -2a +2c +3c +4c +5c +6c");
    check("1a 2a 3a; 1b 2b 3b 4b", "head 3a, final 1, head 4b, settle", "+1a +2a +3a !1b");
    // Finalized never moves back.
    check(tree, "head 4a, final 3, final 1, head 5b, settle", "+1a +2a +3a +4a !3b");
}

#[test]
fn a_branch_that_cannot_be_is_dropped() {
    let mut node = Node::with("1a 2a 3a 4a 5a");
    node.follow("4a");
    let (mut chain, mut steps) = (CanonicalChain::new(1, [], false), Steps::default());
    node.settle(&mut chain, &mut steps).unwrap();
    // Claims height 4 with a parent at height 2.
    let made_up =
        Header { block: BlockRef { number: 4, ..header("4x", "2a").block }, ..header("4x", "2a") };
    assert!(chain.told(made_up).unwrap().is_empty());
    assert_eq!(chain.ask(), Some(Ask::Hash(keccak256("2a"))));
    assert!(chain.answered(node.blocks["2a"].clone()).unwrap().is_empty());
    assert_eq!(chain.ask(), None);
    assert_eq!(chain.heard(node.blocks["5a"].clone()).new.len(), 1);
}

#[test]
fn a_session_goes_on_from_the_links_it_is_given() {
    let mut node = Node::with("1a 2a 3a 4a; 3b<2a 4b 5b");
    node.follow("5b");
    let links = ["2a", "3a", "4a"].map(|name| node.blocks[name].block);
    let (mut chain, mut steps) = (CanonicalChain::new(1, links, true), Steps::default());
    chain.told(node.blocks["4a"].clone()).unwrap();
    assert!(chain.heard(node.blocks["1a"].clone()).is_empty());
    assert_eq!(chain.ask(), None, "an ancient head is not worth a question");
    chain.doubt();
    node.satisfy(&mut chain, &mut steps).unwrap();
    assert_eq!(steps.0.join(" "), "-4a -3a +3b +4b +5b");
    assert_eq!((chain.tip().unwrap().number, chain.next_number()), (5, 6));
    assert!(chain.at(1).is_none() && chain.at(2).is_some());
}

#[derive(Debug, Clone)]
enum Act {
    Mine(usize),
    Reorg { depth: usize, len: usize },
    SwitchTo(usize),
    Announce { back: usize },
    Orphan(usize),
    Poll,
    Satisfy,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1..4_usize).prop_map(Act::Mine),
        2 => (1..6_usize, 1..7_usize).prop_map(|(depth, len)| Act::Reorg { depth, len }),
        1 => (0..8_usize).prop_map(Act::SwitchTo),
        4 => (0..5_usize).prop_map(|back| Act::Announce { back }),
        2 => (0..50_usize).prop_map(Act::Orphan),
        1 => Just(Act::Poll),
        4 => Just(Act::Satisfy),
    ];
    prop::collection::vec(act, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_steps_replay_to_the_nodes_canonical_chain(acts in acts()) {
        let mut node = Node::default();
        node.add("1g", "0");
        node.follow("1g");
        let (mut tips, mut made) = (vec!["1g".to_owned()], vec!["1g".to_owned()]);
        let (mut chain, mut steps) = (CanonicalChain::new(1, [], false), Steps::default());
        let mut branch = 0_u32;
        for act in acts {
            match act {
                Act::Mine(len) | Act::Reorg { len, .. } => {
                    let keep = match act {
                        Act::Reorg { depth, .. } => node.canonical.len().saturating_sub(depth).max(1),
                        _ => node.canonical.len(),
                    };
                    branch += 1;
                    let letters: String = branch.to_string().chars()
                        .map(|c| char::from(b'a' + (c as u8 - b'0'))).collect();
                    let mut parent = node.canonical[keep - 1].clone();
                    for i in 0..len {
                        let name = format!("{}{letters}", keep + 1 + i);
                        node.add(&name, &parent);
                        made.push(name.clone());
                        parent = name;
                    }
                    node.follow(&parent);
                    tips.push(parent);
                }
                Act::SwitchTo(i) => node.follow(&tips[tips.len() - 1 - i % tips.len()].clone()),
                Act::Announce { back } => {
                    let name = &node.canonical[node.canonical.len() - 1 - back % node.canonical.len()];
                    steps.take(&node.names, chain.heard(node.blocks[name].clone()));
                }
                Act::Orphan(i) => {
                    let name = &made[i % made.len()];
                    steps.take(&node.names, chain.heard(node.blocks[name].clone()));
                }
                Act::Poll => chain.doubt(),
                Act::Satisfy => node.satisfy(&mut chain, &mut steps).unwrap(),
            }
        }
        node.satisfy(&mut chain, &mut steps).unwrap();
        node.settle(&mut chain, &mut steps).unwrap();
        let replayed = steps.replay(&node);
        // A node whose head is an ancestor of our tip looks like one that lags: we keep the tip.
        let keeps_ancestor = replayed.starts_with(&node.canonical);
        prop_assert!(keeps_ancestor, "{:?} is not {:?}\n{}", replayed, node.canonical, steps.0.join(" "));
        // `new` and `removed` alternate for each block.
        let mut live: HashMap<&str, bool> = HashMap::new();
        for step in &steps.0 {
            let (sign, name) = step.split_at(1);
            prop_assert_ne!(live.insert(name, sign == "+").unwrap_or(false), sign == "+");
        }
    }
}
