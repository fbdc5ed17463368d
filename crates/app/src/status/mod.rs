//! The state of the service and its chains: one model, shown by the page, its events,
//! `/status.json` and `ethhook status`, so that they cannot disagree.
//!
//! [`live`] fills it within the service, [`offline`] from Redis alone if no service answers, and
//! [`advice`] adds what is wrong and what to do about it.

mod advice;
mod command;
pub(crate) mod live;
mod offline;
mod table;

use std::time::{Duration, SystemTime};

use ethhook_domain::Profile;
use ethhook_ingest::BreakerState;
use ethhook_streams::{GroupLag, Standing};
use serde::{Deserialize, Serialize};

pub(crate) use command::{Options, run};

/// A snapshot of everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Unix seconds.
    pub(crate) at: u64,
    /// Whether there is no trouble of level `error`.
    pub(crate) ok: bool,
    /// None if no service answers on this host.
    pub(crate) service: Option<Service>,
    pub(crate) redis: Redis,
    /// Problems that are not of a single chain.
    pub(crate) troubles: Vec<Trouble>,
    pub(crate) chains: Vec<Chain>,
}

/// The process that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) version: String,
    /// Its `INSTANCE_ID`.
    pub(crate) instance: String,
}

/// The state of Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Redis {
    /// Host and port.
    pub(crate) address: String,
    /// Why Redis could not be read; none if it answers.
    pub(crate) failure: Option<String>,
}

/// Something that a person should know, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) level: Level,
    pub(crate) what: String,
    pub(crate) to_do: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// Should be checked; events flow.
    Warning,
    /// Events do not flow, or will be lost.
    Error,
}

/// What a chain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It is at its head.
    Following,
    /// It is catching up with its head.
    CatchingUp,
    /// Another instance writes it.
    StandingBy,
    /// It is stopped, waiting for a node, for Redis or for an operator.
    Stalled,
    /// Unknown: no service reports it.
    Unknown,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) chain_id: u64,
    pub(crate) state: State,
    /// Height of the newest head that an endpoint sent to the service.
    pub(crate) head: Option<u64>,
    /// Height of the newest published block.
    pub(crate) published: Option<u64>,
    pub(crate) finalized: Option<u64>,
    pub(crate) lag_blocks: Option<u64>,
    /// Difference in block time between head and published block.
    pub(crate) lag_seconds: Option<u64>,
    /// Mean of `rates`.
    pub(crate) events_per_second: Option<f64>,
    /// Events published in each of the last seconds, newest last.
    pub(crate) rates: Vec<u64>,
    /// Since the service started.
    pub(crate) counts: Option<Counts>,
    /// Entries of the event stream.
    pub(crate) entries: Option<u64>,
    /// Bytes of the event stream in Redis.
    pub(crate) bytes: Option<u64>,
    /// How long ago a block was last published, taken back or marked final.
    pub(crate) last_step_seconds: Option<u64>,
    /// Who holds the lease.
    pub(crate) writer: Option<String>,
    /// Why the chain is stopped until an operator clears the alarm.
    pub(crate) alarm: Option<String>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) groups: Vec<Group>,
    pub(crate) troubles: Vec<Trouble>,
}

/// Counters of this process for a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) taken_back: u64,
    pub(crate) reorgs: u64,
}

/// One provider, named by its position in the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) position: usize,
    /// Whether it is in use.
    pub(crate) breaker: BreakerState,
    /// Whether its subscription is up; none if it has no WebSocket.
    pub(crate) subscribed: Option<bool>,
    /// Answers that failed a check, since the service started.
    pub(crate) failed_checks: u64,
    /// Whether it has announced blocks of another branch than the stream's for over a minute.
    pub(crate) apart: bool,
    /// What it was found to accept, to a tenth; none while it has not refused a call for coming too soon.
    pub(crate) calls_per_second: Option<f64>,
}

/// One consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) consumers: u64,
    /// Delivered and not acknowledged.
    pub(crate) pending: u64,
    /// Not delivered or not acknowledged; none if Redis cannot tell, which does not mean zero.
    pub(crate) behind: Option<u64>,
    /// Age of the oldest of them.
    pub(crate) waiting_seconds: u64,
}

impl Chain {
    /// A chain whose state is unknown.
    fn unknown(profile: &Profile) -> Self {
        Self {
            name: profile.name.clone(),
            chain_id: profile.chain_id,
            state: State::Unknown,
            head: None,
            published: None,
            finalized: None,
            lag_blocks: None,
            lag_seconds: None,
            events_per_second: None,
            rates: Vec::new(),
            counts: None,
            entries: None,
            bytes: None,
            last_step_seconds: None,
            writer: None,
            alarm: None,
            endpoints: Vec::new(),
            groups: Vec::new(),
            troubles: Vec::new(),
        }
    }

    /// Adds what Redis holds.
    fn set_redis_state(&mut self, standing: Standing) {
        if let Some(cursor) = standing.cursor {
            self.published = cursor.tip();
            self.finalized = cursor.finalized();
            self.alarm = Some(cursor.alarm).filter(|alarm| !alarm.is_empty());
        }
        self.writer = standing.lease;
        self.entries = Some(standing.entries);
        self.bytes = Some(standing.bytes);
        self.last_step_seconds = standing.last_step.map(|age| age.as_secs());
        self.groups = standing.groups.into_iter().map(Group::from).collect();
    }
}

impl From<GroupLag> for Group {
    fn from(lag: GroupLag) -> Self {
        Self {
            name: lag.group,
            consumers: lag.consumers,
            pending: lag.pending,
            behind: lag.entries,
            waiting_seconds: lag.waiting.as_secs(),
        }
    }
}

impl Report {
    /// The current report; the chains must already have their troubles.
    fn new(
        service: Option<Service>,
        redis: Redis,
        troubles: Vec<Trouble>,
        chains: Vec<Chain>,
    ) -> Self {
        let at = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let all = troubles.iter().chain(chains.iter().flat_map(|chain| &chain.troubles));
        let ok = all.clone().all(|trouble| trouble.level != Level::Error);
        Self { at, ok, service, redis, troubles, chains }
    }
}

/// A time for people: `45 s`, `12 min`, `3 h`, `2 d`.
pub(crate) fn spoken(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
