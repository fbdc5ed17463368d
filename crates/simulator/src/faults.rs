//! Faults on request. A fault is armed for calls or heads, or drawn by a [`crate::Mischief`], and takes effect in one
//! of two places: [`Faults::answer`] for a call, [`Faults::tell`] for a head.

mod alter;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;
use serde_json::Value;

use crate::block::Block;
use crate::chain::{SocketEnd, lock};
use crate::limits::HEADS_HELD;
use crate::methods::Vantage;
use crate::mischief::Playing;
use crate::rpc::RpcError;

/// A fault of a provider in answering a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The right answer, late.
    Delay(Duration),
    /// `"result": null`.
    Null,
    /// `"result": []`.
    Empty,
    /// A JSON-RPC error.
    Error(i64, String),
    /// The same, over HTTP in a response with this status.
    ErrorWithStatus(u16, i64, String),
    /// The connection is closed instead of an answer.
    Cut,
    /// The connection is closed in the middle of an answer.
    CutMidAnswer,
    /// The call is accepted and never answered.
    NoAnswer,
    /// `eth_getBlockReceipts` without one of its receipts.
    DropReceipt,
    /// Receipts or logs without one of the logs.
    DropLog,
    /// Receipts or logs with the data of one log altered (or its address, if it has no data).
    AlterLog,
    /// Receipts or logs that name another block.
    ForeignLogs,
    /// One of the logs names another block: in a range, one of another fork.
    ForeignLog,
    /// A range of logs without those of one block.
    DropBlock,
    /// A range of logs without the last ones, cut in the middle of a block.
    CutRange,
    /// Logs numbered from 0 in each transaction. Needs two transactions with logs.
    LogIndexPerTransaction,
    /// The second log of the block has the index of the first.
    DoubledLogIndex,
    /// `[]` from a node this many blocks behind, if it does not know the block: a correct one
    /// answers null or an error.
    UnknownAsEmpty(u64),
    /// A block with another bloom in its header.
    Bloom(BloomLie),
    /// The correct answer of a node this many blocks behind, as behind a load balancer.
    Behind(u64),
    /// The correct answer of a node that is still on the branch that the last reorg replaced, and knows no other.
    OtherBranch,
    /// Another block for the tag `finalized`.
    Finalized(FinalizedLie),
    /// `eth_subscribe` returns an id, but nothing is ever sent for it.
    DeafSubscription,
    /// The correct answer padded with this many bytes of white space.
    Padded(usize),
    /// The correct answer, the last of its batch.
    LateInBatch,
    /// The correct answer in two frames of a message, with a ping in between; over HTTP, in two chunks.
    Fragmented,
    /// A page of HTML, as from a proxy.
    Html,
    /// Half an answer: truncated JSON.
    InvalidJson,
    /// The correct answer with another id.
    WrongId,
    /// An HTTP status, with `Retry-After` in seconds. On a WebSocket, which has no status, the
    /// error -32005.
    HttpStatus(u16, Option<u64>),
}

/// How the bloom of a header is false; the hash is not changed, so it no longer matches the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BloomLie {
    /// All zeros, although there are logs.
    Zero,
    /// All ones.
    Ones,
    /// Some bits, although there are no logs.
    OnEmpty,
}

/// How a node is wrong about the finalized block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalizedLie {
    /// This many blocks below the true one.
    Back(u64),
    /// It is the head.
    Latest,
    /// This height, or the head if that is lower: a tag that stalls.
    At(u64),
}

/// A fault of a provider in announcing a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadFault {
    /// Not announced.
    Skip,
    /// Announced twice.
    Double,
    /// Announced only after this many others.
    Late(u64),
    /// Followed by an announcement of the block this many below it: a head that goes back.
    Back(u64),
    /// The header lacks this field.
    MissingField(String),
    /// The header has another bloom.
    Bloom(BloomLie),
    /// All subscriptions die silently; the sockets stay, and new subscriptions work.
    Deaf,
    /// All WebSockets are cut, and nothing is announced.
    Drop,
    /// The same, with a close frame.
    Close,
    /// HTTP lags by this many blocks until the next head.
    HttpBehind(u64),
}

impl Fault {
    /// Its name in [`crate::Stats::faults_played`] and [`crate::Mischief`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::Null => "null",
            Self::Empty => "empty",
            Self::Error(-32005, _) => "limit_exceeded",
            Self::Error(-32602, _) => "range_too_wide",
            Self::Error(-32601, _) => "method_not_found",
            Self::Error(-32001, _) => "method_not_offered",
            Self::Error(..) => "error",
            Self::ErrorWithStatus(..) => "error_with_status",
            Self::Cut => "cut",
            Self::CutMidAnswer => "cut_mid_answer",
            Self::NoAnswer => "no_answer",
            Self::DropReceipt => "drop_receipt",
            Self::DropLog => "drop_log",
            Self::AlterLog => "alter_log",
            Self::ForeignLogs => "foreign_logs",
            Self::ForeignLog => "foreign_log",
            Self::DropBlock => "drop_block",
            Self::CutRange => "cut_range",
            Self::LogIndexPerTransaction => "log_index_per_transaction",
            Self::DoubledLogIndex => "doubled_log_index",
            Self::UnknownAsEmpty(_) => "unknown_as_empty",
            Self::Bloom(BloomLie::Zero) => "bloom_zero",
            Self::Bloom(BloomLie::Ones) => "bloom_ones",
            Self::Bloom(BloomLie::OnEmpty) => "bloom_on_empty",
            Self::Behind(0..100) => "behind",
            Self::Behind(_) => "far_behind",
            Self::OtherBranch => "other_branch",
            Self::Finalized(FinalizedLie::Back(_)) => "finalized_back",
            Self::Finalized(FinalizedLie::Latest) => "finalized_latest",
            Self::Finalized(FinalizedLie::At(_)) => "finalized_stalls",
            Self::DeafSubscription => "deaf_subscription",
            Self::Padded(_) => "padded",
            Self::LateInBatch => "late_in_batch",
            Self::Fragmented => "fragmented",
            Self::Html => "html",
            Self::InvalidJson => "invalid_json",
            Self::WrongId => "wrong_id",
            Self::HttpStatus(429, _) => "status_429",
            Self::HttpStatus(..) => "status",
        }
    }
}

impl HeadFault {
    /// Its name in [`crate::Stats::faults_played`] and [`crate::Mischief`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Skip => "head_skipped",
            Self::Double => "head_doubled",
            Self::Late(_) => "head_late",
            Self::Back(0..100) => "head_back",
            Self::Back(_) => "head_far_back",
            Self::MissingField(_) => "head_field_missing",
            Self::Bloom(BloomLie::Zero) => "head_bloom_zero",
            Self::Bloom(BloomLie::Ones) => "head_bloom_ones",
            Self::Bloom(BloomLie::OnEmpty) => "head_bloom_on_empty",
            Self::Deaf => "subscriptions_die",
            Self::Drop => "sockets_dropped",
            Self::Close => "sockets_closed",
            Self::HttpBehind(_) => "http_behind",
        }
    }
}

/// The calls that a fault applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    /// Every call.
    Any,
    /// Calls of this method.
    Method(String),
}

impl From<&str> for On {
    fn from(method: &str) -> Self {
        Self::Method(method.to_owned())
    }
}

impl On {
    fn is_for(&self, method: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Method(name) => name == method,
        }
    }
}

type Answer = Result<String, RpcError>;

/// The outcome of a call.
pub(crate) enum Outcome {
    Answer(Answer),
    WrongId(Answer),
    LateInBatch(Answer),
    Fragmented(Answer),
    /// An error, over HTTP in a response with this status.
    ErrorWithStatus(u16, RpcError),
    /// The first half is sent, then the connection is closed.
    Half(Answer),
    /// All subscriptions are dropped silently.
    Deaf(Answer),
    /// Sent as it is, instead of the whole body or frame.
    Body(String),
    Cut,
    Silence,
    Status(u16, Option<u64>),
}

/// What happens on a new head, in this order: sockets end, subscriptions die, these heads are
/// sent.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) ends: Option<SocketEnd>,
    pub(crate) deaf: bool,
    pub(crate) http_behind: u64,
    pub(crate) heads: Vec<(B256, Arc<str>)>,
    /// The name of the fault, if any.
    pub(crate) fault: Option<&'static str>,
}

struct Armed<F> {
    /// Always [`On::Any`] for heads.
    on: On,
    fault: F,
    left: u32,
}

/// Faults in the order in which they were armed.
struct Queue<F>(VecDeque<Armed<F>>);

impl<F> Default for Queue<F> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<F: Clone> Queue<F> {
    fn push(&mut self, on: On, fault: F, count: u32) {
        if count > 0 {
            self.0.push_back(Armed { on, fault, left: count });
        }
    }

    fn take(&mut self, method: &str) -> Option<(On, F)> {
        let position = self.0.iter().position(|armed| armed.on.is_for(method))?;
        let armed = &mut self.0[position];
        armed.left -= 1;
        let taken = (armed.on.clone(), armed.fault.clone());
        if armed.left == 0 {
            self.0.remove(position);
        }
        Some(taken)
    }

    fn give_back(&mut self, (on, fault): (On, F)) {
        self.0.push_front(Armed { on, fault, left: 1 });
    }

    fn left(&self) -> u64 {
        self.0.iter().map(|armed| u64::from(armed.left)).sum()
    }
}

/// A head that is announced late: once the count of heads has reached `due`.
struct Held {
    due: u64,
    hash: B256,
    json: Arc<str>,
}

#[derive(Default)]
struct Heads {
    heard: u64,
    held: VecDeque<Held>,
}

/// The pending faults of one view of a chain.
#[derive(Default)]
pub struct Faults {
    calls: Mutex<Queue<Fault>>,
    heads: Mutex<Queue<HeadFault>>,
    announced: Mutex<Heads>,
    mischief: Mutex<Option<Playing>>,
}

impl Faults {
    /// Arms a fault for the next `count` calls of a method. Of several faults armed for a call, the
    /// one armed first takes effect. A fault that finds nothing to alter (for instance no log in
    /// the block) stays armed.
    pub fn push(&self, on: impl Into<On>, fault: Fault, count: u32) {
        lock(&self.calls).push(on.into(), fault, count);
    }

    /// Arms a fault for the next `count` heads; otherwise like [`Faults::push`].
    pub fn push_head(&self, fault: HeadFault, count: u32) {
        lock(&self.heads).push(On::Any, fault, count);
    }

    /// Disarms all faults, ends the mischief, and drops delayed heads.
    pub fn clear(&self) {
        *lock(&self.calls) = Queue::default();
        *lock(&self.heads) = Queue::default();
        *lock(&self.mischief) = None;
        lock(&self.announced).held.clear();
    }

    /// How many calls and heads will still fail, not counting random faults of a mischief.
    #[must_use]
    pub fn left(&self) -> u64 {
        lock(&self.calls).left() + lock(&self.heads).left()
    }

    /// From now on, calls and heads without an armed fault may get a random one.
    pub(crate) fn draw_from(&self, playing: Playing) {
        *lock(&self.mischief) = Some(playing);
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Playing) -> Option<T>) -> Option<T> {
        lock(&self.mischief).as_mut().and_then(draw)
    }

    /// The outcome of a call: `honest` gives the correct answer for a vantage, and the next fault
    /// for this method may change it. Also returns that fault's name.
    pub(crate) async fn answer(
        &self,
        method: &str,
        asks_finalized: bool,
        honest: impl Fn(Vantage) -> Answer,
    ) -> (Outcome, Option<&'static str>) {
        let armed = lock(&self.calls).take(method);
        let what = if asks_finalized { "finalized" } else { method };
        let fault = match &armed {
            Some((_, fault)) => Some(fault.clone()),
            None => self.draw(|playing| playing.for_call(what)),
        };
        let Some(fault) = fault else {
            return (Outcome::Answer(honest(Vantage::default())), None);
        };
        if let Some(outcome) = play(&fault, &honest).await {
            return (outcome, Some(fault.kind()));
        }
        if let Some(armed) = armed {
            lock(&self.calls).give_back(armed);
        }
        (Outcome::Answer(honest(Vantage::default())), None)
    }

    /// What is announced when `block` has become the head; `below` gives the canonical block that
    /// many heights below it.
    pub(crate) fn tell(&self, block: &Block, below: impl Fn(u64) -> Option<Arc<Block>>) -> Told {
        let armed = lock(&self.heads).take("");
        let fault = match &armed {
            Some((_, fault)) => Some(fault.clone()),
            None => self.draw(Playing::for_head),
        };
        let mut announced = lock(&self.announced);
        announced.heard += 1;
        let played = fault.as_ref().and_then(|fault| announced.play(fault, block, below));
        let mut told = match played {
            Some(told) => Told { fault: fault.map(|fault| fault.kind()), ..told },
            None => {
                if let Some(armed) = armed {
                    lock(&self.heads).give_back(armed);
                }
                Told { heads: vec![(block.hash(), block.head_json().into())], ..Told::default() }
            }
        };
        told.heads.extend(announced.due());
        told
    }
}

impl Heads {
    /// None if the fault finds nothing to alter.
    fn play(
        &mut self,
        fault: &HeadFault,
        block: &Block,
        below: impl Fn(u64) -> Option<Arc<Block>>,
    ) -> Option<Told> {
        let head = || (block.hash(), Arc::from(block.head_json()));
        let altered = |alter: &dyn Fn(&mut Value) -> bool| {
            let mut header = serde_json::from_str(&block.head_json()).ok()?;
            alter(&mut header).then(|| vec![(block.hash(), Arc::from(header.to_string()))])
        };
        let mut told = Told::default();
        match fault {
            HeadFault::Skip => {}
            HeadFault::Double => told.heads = vec![head(), head()],
            HeadFault::Late(heads) => {
                let (hash, json) = head();
                self.held.push_back(Held { due: self.heard + heads, hash, json });
                if self.held.len() > HEADS_HELD {
                    self.held.pop_front();
                }
            }
            HeadFault::Back(depth) => {
                let old = below(*depth)?;
                told.heads = vec![head(), (old.hash(), old.head_json().into())];
            }
            HeadFault::MissingField(name) => {
                told.heads = altered(&|header| {
                    header.as_object_mut().is_some_and(|fields| fields.remove(name).is_some())
                })?;
            }
            HeadFault::Bloom(lie) => told.heads = altered(&|header| lie.tell(header))?,
            HeadFault::Deaf => told.deaf = true,
            HeadFault::Drop => told.ends = Some(SocketEnd::Cut),
            HeadFault::Close => told.ends = Some(SocketEnd::Closed),
            HeadFault::HttpBehind(blocks) => {
                told.http_behind = *blocks;
                told.heads = vec![head()];
            }
        }
        Some(told)
    }

    /// The delayed heads that are due.
    fn due(&mut self) -> Vec<(B256, Arc<str>)> {
        let heard = self.heard;
        let (due, held): (VecDeque<Held>, _) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.due <= heard);
        self.held = held;
        due.into_iter().map(|held| (held.hash, held.json)).collect()
    }
}

/// The outcome of a call with this fault; none if it finds nothing to alter.
async fn play(fault: &Fault, honest: &impl Fn(Vantage) -> Answer) -> Option<Outcome> {
    let right = || honest(Vantage::default());
    let altered = |alter: fn(&mut Value) -> bool| {
        let mut result: Value = serde_json::from_str(&right().ok()?).ok()?;
        alter(&mut result).then(|| Outcome::Answer(Ok(result.to_string())))
    };
    let instead = |text: &str| {
        let is_right = right().is_ok_and(|right| right == text);
        (!is_right).then(|| Outcome::Answer(Ok(text.to_owned())))
    };
    let elsewhere = |vantage: Vantage| {
        let (answer, right) = (honest(vantage), right());
        let differs = match (&answer, &right) {
            (Ok(answer), Ok(right)) => answer != right,
            (Err(_), Ok(_)) | (Ok(_), Err(_)) => true,
            (Err(_), Err(_)) => false,
        };
        differs.then_some(Outcome::Answer(answer))
    };
    let outcome = match fault {
        Fault::Delay(delay) => {
            tokio::time::sleep(*delay).await;
            Outcome::Answer(right())
        }
        Fault::Error(code, message) => Outcome::Answer(Err(RpcError::new(*code, message.clone()))),
        Fault::Cut => Outcome::Cut,
        Fault::CutMidAnswer => Outcome::Half(right()),
        Fault::NoAnswer => Outcome::Silence,
        Fault::Html => {
            let page = "<html><head><title>502 Bad Gateway</title></head></html>\n";
            Outcome::Body(page.to_owned())
        }
        Fault::InvalidJson => {
            Outcome::Body(r#"{"jsonrpc":"2.0","id":1,"result":[{"blockH"#.to_owned())
        }
        Fault::ErrorWithStatus(status, code, message) => {
            Outcome::ErrorWithStatus(*status, RpcError::new(*code, message.clone()))
        }
        Fault::WrongId => Outcome::WrongId(right()),
        Fault::LateInBatch => Outcome::LateInBatch(right()),
        Fault::Fragmented => Outcome::Fragmented(right()),
        Fault::HttpStatus(status, retry_after) => Outcome::Status(*status, *retry_after),
        Fault::Padded(bytes) => {
            Outcome::Answer(Ok(format!("{}{}", " ".repeat(*bytes), right().ok()?)))
        }
        Fault::DeafSubscription => Outcome::Deaf(Ok(right().ok()?)),
        Fault::UnknownAsEmpty(behind) => {
            let answer = honest(Vantage { behind: *behind, ..Vantage::default() });
            let unknown = answer.map_or_else(|error| error.is_servers(), |text| text == "null");
            return unknown.then(|| Outcome::Answer(Ok("[]".to_owned())));
        }
        Fault::Behind(behind) => {
            return elsewhere(Vantage { behind: *behind, ..Vantage::default() });
        }
        Fault::OtherBranch => {
            return elsewhere(Vantage { other_branch: true, ..Vantage::default() });
        }
        Fault::Finalized(lie) => {
            return elsewhere(Vantage { finalized: Some(*lie), ..Vantage::default() });
        }
        Fault::Null => return instead("null"),
        Fault::Empty => return instead("[]"),
        Fault::DropReceipt => return altered(alter::drop_receipt),
        Fault::DropLog => return altered(alter::drop_log),
        Fault::AlterLog => return altered(alter::alter_log),
        Fault::ForeignLogs => return altered(alter::foreign_logs),
        Fault::ForeignLog => return altered(alter::foreign_log),
        Fault::DropBlock => return altered(alter::drop_block),
        Fault::CutRange => return altered(alter::cut_range),
        Fault::LogIndexPerTransaction => return altered(alter::log_index_per_transaction),
        Fault::DoubledLogIndex => return altered(alter::doubled_log_index),
        Fault::Bloom(BloomLie::Zero) => return altered(|block| BloomLie::Zero.tell(block)),
        Fault::Bloom(BloomLie::Ones) => return altered(|block| BloomLie::Ones.tell(block)),
        Fault::Bloom(BloomLie::OnEmpty) => return altered(|block| BloomLie::OnEmpty.tell(block)),
    };
    Some(outcome)
}
