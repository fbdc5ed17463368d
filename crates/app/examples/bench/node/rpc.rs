//! Requests and their answers.

use alloy_primitives::B256;
use ethhook_domain::block::Quantity;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::chain::PreparedChain;

/// Widest range of `eth_getLogs`, as providers tend to have it.
const RANGE_BLOCKS: u64 = 2_000;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    method: String,
    #[serde(default)]
    params: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogFilter {
    block_hash: Option<B256>,
    from_block: Option<Value>,
    to_block: Option<Value>,
}

/// The answer to a request or a batch, and whether `newHeads` was subscribed to.
pub(crate) fn answer(chain: &PreparedChain, text: &[u8]) -> (String, bool) {
    let (mut out, mut subscribed) = (String::new(), false);
    if text.trim_ascii_start().starts_with(b"[") {
        let requests: Vec<Request<'_>> = serde_json::from_slice(text).unwrap_or_default();
        out.push('[');
        for (i, request) in requests.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            subscribed |= one(chain, request, &mut out);
        }
        out.push(']');
    } else if let Ok(request) = serde_json::from_slice(text) {
        subscribed = one(chain, &request, &mut out);
    }
    chain.asked.sent(out.len());
    chain.asked.answered();
    (out, subscribed)
}

/// Appends the answer; true if it was a subscription.
fn one(chain: &PreparedChain, request: &Request<'_>, out: &mut String) -> bool {
    let subscribes = request.method == "eth_subscribe";
    if !subscribes {
        chain.asked.note(&request.method);
    }
    out.push_str(r#"{"jsonrpc":"2.0","id":"#);
    out.push_str(request.id.get());
    let start = out.len();
    out.push_str(r#","result":"#);
    if let Err((code, message)) = result(chain, request, out) {
        out.truncate(start);
        out.push_str(&format!(r#","error":{{"code":{code},"message":"{message}"}}"#));
    }
    out.push('}');
    subscribes
}

type Refusal = (i64, &'static str);

fn result(chain: &PreparedChain, request: &Request<'_>, out: &mut String) -> Result<(), Refusal> {
    let first = request.params.first();
    let quantity = |number: u64| format!(r#""{number:#x}""#);
    match request.method.as_str() {
        "eth_getBlockReceipts" => match block(chain, first) {
            Some(number) if chain.write_receipts(number, out) => {}
            _ => out.push_str("null"),
        },
        "eth_getBlockByNumber" | "eth_getBlockByHash" => match block(chain, first) {
            Some(number) if chain.write(number, |template| &template.block, out) => {}
            _ => out.push_str("null"),
        },
        "eth_getLogs" => return logs(chain, first, out),
        "eth_chainId" => out.push_str(&quantity(chain.id)),
        "eth_blockNumber" => out.push_str(&quantity(chain.head())),
        "net_version" => out.push_str(&format!(r#""{}""#, chain.id)),
        "web3_clientVersion" => out.push_str(r#""bench""#),
        "eth_syncing" => out.push_str("false"),
        "eth_subscribe" => out.push_str(r#""0x1""#),
        _ => return Err((-32601, "the method does not exist")),
    }
    Ok(())
}

/// A height by number, tag or hash.
fn block(chain: &PreparedChain, which: Option<&Value>) -> Option<u64> {
    let text = match which? {
        Value::Object(fields) => fields.get("blockHash")?.as_str()?,
        other => other.as_str()?,
    };
    match text {
        "latest" | "pending" => Some(chain.head()),
        "safe" | "finalized" => Some(chain.finalized()),
        "earliest" => Some(0),
        hash if hash.len() == 66 => chain.number_of(&hash.parse().ok()?),
        number => serde_json::from_value::<Quantity>(number.into()).ok().map(|q| q.0),
    }
}

fn logs(chain: &PreparedChain, which: Option<&Value>, out: &mut String) -> Result<(), Refusal> {
    let filter: LogFilter = which
        .and_then(|filter| serde_json::from_value(filter.clone()).ok())
        .ok_or((-32602, "invalid filter"))?;
    let (first, last) = match filter.block_hash {
        Some(hash) => {
            let number = chain.number_of(&hash).ok_or((-32000, "unknown block"))?;
            (number, number)
        }
        None => {
            let end = |which: Option<Value>| {
                block(chain, which.as_ref()).unwrap_or_else(|| chain.head()).min(chain.head())
            };
            (end(filter.from_block), end(filter.to_block))
        }
    };
    if last.saturating_sub(first) >= RANGE_BLOCKS {
        return Err((-32602, "the range is too wide: 2000 blocks at most"));
    }
    out.push('[');
    for number in first..=last {
        if !out.ends_with('[') && chain.template(number).log_count > 0 {
            out.push(',');
        }
        chain.write(number, |template| &template.logs, out);
    }
    out.push(']');
    Ok(())
}
