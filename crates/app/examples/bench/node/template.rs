//! A block whose answers are written beforehand: only number, hash, parent and time are filled in
//! when it is asked for, so that one block can stand at every height of a chain.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use alloy_consensus::Header;
use alloy_primitives::{Address, B64, B256, Bytes, Log, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use ethhook_simulator::{Chain, ManualChain, ManualSpec, Node};
use ethhook_testkit::chain_data::{self, RecordedBlock};
use ethhook_testkit::node_rpc::NodeRpc;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Consecutive Ethereum blocks of July 2023, of 291 to 732 logs, and one of 10,041.
const MAINNET: std::ops::RangeInclusive<u64> = 17_686_110..=17_686_132;
const LARGEST: u64 = 15_537_394;
/// Logs a block where the recorded ones are not there: what those have on average.
const USUAL_LOGS: usize = 426;
const LARGEST_LOGS: usize = 10_000;

/// What differs from one height to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) hash: B256,
    pub(crate) parent_hash: B256,
    pub(crate) timestamp: u64,
}

/// JSON with gaps for the values of a [`Place`].
#[derive(Debug)]
pub(crate) struct Text {
    start: String,
    /// The letter of a value, and what follows it.
    rest: Vec<(char, String)>,
    length: usize,
}

impl Text {
    /// `@h`, `@n`, `@p` and `@t` stand for hash, number, parent and time.
    fn new(marked: &str) -> Self {
        let mut parts = marked.split('@');
        let start = parts.next().unwrap_or_default().to_owned();
        let rest = parts
            .filter_map(|part| {
                let mut rest = part.chars();
                Some((rest.next()?, rest.as_str().to_owned()))
            })
            .collect::<Vec<_>>();
        Self { start, length: marked.len() + rest.len() * 66, rest }
    }

    pub(crate) fn fill(&self, place: &Place, out: &mut String) {
        let hash = format!("{:#x}", place.hash);
        let parent = format!("{:#x}", place.parent_hash);
        let (number, time) = (format!("{:#x}", place.number), format!("{:#x}", place.timestamp));
        out.reserve(self.length);
        out.push_str(&self.start);
        for (letter, after) in &self.rest {
            out.push_str(match letter {
                'h' => &hash,
                'p' => &parent,
                'n' => &number,
                _ => &time,
            });
            out.push_str(after);
        }
    }
}

/// One block's answers.
#[derive(Debug)]
pub(crate) struct Template {
    header: Header,
    /// As `newHeads` sends it.
    pub(crate) head: Text,
    /// As `eth_getBlockByNumber` gives it, with the hashes of its transactions.
    pub(crate) block: Text,
    pub(crate) receipts: Text,
    /// The elements of the answer of `eth_getLogs`, separated by commas.
    pub(crate) logs: Text,
    pub(crate) log_count: usize,
}

/// What a block has that its head has not.
const NOT_IN_HEAD: [&str; 5] = ["transactions", "uncles", "withdrawals", "size", "totalDifficulty"];

impl Template {
    /// From the answers of `eth_getBlockByNumber` and `eth_getBlockReceipts`.
    fn new(mut block: Value, mut receipts: Value) -> Result<Self> {
        let header = header(&block)?;
        let mut logs = Vec::new();
        for receipt in receipts.as_array_mut().context("receipts are no array")? {
            mark_body(receipt);
            for log in receipt["logs"].as_array_mut().context("logs are no array")? {
                mark_body(log);
                logs.push(log.to_string());
            }
        }
        for transaction in block["transactions"].as_array_mut().context("no transactions")? {
            if let Some(hash) = transaction.get("hash") {
                *transaction = hash.clone();
            }
        }
        for (name, mark) in [("hash", "@h"), ("number", "@n"), ("parentHash", "@p")] {
            block[name] = mark.into();
        }
        block["timestamp"] = "@t".into();
        let mut head = block.clone();
        if let Some(fields) = head.as_object_mut() {
            fields.retain(|name, _| !NOT_IN_HEAD.contains(&name.as_str()));
        }
        Ok(Self {
            header,
            head: Text::new(&head.to_string()),
            block: Text::new(&block.to_string()),
            receipts: Text::new(&receipts.to_string()),
            log_count: logs.len(),
            logs: Text::new(&logs.join(",")),
        })
    }

    /// The hash that the header has at this height.
    pub(crate) fn hash_at(&self, number: u64, parent_hash: B256, timestamp: u64) -> B256 {
        Header { number, parent_hash, timestamp, ..self.header.clone() }.hash_slow()
    }
}

fn mark_body(object: &mut Value) {
    for (name, mark) in [("blockHash", "@h"), ("blockNumber", "@n"), ("blockTimestamp", "@t")] {
        if let Some(value) = object.get_mut(name) {
            *value = mark.into();
        }
    }
}

/// The fields that are hashed.
fn header(block: &Value) -> Result<Header> {
    fn field<T: DeserializeOwned>(block: &Value, name: &str) -> Result<T> {
        serde_json::from_value(block[name].clone()).with_context(|| name.to_owned())
    }
    let number = |name: &str| -> Result<Option<u64>> {
        Ok(field::<Option<U256>>(block, name)?.map(|n| n.to()))
    };
    let required = |name: &str| number(name)?.with_context(|| format!("no {name}"));
    let header = Header {
        parent_hash: field(block, "parentHash")?,
        ommers_hash: field(block, "sha3Uncles")?,
        beneficiary: field(block, "miner")?,
        state_root: field(block, "stateRoot")?,
        transactions_root: field(block, "transactionsRoot")?,
        receipts_root: field(block, "receiptsRoot")?,
        logs_bloom: field(block, "logsBloom")?,
        difficulty: field(block, "difficulty")?,
        number: required("number")?,
        gas_limit: required("gasLimit")?,
        gas_used: required("gasUsed")?,
        timestamp: required("timestamp")?,
        extra_data: field(block, "extraData")?,
        mix_hash: field::<Option<B256>>(block, "mixHash")?.unwrap_or_default(),
        nonce: field::<Option<B64>>(block, "nonce")?.unwrap_or_default(),
        base_fee_per_gas: number("baseFeePerGas")?,
        withdrawals_root: field(block, "withdrawalsRoot")?,
        blob_gas_used: number("blobGasUsed")?,
        excess_blob_gas: number("excessBlobGas")?,
        parent_beacon_block_root: field(block, "parentBeaconBlockRoot")?,
        requests_hash: field(block, "requestsHash")?,
        ..Header::default()
    };
    let mut hash = String::new();
    write!(hash, "{:#x}", header.hash_slow())?;
    ensure!(block["hash"] == hash.as_str(), "the header does not hash to {}", block["hash"]);
    Ok(header)
}

/// Blocks as mainnet has them, and one large block.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) usual: Arc<[Template]>,
    pub(crate) large: Arc<[Template]>,
    /// Whether they were recorded; else they are simulated.
    pub(crate) is_real: bool,
}

/// The recorded blocks, or simulated ones where those are not there.
pub(crate) async fn mainnet() -> Result<Recorded> {
    let Some(folder) = chain_data::dir() else {
        let usual = simulated(USUAL_LOGS, 16).await?.into();
        let large = simulated(LARGEST_LOGS, 1).await?.into();
        return Ok(Recorded { usual, large, is_real: false });
    };
    let mut usual = Vec::new();
    for number in MAINNET {
        usual.push(recorded(&folder, number)?);
    }
    let large = [recorded(&folder, LARGEST)?].into();
    Ok(Recorded { usual: usual.into(), large, is_real: true })
}

fn recorded(folder: &Path, number: u64) -> Result<Template> {
    let RecordedBlock { block, receipts, .. } = chain_data::ethereum_block(folder, number)?;
    Template::new(block, receipts)
}

/// `count` different blocks of so many logs each, four of five of them ERC-20's.
pub(crate) async fn simulated(logs: usize, count: u64) -> Result<Vec<Template>> {
    let chain = Chain::manual(ManualSpec { events_per_block: logs, ..ManualSpec::new(1) });
    chain.mine(count);
    of_simulator(chain, count).await
}

/// `count` different blocks of so many ERC-20 Transfers each, one a transaction.
pub(crate) async fn erc20_transfers(logs: usize, count: u64) -> Result<Vec<Template>> {
    let chain = Chain::manual(ManualSpec::new(1));
    for block in 0..count {
        let account = |n: usize| keccak256(format!("{block} {n}"));
        let transfer = |n: usize| {
            let topics = vec![
                keccak256("Transfer(address,address,uint256)"),
                Address::from_word(account(2 * n)).into_word(),
                Address::from_word(account(2 * n + 1)).into_word(),
            ];
            let value: U256 = U256::from_be_bytes(account(n).0) >> 180;
            let token = Address::from_word(account(n % 40));
            vec![Log::new_unchecked(token, topics, Bytes::from(value.to_be_bytes::<32>()))]
        };
        chain.mine_with((0..logs).map(transfer).collect());
    }
    of_simulator(chain, count).await
}

async fn of_simulator(chain: ManualChain, count: u64) -> Result<Vec<Template>> {
    let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain]).await?.spawn();
    let rpc = NodeRpc::at_url(node.http_url(1));
    let mut templates = Vec::new();
    for number in 1..=count {
        let number = format!("{number:#x}");
        let block = rpc.call("eth_getBlockByNumber", json!([number, false])).await?;
        let receipts = rpc.call("eth_getBlockReceipts", json!([number])).await?;
        templates.push(Template::new(block, receipts)?);
    }
    Ok(templates)
}
