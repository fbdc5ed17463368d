//! What can happen in a world, and a world's settings.

use alloy_primitives::{B256, b256};
use ethhook_simulator::{Contents, Fault};

pub(super) const ALL_LOGS: Topics = &[];
/// Of most simulated blocks; of some; of few.
pub(super) const FILTERS: [Topics; 3] = [
    // Approval
    &[b256!("8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925")],
    // TransferSingle
    &[b256!("c3d58168c5ae7397731d063d5bbf3d657854427343f4c083240f7aacaa2d0f62")],
    // ApprovalForAll, ConsecutiveTransfer
    &[
        b256!("17307eab39ab6107e8899845ad3d59bd9653f200f220920489ca2b5937696c31"),
        b256!("deaa91b6123d068f5821d0fb0678463d1a8a6079fe8af5de3ce5e896dcf9133d"),
    ],
];

/// The link that a proxy controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// To the endpoint at this position.
    Node(usize),
    Redis,
}

/// What a proxy does to its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkFault {
    /// Connections are reset and new ones are refused.
    Cut,
    /// Connections are reset once.
    Drop,
    /// The connection is cut after this many more bytes of answers.
    CutAnswer(u64),
    /// Every byte is sent separately.
    Slices,
    /// Connections stay open, but nothing passes.
    HalfOpen,
    /// Every byte is delayed by this many ms.
    Delay(u64),
}

/// The form of the world's Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One server, behind a proxy.
    One,
    /// A master and a replica, watched by three Sentinels.
    Sentinel,
    /// Three masters with one replica each.
    Cluster,
}

/// The first topics that pass a filter; none for all logs.
pub(super) type Topics = &'static [B256];

/// One thing that happens. Durations are in ms; an action with a duration is undone after it, while
/// others happen. Actions that concern a chain are applied to the world's chains in turn; `at` is
/// one of its endpoints, `who` an ingestor.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Mine {
        blocks: u64,
    },
    MineEmpty {
        blocks: u64,
    },
    MineLarge {
        events: usize,
    },
    Reorg {
        depth: u64,
        longer_by: u64,
        contents: Contents,
    },
    SwitchBack,
    /// A reorg that this endpoint's node follows only later: until then it is on the branch that is replaced, and knows
    /// no other.
    Part {
        at: usize,
        depth: u64,
        millis: u64,
    },
    /// Below the finalized block: the chain must stop, and continue once the operator clears the
    /// alarm.
    ReorgBelowFinalized,
    MuteHeads {
        at: usize,
    },
    /// Heads of new blocks arrive in another order, one of them twice.
    ShuffleHeads {
        at: usize,
        blocks: u64,
        first: usize,
    },
    CutSockets {
        at: usize,
    },
    /// Mixed faults of a provider, on this many of 1,000 calls and heads.
    Misbehave {
        at: usize,
        seed: u64,
        per_mille: u32,
    },
    /// One kind of a provider's faults, until it has taken effect this many times.
    GoWrong {
        kind: &'static str,
        seed: u64,
        times: u64,
    },
    Provider {
        at: usize,
        fault: Fault,
        method: &'static str,
        calls: u32,
    },
    Link {
        side: Side,
        fault: LinkFault,
        millis: u64,
    },
    RedisKill {
        millis: u64,
    },
    /// Redis is killed, and its append-only file cut at this share of its length, in millionths.
    RedisCut {
        millionths: u64,
        millis: u64,
    },
    RedisFull {
        millis: u64,
    },
    RedisPause {
        millis: u64,
    },
    /// The master is killed after writes that its replica never received; the replica takes its
    /// place, and the old master comes back.
    RedisFailOver,
    Kill {
        who: usize,
        millis: u64,
    },
    /// An ingestor is killed, the chain reorganised, and the ingestor started again.
    KillAndReorg {
        who: usize,
        depth: u64,
        millis: u64,
    },
    Pause {
        who: usize,
        millis: u64,
    },
    /// An ingestor is paused for longer than the lease lasts.
    PausePastLease {
        who: usize,
    },
    /// The holder of the lease is paused until the other ingestor has taken over and published.
    PauseOwner,
    Terminate {
        who: usize,
        millis: u64,
    },
    /// An ingestor is killed, and started again with another filter.
    Refilter {
        who: usize,
        topics: Topics,
        millis: u64,
    },
    FailPoint {
        who: usize,
        point: &'static str,
        count: u32,
    },
}

impl Action {
    /// The row of the results table in which it is counted.
    pub(super) fn kind(&self, world: &WorldPlan) -> String {
        match self {
            Self::Mine { .. } => "chain: blocks mined in a burst".into(),
            Self::MineEmpty { .. } => "chain: empty blocks".into(),
            Self::MineLarge { .. } => "chain: block of 1,000 to 4,000 logs".into(),
            Self::Reorg { contents: Contents::Fresh, .. } => {
                "chain: reorg, other transactions".into()
            }
            Self::Reorg { .. } => "chain: reorg, the same transactions".into(),
            Self::SwitchBack => "chain: back to the branch before (A, B, A)".into(),
            Self::Part { .. } => {
                "chain: reorg, one node stays on the old branch for a while".into()
            }
            Self::ReorgBelowFinalized => {
                "chain: reorg below the finalized block; alarm, then clear-alarm".into()
            }
            Self::MuteHeads { .. } => "node: subscriptions fall silent".into(),
            Self::ShuffleHeads { .. } => "node: heads out of order and twice".into(),
            Self::CutSockets { .. } => "node: WebSockets cut".into(),
            Self::Misbehave { .. } => "node: all faults of providers, mixed".into(),
            Self::GoWrong { .. } => "node: one fault of providers alone".into(),
            Self::Provider { fault, .. } => format!("node: {} for some calls", fault.kind()),
            Self::Link { side, fault, .. } => {
                let side = if *side == Side::Redis { "Redis" } else { "node" };
                let fault = match fault {
                    LinkFault::Cut => "cut off",
                    LinkFault::Drop => "connections reset",
                    LinkFault::CutAnswer(_) => "answer cut in the middle",
                    LinkFault::Slices => "one byte at a time",
                    LinkFault::HalfOpen => "half-open",
                    LinkFault::Delay(_) => "slow",
                };
                format!("link to {side}: {fault}")
            }
            Self::RedisKill { .. } => format!("Redis: kill -9, appendfsync {}", world.appendfsync),
            Self::RedisCut { .. } => "Redis: kill -9, append-only file cut".into(),
            Self::RedisFull { .. } => "Redis: out of memory".into(),
            Self::RedisFailOver => match world.redis {
                Form::Cluster => "Redis: a Cluster's master killed, its replica lags".into(),
                _ => "Redis: the Sentinels' master killed, its replica lags".into(),
            },
            Self::RedisPause { .. } => "Redis: stopped for a while".into(),
            Self::Kill { .. } => "ingestor: kill -9".into(),
            Self::KillAndReorg { .. } => "ingestor: kill -9, reorg while it is down".into(),
            Self::Pause { .. } => "ingestor: stopped for a while".into(),
            Self::PausePastLease { .. } => "ingestor: stopped past its lease".into(),
            Self::PauseOwner => "ingestor: owner stopped, the other takes over".into(),
            Self::Terminate { .. } => "ingestor: SIGTERM".into(),
            Self::Refilter { .. } => "ingestor: kill -9, another filter".into(),
            Self::FailPoint { point, .. } => format!("fail point: {point}"),
        }
    }
}

/// What stays the same for several rounds: chains, a Redis, one or two ingestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorldPlan {
    pub(super) seed: u64,
    pub(super) rounds: u32,
    pub(super) redis: Form,
    pub(super) appendfsync: &'static str,
    pub(super) standby: bool,
    pub(super) lease_ms: u64,
    /// Requests use HTTP instead of the WebSocket.
    pub(super) http: bool,
    pub(super) chains: u64,
    /// For each chain.
    pub(super) endpoints: usize,
    pub(super) events_per_block: usize,
    pub(super) empty_every: u64,
    /// `STREAM_ENCODING`.
    pub(super) encoding: &'static str,
    /// Empty blocks that each chain has at the beginning.
    pub(super) initial_blocks: u64,
    /// The load on each chain while faults happen. 0: only blocks mined by actions.
    pub(super) blocks_per_second: u32,
    /// Duration of load before the first action of each round.
    pub(super) lead_ms: u64,
    pub(super) finality_depth: u64,
    /// `CONFIRMATIONS` of each chain.
    pub(super) confirmations: u64,
    /// `TOPICS` of each chain, until an action changes them.
    pub(super) topics: Topics,
    /// `VERIFY` of each chain.
    pub(super) verify: &'static str,
    /// Additional lines of each chain's section.
    pub(super) of_chains: &'static str,
    /// Additional settings of the ingestors.
    pub(super) settings: &'static [(&'static str, &'static str)],
}

impl WorldPlan {
    /// The value of one of the additional settings.
    pub(super) fn setting(&self, name: &str) -> Option<&'static str> {
        self.settings.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// One chain with one endpoint, one ingestor, a load of thirty small blocks a second.
    pub(super) fn small(seed: u64) -> Self {
        Self {
            seed,
            rounds: 10,
            redis: Form::One,
            appendfsync: "everysec",
            standby: false,
            lease_ms: 1_000,
            http: false,
            chains: 1,
            endpoints: 1,
            events_per_block: 6,
            empty_every: 7,
            encoding: "fields",
            initial_blocks: 0,
            blocks_per_second: 30,
            lead_ms: 300,
            finality_depth: 100,
            confirmations: 0,
            topics: ALL_LOGS,
            verify: "receipts_root",
            of_chains: "",
            settings: &[],
        }
    }
}
