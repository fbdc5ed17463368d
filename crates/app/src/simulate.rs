//! `ethhook simulate`: chains without a real node.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use ethhook_domain::Profile;
use ethhook_simulator::{Chain, ChainSpec, Mischief, Node};
use tokio_util::sync::CancellationToken;

use crate::Exit;
use crate::cli::Simulate;
use crate::output;
use crate::signals::Signals;

/// With `--faults`, this many of 1,000 calls and heads go wrong.
const FAULTS_PER_MILLE: u32 = 50;

/// Serves until a signal.
///
/// # Errors
/// If there are no such chains, or the address cannot be bound.
pub(crate) async fn run(options: Simulate) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let (listen, faults) = (options.listen, options.faults);
    let mut ids = options.chains.iter().enumerate();
    if let Some((_, twice)) = ids.find(|(i, id)| options.chains[..*i].contains(id)) {
        bail!("--chains names {twice} twice");
    }
    let chains = tokio::task::spawn_blocking(move || chains(&options)).await??;
    if let Some(seed) = faults {
        for chain in &chains {
            chain.misbehave(Mischief::mixed(seed, FAULTS_PER_MILLE));
        }
    }
    let ids: Vec<u64> = chains.iter().map(Chain::chain_id).collect();
    let node = Node::bind(listen, chains)
        .await
        .with_context(|| format!("the simulator cannot listen on {listen}"))?;
    output::text(&welcome(node.addr(), &ids));
    let stop = CancellationToken::new();
    tokio::select! {
        () = node.run(stop.clone()) => bail!("the simulator ended"),
        () = signals.next() => Ok(Exit::Done),
    }
}

/// Generates or reads all chains; blocks the thread.
fn chains(options: &Simulate) -> anyhow::Result<Vec<Chain>> {
    if let Some(folder) = &options.recorded {
        return Ok(vec![Chain::recorded(folder)?.into()]);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let genesis_time = options.genesis_time.unwrap_or(now.as_secs());
    let chain = |&chain_id: &u64| {
        let spec = ChainSpec {
            chain_id,
            block_time: Duration::from_millis(options.block_time_ms),
            events_per_block: options.events_per_block,
            empty_every: 0,
            reorg_every: options.reorg_every,
            reorg_depth: options.reorg_depth,
            seed: options.seed,
            genesis_time,
        };
        Chain::scheduled(spec).with_context(|| format!("chain {chain_id} cannot be simulated"))
    };
    options.chains.iter().map(chain).collect()
}

/// The addresses of the chains, and the settings that point the ingestor to them.
fn welcome(addr: SocketAddr, ids: &[u64]) -> String {
    let built_in = Profile::built_in();
    let mut text = format!("Simulated chains on {addr}. To ingest them, set:\n");
    let mut described = String::new();
    for id in ids {
        let profile = built_in.iter().find(|profile| profile.chain_id == *id);
        let name = profile.map_or_else(|| format!("SIM_{id}"), |p| p.name.to_uppercase());
        text += &format!("{name}_WS_URL=ws://{addr}/{id}\n");
        text += &format!("{name}_HTTP_URL=http://{addr}/{id}\n");
        if profile.is_none() {
            described += &format!("[chains.{}]\nchain_id = {id}\n", name.to_lowercase());
        }
    }
    if !described.is_empty() {
        text += &format!("and in ethhook.toml:\n{described}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_that_are_shown_are_ones_that_work() {
        let text = welcome("127.0.0.1:8545".parse().unwrap(), &[10, 5]);
        assert_eq!(
            text,
            "Simulated chains on 127.0.0.1:8545. To ingest them, set:\n\
             OPTIMISM_WS_URL=ws://127.0.0.1:8545/10\n\
             OPTIMISM_HTTP_URL=http://127.0.0.1:8545/10\n\
             SIM_5_WS_URL=ws://127.0.0.1:8545/5\n\
             SIM_5_HTTP_URL=http://127.0.0.1:8545/5\n\
             and in ethhook.toml:\n\
             [chains.sim_5]\n\
             chain_id = 5\n"
        );
    }
}
