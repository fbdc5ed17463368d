//! The methods of the node. Each returns the JSON of its result, or the same error as geth.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};
use serde_json::{Value, json};

use crate::block::{Block, LogFilter};
use crate::chain::{Chain, Tips, lock, unix_micros};
use crate::faults::FinalizedLie;
use crate::json::push_quantity;
use crate::limits::SUBSCRIPTIONS_PER_SOCKET;
use crate::rpc::{RpcError, Session};
use crate::seed::Bits;

type Answer = Result<String, RpcError>;

/// The state in which a node sees its chain.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Vantage {
    /// This many blocks behind the head; it does not know higher ones.
    pub(crate) behind: u64,
    /// It is still on the branch that the last reorg replaced.
    pub(crate) other_branch: bool,
    pub(crate) finalized: Option<FinalizedLie>,
}

impl Vantage {
    /// Combines two vantages.
    pub(crate) fn and(self, other: Self) -> Self {
        let behind = self.behind.saturating_add(other.behind);
        let other_branch = self.other_branch || other.other_branch;
        Self { behind, other_branch, finalized: other.finalized.or(self.finalized) }
    }
}

/// A chain as a call sees it.
pub(crate) struct Seen<'a> {
    chain: &'a Chain,
    from: Vantage,
    /// The branch that it is on instead of the canonical one; its first block shows where it begins.
    branch: Vec<Arc<Block>>,
}

impl<'a> Seen<'a> {
    pub(crate) fn new(chain: &'a Chain, from: Vantage) -> Self {
        let branch = if from.other_branch { chain.replaced_branch() } else { Vec::new() };
        Self { chain, from, branch }
    }
}

impl Seen<'_> {
    fn head_number(&self) -> u64 {
        let top = self.branch.last().map(|block| block.number());
        top.unwrap_or_else(|| self.chain.head_number()).saturating_sub(self.from.behind)
    }

    fn tips(&self) -> Tips {
        let tips = self.chain.tips();
        let head = self.head_number();
        let finalized = tips.finalized.map(|height| match self.from.finalized {
            None => height,
            Some(FinalizedLie::Back(blocks)) => height.saturating_sub(blocks),
            Some(FinalizedLie::Latest) => head,
            Some(FinalizedLie::At(stalled)) => stalled,
        });
        Tips {
            head,
            safe: tips.safe.map(|height| height.min(head)),
            finalized: finalized.map(|height| height.min(head)),
        }
    }

    fn block(&self, number: u64) -> Option<Arc<Block>> {
        let mut branch = self.branch.iter();
        let block = match self.branch.first() {
            Some(first) if first.number() <= number => {
                branch.find(|block| block.number() == number).cloned()
            }
            _ => self.chain.block(number),
        };
        block.filter(|block| self.knows(block))
    }

    fn block_by_hash(&self, hash: B256) -> Option<Arc<Block>> {
        self.chain.block_by_hash(hash).filter(|block| self.knows(block))
    }

    /// A node that is not behind also knows a side chain that is longer; one on another branch knows no other.
    fn knows(&self, block: &Block) -> bool {
        let is_on_its_branch = self.branch.first().is_none_or(|first| {
            block.number() < first.number()
                || self.branch.iter().any(|known| known.hash() == block.hash())
        });
        is_on_its_branch && (self.from.behind == 0 || block.number() <= self.head_number())
    }
}

/// Calls `method`; `params` is the JSON text of its parameters.
pub(crate) fn call(
    seen: &Seen<'_>,
    session: Option<&Session>,
    method: &str,
    params: Option<&str>,
) -> Answer {
    let params = Params::parse(params)?;
    match method {
        "web3_clientVersion" => {
            Ok(concat!("\"ethhook-simulator/", env!("CARGO_PKG_VERSION"), "\"").to_owned())
        }
        "net_version" => Ok(format!("\"{}\"", seen.chain.chain_id())),
        "eth_chainId" => Ok(quantity(seen.chain.chain_id())),
        "eth_blockNumber" => Ok(quantity(seen.head_number())),
        "eth_syncing" => Ok("false".to_owned()),
        "eth_getBlockByNumber" => {
            let full = params.boolean(1)?;
            let block = seen.block(number_behind(seen, params.text(0)?, 0)?);
            Ok(block.map_or_else(null, |block| block.block_json(full)))
        }
        "eth_getBlockByHash" => {
            let full = params.boolean(1)?;
            let block = seen.block_by_hash(params.hash(0)?);
            Ok(block.map_or_else(null, |block| block.block_json(full)))
        }
        "eth_getBlockReceipts" => block_receipts(seen, params.required(0)?),
        "eth_getLogs" => logs(seen, params.required(0)?),
        "eth_subscribe" => subscribe(session, params.text(0)?),
        "eth_unsubscribe" => unsubscribe(session, params.text(0)?),
        "sim_sentAt" => Ok(json!(seen.chain.sent_at(params.hash(0)?)).to_string()),
        "sim_stats" => Ok(stats(seen.chain)),
        other => Err(RpcError::no_such_method(other)),
    }
}

/// Positional parameters.
struct Params(Vec<Value>);

impl Params {
    fn parse(text: Option<&str>) -> Result<Self, RpcError> {
        let Some(text) = text else { return Ok(Self(Vec::new())) };
        serde_json::from_str(text).map(Self).map_err(|_| RpcError::invalid_params("non-array args"))
    }

    fn required(&self, index: usize) -> Result<&Value, RpcError> {
        self.0.get(index).filter(|value| !value.is_null()).ok_or_else(|| {
            RpcError::invalid_params(format!("missing value for required argument {index}"))
        })
    }

    fn text(&self, index: usize) -> Result<&str, RpcError> {
        self.required(index)?.as_str().ok_or_else(|| invalid(index, "not a string"))
    }

    fn boolean(&self, index: usize) -> Result<bool, RpcError> {
        self.required(index)?.as_bool().ok_or_else(|| invalid(index, "not a boolean"))
    }

    fn hash(&self, index: usize) -> Result<B256, RpcError> {
        read_hash(self.required(index)?).ok_or_else(|| invalid(index, "not a 32-byte hash"))
    }
}

fn invalid(index: usize, problem: &str) -> RpcError {
    RpcError::invalid_params(format!("invalid argument {index}: {problem}"))
}

fn quantity(number: u64) -> String {
    let mut out = String::new();
    push_quantity(&mut out, number);
    out
}

fn null() -> String {
    "null".to_owned()
}

fn read_hash(value: &Value) -> Option<B256> {
    let text = value.as_str()?;
    (text.len() == 66 && text.starts_with("0x")).then(|| text.parse().ok())?
}

/// The height for a tag or number.
fn number_behind(seen: &Seen<'_>, text: &str, index: usize) -> Result<u64, RpcError> {
    let tips = seen.tips();
    let unknown = |tag: &str| RpcError::server(format!("{tag} block not found"));
    match text {
        "latest" | "pending" => Ok(tips.head),
        "safe" => tips.safe.ok_or_else(|| unknown("safe")),
        "finalized" => tips.finalized.ok_or_else(|| unknown("finalized")),
        "earliest" => Ok(0),
        number => {
            let digits = number
                .strip_prefix("0x")
                .ok_or_else(|| invalid(index, "hex string without 0x prefix"))?;
            if digits.len() > 1 && digits.starts_with('0') {
                return Err(invalid(index, "hex number with leading zero digits"));
            }
            u64::from_str_radix(digits, 16).map_err(|_| invalid(index, "invalid hex string"))
        }
    }
}

fn block_receipts(seen: &Seen<'_>, which: &Value) -> Answer {
    let hash = match which {
        Value::Object(fields) => fields.get("blockHash").map(|hash| {
            read_hash(hash).ok_or_else(|| invalid(0, "blockHash is not a 32-byte hash"))
        }),
        value => read_hash(value).map(Ok),
    };
    let block = match (hash, which) {
        (Some(hash), _) => seen.block_by_hash(hash?),
        (None, Value::String(text)) => seen.block(number_behind(seen, text, 0)?),
        (None, Value::Object(fields)) => {
            let Some(Value::String(number)) = fields.get("blockNumber") else {
                return Err(invalid(0, "neither blockHash nor blockNumber"));
            };
            seen.block(number_behind(seen, number, 0)?)
        }
        (None, _) => return Err(invalid(0, "not a block number or hash")),
    };
    let Some(block) = block else { return Ok(null()) };
    seen.chain
        .receipts_json(&block)
        .map(|json| json.as_ref().to_owned())
        .ok_or_else(|| RpcError::no_such_method("eth_getBlockReceipts"))
}

fn logs(seen: &Seen<'_>, query: &Value) -> Answer {
    let filter = LogFilter {
        addresses: any_of(&query["address"], "address", |text| {
            (text.len() == 42).then(|| text.parse::<Address>().ok())?
        })?,
        topics: topics(&query["topics"])?,
    };
    let range = [&query["fromBlock"], &query["toBlock"]];
    let mut out = String::from("[");
    if query["blockHash"].is_null() {
        write_range(seen, &filter, range, &mut out)?;
    } else {
        if range.iter().any(|bound| !bound.is_null()) {
            let problem = "cannot specify both BlockHash and FromBlock/ToBlock, choose one";
            return Err(invalid(0, problem));
        }
        let hash = read_hash(&query["blockHash"])
            .ok_or_else(|| invalid(0, "blockHash is not a 32-byte hash"))?;
        let block = seen.block_by_hash(hash).ok_or_else(unknown_block)?;
        block.write_logs(&filter, &mut out).ok_or_else(unknown_block)?;
    }
    out.push(']');
    Ok(out)
}

fn write_range(
    seen: &Seen<'_>,
    filter: &LogFilter,
    bounds: [&Value; 2],
    out: &mut String,
) -> Result<(), RpcError> {
    let bound = |value: &Value| match value {
        Value::Null => Ok(seen.head_number()),
        Value::String(text) => number_behind(seen, text, 0),
        _ => Err(invalid(0, "not a block number")),
    };
    let (from, to) = (bound(bounds[0])?, bound(bounds[1])?);
    if from > to {
        return Err(RpcError::server("invalid block range params"));
    }
    let to = to.min(seen.head_number());
    let limits = seen.chain.range_limits();
    if to.saturating_sub(from) >= limits.blocks {
        let message = format!("block range too wide: at most {} blocks", limits.blocks);
        return Err(RpcError::invalid_params(message));
    }
    let mut count = 0;
    for block in (from..=to).filter_map(|number| seen.block(number)) {
        let before = out.len();
        if count > 0 {
            out.push(',');
        }
        let written = block.write_logs(filter, out).ok_or_else(unknown_block)?;
        if written == 0 {
            out.truncate(before);
        }
        count += written;
        if count > limits.logs {
            let message = format!("query returned more than {} results", limits.logs);
            return Err(RpcError::new(-32005, message));
        }
    }
    Ok(())
}

fn unknown_block() -> RpcError {
    RpcError::server("unknown block")
}

/// Null, one or an array of values.
fn any_of<T>(
    value: &Value,
    name: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, RpcError> {
    let values = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    values
        .iter()
        .map(|value| value.as_str().and_then(&read))
        .collect::<Option<Vec<T>>>()
        .ok_or_else(|| invalid(0, &format!("invalid {name}")))
}

fn topics(value: &Value) -> Result<Vec<Vec<B256>>, RpcError> {
    let positions = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(positions) if positions.len() <= 4 => positions,
        Value::Array(_) => return Err(RpcError::invalid_params("exceed max topics")),
        _ => return Err(invalid(0, "invalid topics")),
    };
    let read = |text: &str| read_hash(&Value::from(text));
    positions.iter().map(|position| any_of(position, "topic(s)", read)).collect()
}

fn subscribe(session: Option<&Session>, kind: &str) -> Answer {
    let Some(session) = session else {
        return Err(RpcError::new(-32001, "notifications not supported"));
    };
    if kind != "newHeads" {
        let message = format!("no {kind:?} subscription in eth namespace");
        return Err(RpcError::new(-32601, message));
    }
    let mut subscriptions = lock(&session.subscriptions);
    if subscriptions.len() >= SUBSCRIPTIONS_PER_SOCKET {
        return Err(RpcError::server("too many subscriptions"));
    }
    // Ids need only be unique per socket, which the second number ensures.
    let mut bits = Bits::of(&[unix_micros(), session.next_subscription()]);
    let id = format!("{:#x}", U256::from_be_bytes(bits.hash().0) >> 128);
    subscriptions.insert(id.clone());
    Ok(format!("\"{id}\""))
}

fn unsubscribe(session: Option<&Session>, id: &str) -> Answer {
    let removed = session.is_some_and(|session| lock(&session.subscriptions).remove(id));
    if removed { Ok("true".to_owned()) } else { Err(RpcError::server("subscription not found")) }
}

fn stats(chain: &Chain) -> String {
    let stats = chain.stats();
    json!({
        "requests": stats.by_method(),
        "totalRequests": stats.total_requests(),
        "messages": stats.messages(),
        "bytesSent": stats.bytes_sent(),
        "headsSent": stats.heads_sent(),
        "faultsPlayed": stats.faults_played(),
        "faultsLeft": chain.faults().left(),
    })
    .to_string()
}
