//! A real dev node: Foundry's anvil on a free port, with a contract that emits a requested number
//! of logs.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256, hex};
use anyhow::{Context as _, Result, bail, ensure};
use ethhook_domain::block::Quantity;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::node_rpc::NodeRpc;

/// Time limit for anvil to start listening.
const STARTUP: Duration = Duration::from_secs(30);
/// More gas than any call of a test uses.
const GAS: u64 = 25_000_000;

/// When anvil mines a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mining {
    /// At fixed intervals, in whole seconds.
    EverySeconds(u64),
    /// Only when asked to.
    OnDemand,
}

/// A running anvil; killed when dropped.
#[derive(Debug)]
pub struct Anvil {
    process: Child,
    address: SocketAddr,
    node: NodeRpc,
    accounts: Vec<Address>,
    _directory: TempDir,
}

/// A contract whose every call emits logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emitter {
    /// Where it was deployed.
    pub address: Address,
}

impl Anvil {
    /// Starts anvil (chain id 31337) and waits until it listens.
    ///
    /// # Errors
    /// If anvil is not installed (the error says how to get it), or it does not listen in time.
    pub async fn start(mining: Mining) -> Result<Self> {
        Self::start_with(mining, &[]).await
    }

    /// [`Anvil::start`] with further arguments, as on anvil's command line.
    ///
    /// # Errors
    /// As [`Anvil::start`].
    pub async fn start_with(mining: Mining, arguments: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("ethhook-anvil-")?;
        let output = directory.path().join("output");
        let mut command = Command::new(binary()?);
        command.args(["--port", "0", "--host", "127.0.0.1"]).args(arguments);
        match mining {
            Mining::EverySeconds(seconds) => command.arg("--block-time").arg(seconds.to_string()),
            Mining::OnDemand => command.arg("--no-mining"),
        };
        // A file, not a pipe: anvil prints a line for each request, and a pipe would have to be
        // read.
        let file = File::create(&output)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut process = command.kill_on_drop(true).spawn().context("starting anvil")?;
        let port = listening_port(&mut process, &output).await?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let node = NodeRpc::new(address);
        let accounts = node.call("eth_accounts", json!([])).await?;
        Ok(Self { process, address, node, accounts, _directory: directory })
    }

    /// The address on which it listens, for both HTTP and WebSocket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its `http://` URL.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its `ws://` URL.
    #[must_use]
    pub fn ws_url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// A client of it.
    #[must_use]
    pub fn node(&self) -> &NodeRpc {
        &self.node
    }

    /// Its accounts, all unlocked and with large balances.
    #[must_use]
    pub fn accounts(&self) -> &[Address] {
        &self.accounts
    }

    /// Kills it and waits until it has ended.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn stop(mut self) -> Result<()> {
        self.process.kill().await.context("killing anvil")
    }

    /// Mines `count` blocks; the first contains all pending transactions.
    ///
    /// # Errors
    /// If anvil refuses.
    pub async fn mine(&self, count: u64) -> Result<()> {
        self.node.call("anvil_mine", json!([Quantity(count)])).await
    }

    /// Replaces the newest `depth` blocks by as many others. Each of `transactions` goes into the
    /// replacement at the given position, 0 for the lowest; without transactions the new blocks are
    /// empty.
    ///
    /// # Errors
    /// If anvil refuses.
    pub async fn reorg(&self, depth: u64, transactions: &[(Value, u64)]) -> Result<()> {
        self.node.call("anvil_reorg", json!([depth, transactions])).await
    }

    /// Deploys an [`Emitter`], which mines a block.
    ///
    /// # Errors
    /// If anvil refuses, or the contract is not deployed in time.
    pub async fn deploy_emitter(&self) -> Result<Emitter> {
        let transaction = json!({
            "from": self.account(0)?,
            "data": hex::encode_prefixed(emitter_init_code()),
            "gas": Quantity(GAS),
        });
        let tx_hash: B256 = self.node.call("eth_sendTransaction", json!([transaction])).await?;
        let deadline = Instant::now() + STARTUP;
        while Instant::now() < deadline {
            if let Some(receipt) = self.receipt(tx_hash).await? {
                let address = receipt.contract_address.context("no contract was created")?;
                return Ok(Emitter { address });
            }
            self.mine(1).await?;
        }
        bail!("the contract was not mined within {STARTUP:?}")
    }

    /// Sends a transaction that emits `count` logs with `salt` in their data, from the account at
    /// position `account`; it is mined according to [`Mining`].
    ///
    /// # Errors
    /// If anvil refuses.
    pub async fn emit(
        &self,
        emitter: Emitter,
        account: usize,
        count: u64,
        salt: u64,
    ) -> Result<B256> {
        let transaction = self.emission(emitter, account, count, salt)?;
        self.node.call("eth_sendTransaction", json!([transaction])).await
    }

    /// The transaction of [`Anvil::emit`], for [`Anvil::reorg`].
    ///
    /// # Errors
    /// If there is no such account.
    pub fn emission(
        &self,
        emitter: Emitter,
        account: usize,
        count: u64,
        salt: u64,
    ) -> Result<Value> {
        let words = [U256::from(count), U256::from(salt)].map(|word| word.to_be_bytes::<32>());
        Ok(json!({
            "from": self.account(account)?,
            "to": emitter.address,
            "data": hex::encode_prefixed(words.concat()),
            "gas": Quantity(100_000 + 4_000 * count),
        }))
    }

    fn account(&self, position: usize) -> Result<Address> {
        self.accounts.get(position).copied().context("there is no such account")
    }

    async fn receipt(&self, tx_hash: B256) -> Result<Option<CreationReceipt>> {
        self.node.call("eth_getTransactionReceipt", json!([tx_hash])).await
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreationReceipt {
    contract_address: Option<Address>,
}

/// The init code of the [`Emitter`]. A call takes two words, `count` and `salt`, and emits `count`
/// logs: topics `Transfer(address,address,uint256)`, the caller, and a number from `count` - 1 down
/// to 0; data `salt` and that number again.
fn emitter_init_code() -> Vec<u8> {
    const RUNTIME: [&[u8]; 8] = [
        // memory[0..32] = salt; the stack holds count
        &hex!("6020355f525f35"),
        // loop (7): if the top is 0, jump to the end (63)
        &hex!("5b8015603f57"),
        // top -= 1; memory[32..64] = top
        &hex!("6001900380602052"),
        // topics: top, caller, the event's signature
        &hex!("80337f"),
        &hex!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"),
        // log3 of memory[0..64]; jump to the loop
        &hex!("60405fa3600756"),
        // end (63)
        &hex!("5b00"),
        &[],
    ];
    // Copies the 65 bytes after these 9 to memory and returns them.
    let mut code = hex!("60418060095f395ff3").to_vec();
    RUNTIME.iter().for_each(|part| code.extend_from_slice(part));
    code
}

/// Waits for the line in which anvil prints its port.
async fn listening_port(process: &mut Child, output: &Path) -> Result<u16> {
    let deadline = Instant::now() + STARTUP;
    loop {
        let said = tokio::fs::read_to_string(output).await?;
        if let Some((_, rest)) = said.split_once("Listening on 127.0.0.1:")
            && let Some((port, _)) = rest.split_once('\n')
        {
            return port.trim().parse().with_context(|| format!("anvil's port `{port}`"));
        }
        if let Some(status) = process.try_wait()? {
            bail!("anvil ended with {status}: {said}");
        }
        ensure!(Instant::now() < deadline, "anvil does not listen after {STARTUP:?}: {said}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The anvil to run: `ANVIL_BIN`, or the one that `scripts/test.sh` installs, or the one in `PATH`.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ANVIL_BIN") {
        return Ok(without_wrapper(Path::new(&path)));
    }
    let installed =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/node_modules/.bin/anvil");
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|folder| folder.join("anvil")).collect::<Vec<_>>()
    });
    std::iter::once(installed).chain(on_path).find(|path| path.is_file()).map_or_else(
        || {
            bail!(
                "there is no anvil: run scripts/test.sh, which installs it under .tools/, or set \
                 ANVIL_BIN"
            )
        },
        |path| Ok(without_wrapper(&path)),
    )
}

/// npm's `anvil` is a script that runs the program as a child process and would leave it behind
/// when killed: the program itself is in the platform package's folder next to it.
fn without_wrapper(path: &Path) -> PathBuf {
    let program = || {
        let script = path.canonicalize().ok()?;
        if script.extension()? != "mjs" {
            return None;
        }
        let packages = script.parent()?.parent()?;
        std::fs::read_dir(packages).ok()?.find_map(|package| {
            let package = package.ok()?;
            let is_platform = package.file_name().to_str()?.starts_with("anvil-");
            let program = package.path().join("bin/anvil");
            (is_platform && program.is_file()).then_some(program)
        })
    };
    program().unwrap_or_else(|| path.to_owned())
}
