//! A chain and its endpoints, each with a proxy in front of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ethhook_domain::{Filter, Proof};
use ethhook_simulator::{
    Chain, Contents, Finality, ManualChain, ManualSpec, Mischief, Node, RunningNode,
};

use super::super::action::{ALL_LOGS, Action, FILTERS, Topics, WorldPlan};
use super::super::schedule::BLOOM;
use crate::canary;
use crate::checker::Checker;
use crate::node_rpc::NodeRpc;
use crate::proxy::Proxy;

const FIRST_CHAIN_ID: u64 = 31_337;
/// Every branch forks off at least this many blocks above the finality depth.
const ABOVE_FINAL: u64 = 10;
/// The ingestor remembers these for a minute, which is longer than a round should wait.
const LATCHED: &[&str] = &["method_not_found", "method_not_offered"];
/// Only the receipts root shows these.
const BEYOND_THE_BLOOM: &[&str] = &["alter_log", "drop_log"];

/// The chain as seen through one of its providers.
pub(super) struct Endpoint {
    pub(super) view: Chain,
    node: RunningNode,
    pub(super) link: Proxy,
}

/// As a list in a variable.
pub(super) fn list(topics: Topics) -> String {
    let topics: Vec<_> = topics.iter().map(ToString::to_string).collect();
    topics.join(",")
}

pub(super) struct Subject {
    pub(super) chain: ManualChain,
    pub(super) endpoints: Vec<Endpoint>,
    /// Height of the highest head so far: no branch forks off far below it.
    peak: u64,
    /// First height of the branch that the last reorg replaced.
    replaced_from: Option<u64>,
    deepest_fork: u64,
    confirmations: u64,
    verify: &'static str,
    /// Number of reorgs by depth.
    pub(super) reorgs: BTreeMap<u64, u64>,
}

impl Subject {
    pub(super) async fn new(position: u64, world: &WorldPlan) -> Result<Self> {
        let chain = Chain::manual(ManualSpec {
            seed: world.seed,
            events_per_block: world.events_per_block,
            empty_every: world.empty_every,
            ..ManualSpec::new(FIRST_CHAIN_ID + position)
        });
        chain.set_finality(Finality::Depth(world.finality_depth));
        let mut endpoints = Vec::new();
        for position in 0..world.endpoints {
            let view = if position == 0 { Chain::clone(&chain) } else { chain.view() };
            let node = Node::bind(([127, 0, 0, 1], 0).into(), [view.clone()]).await?.spawn();
            let link = Proxy::start(node.addr()).await?;
            endpoints.push(Endpoint { view, node, link });
        }
        let mut subject = Self {
            chain,
            endpoints,
            peak: 0,
            replaced_from: None,
            deepest_fork: world.finality_depth.saturating_sub(ABOVE_FINAL),
            confirmations: world.confirmations,
            verify: world.verify,
            reorgs: BTreeMap::new(),
        };
        (0..world.initial_blocks).for_each(|_| drop(subject.chain.mine_events(0)));
        subject.note_peak();
        Ok(subject)
    }

    pub(super) fn id(&self) -> u64 {
        self.chain.chain_id()
    }

    /// Its name in the ingestor's configuration.
    pub(super) fn name(&self) -> String {
        format!("chain{}", self.id() - FIRST_CHAIN_ID)
    }

    /// Its section of `ethhook.toml`.
    pub(super) fn section(&self, world: &WorldPlan) -> String {
        format!(
            "[chains.{}]\nchain_id = {}\nblock_time_ms = 200\nfinality_depth = {}\n\
             confirmations = {}\nverify = '{}'\n{}\n",
            self.name(),
            self.id(),
            world.finality_depth,
            world.confirmations,
            world.verify,
            world.of_chains,
        )
    }

    /// Its settings, as names and values.
    pub(super) fn settings(&self, world: &WorldPlan) -> Vec<(String, String)> {
        let name = self.name().to_uppercase();
        let urls = |scheme: &str| {
            let url = |endpoint: &Endpoint| {
                let address = endpoint.link.address();
                canary::node_url(&format!("{scheme}://{address}/{}", self.id()))
            };
            self.endpoints.iter().map(url).collect::<Vec<_>>().join(",")
        };
        let mut settings = vec![
            (format!("{name}_START_BLOCK"), "0".to_owned()),
            (format!("{name}_WS_URL"), urls("ws")),
            (self.topics_key(), list(world.topics)),
        ];
        if world.http {
            settings.push((format!("{name}_HTTP_URL"), urls("http")));
        }
        settings
    }

    /// The variable that holds its filter.
    pub(super) fn topics_key(&self) -> String {
        format!("{}_TOPICS", self.name().to_uppercase())
    }

    /// A checker that uses the first endpoint, which must behave at that time.
    pub(super) async fn checker(&self, redis_url: &str) -> Result<Checker> {
        let node = NodeRpc::at_url(self.endpoints[0].node.http_url(self.id()));
        let filter = |topics: Topics| Filter {
            topics: topics.iter().copied().collect(),
            ..Filter::default()
        };
        let checker = Checker::connect(redis_url, node, self.id()).await?.with_start(0);
        let verify = if self.verify == BLOOM { Proof::Bloom } else { Proof::ReceiptsRoot };
        Ok(checker
            .with_confirmations(self.confirmations)
            .with_peak(self.peak)
            .with_verify(verify)
            .with_filters([ALL_LOGS].into_iter().chain(FILTERS).map(filter)))
    }

    pub(super) fn mine(&mut self, blocks: u64) {
        self.chain.mine(blocks);
        self.note_peak();
    }

    pub(super) fn mine_empty(&mut self, blocks: u64) {
        (0..blocks).for_each(|_| drop(self.chain.mine_events(0)));
        self.note_peak();
    }

    fn note_peak(&mut self) {
        self.peak = self.peak.max(self.chain.head_number());
    }

    /// Performs an action that concerns only the chain and its endpoints; false if it is not
    /// possible at the moment.
    pub(super) fn perform(&mut self, action: &Action) -> bool {
        match action {
            Action::Mine { blocks } => self.mine(*blocks),
            Action::MineEmpty { blocks } => self.mine_empty(*blocks),
            Action::MineLarge { events } => drop(self.chain.mine_events(*events)),
            Action::Reorg { depth, longer_by, contents } => {
                return self.reorg(*depth, *longer_by, *contents);
            }
            Action::SwitchBack => {
                let Some(from) = self.replaced_from else { return false };
                if from <= self.peak.saturating_sub(self.deepest_fork) {
                    return false;
                }
                self.chain.switch_back();
            }
            Action::MuteHeads { at } => self.endpoints[*at].view.set_muted(true),
            Action::ShuffleHeads { at, blocks, first } => {
                self.chain.set_announcing(false);
                let mined = self.chain.mine(*blocks);
                let first = first % mined.len().max(1);
                for block in mined.iter().skip(first).chain(mined.iter().rev()) {
                    self.endpoints[*at].view.announce(block.hash());
                }
                self.chain.set_announcing(true);
            }
            Action::CutSockets { at } => self.endpoints[*at].view.cut_sockets(),
            Action::Provider { at, fault, method, calls } => {
                self.endpoints[*at].view.faults().push(*method, fault.clone(), *calls);
            }
            Action::Misbehave { at, seed, per_mille } => {
                let unseen = if self.verify == BLOOM { BEYOND_THE_BLOOM } else { &[] };
                let mischief = Mischief::mixed(*seed, *per_mille).without(LATCHED).without(unseen);
                self.endpoints[*at].view.misbehave(mischief);
            }
            _ => {}
        }
        self.note_peak();
        true
    }

    pub(super) fn reorg(&mut self, depth: u64, longer_by: u64, contents: Contents) -> bool {
        let head = self.chain.head_number();
        let lowest = self.peak.max(head).saturating_sub(self.deepest_fork);
        let depth = depth.min(head.saturating_sub(lowest));
        if depth == 0 {
            return false;
        }
        self.chain.reorg(depth, depth + longer_by, contents);
        self.replaced_from = Some(head - depth + 1);
        *self.reorgs.entry(depth).or_default() += 1;
        self.note_peak();
        true
    }

    /// A reorg that the node of the endpoint at `at` does not follow.
    pub(super) fn part(&mut self, at: usize, depth: u64) -> bool {
        let view = self.endpoints[at].view.clone();
        let parted = self.reorg(depth, 1, Contents::Fresh);
        if parted {
            view.set_on_other_branch(true);
        }
        parted
    }

    /// Ends all faults of the endpoints.
    pub(super) fn behave(&self) {
        for endpoint in &self.endpoints {
            endpoint.view.behave();
            endpoint.link.restore();
            endpoint.link.delay(Duration::ZERO);
            endpoint.link.slice(false);
        }
    }

    /// How often its endpoints misbehaved, by kind.
    pub(super) fn wrongs(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for endpoint in &self.endpoints {
            for (kind, count) in endpoint.view.stats().faults_played() {
                *all.entry(kind.to_owned()).or_default() += count;
            }
        }
        all
    }
}
