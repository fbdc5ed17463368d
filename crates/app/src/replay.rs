//! `ethhook replay`: fetches and checks a final range of a chain again, and writes it to a separate
//! stream.

use anyhow::{Context, bail, ensure};
use ethhook_domain::{Filter, Profile};
use ethhook_ingest::inquiry::{CheckedBlock, Inquiry};
use ethhook_streams::{Replay, ReplayError, ReplaySpec};

use crate::Exit;
use crate::bar::Bar;
use crate::config::Inputs;
use crate::node::{self, BLOCKS_PER_QUESTION};
use crate::output::say;
use crate::signals::Signals;
use crate::target::{Target, patiently};

/// The range to replay, and its destination.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) into: String,
    /// None: the chain's configured one.
    pub(crate) filter: Option<Filter>,
}

/// Writes the blocks that the stream does not hold yet.
///
/// # Errors
/// If the range is not final, the stream belongs to something else, or the node or Redis do not
/// answer.
pub(crate) async fn run(inputs: &Inputs, chain: &str, order: Order) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let Order { from, to, into, filter } = order;
    ensure!(from <= to, "--from {from} is above --to {to}");
    let mut target = Target::load(inputs, chain)?;
    // The requests to the node use it, too.
    target.chain.filter = filter.unwrap_or(target.chain.filter);
    let (filter, encoding) = (target.chain.filter.digest(), target.options.encoding);
    let spec = ReplaySpec { chain: target.id(), from, filter, encoding };
    let mut replay = target.streams.replay_into(&into, spec).await?;
    let before = replay.events();
    let done = async {
        if replay.next() > to {
            return anyhow::Ok(());
        }
        let live = target.streams.cursor(target.id()).await?;
        let inquiry = Inquiry::open(&target.chain, live.and_then(|cursor| cursor.genesis_hash))?;
        ensure_final(&inquiry, &target.chain.profile, to).await?;
        let copied = copy(&target, &inquiry, &mut replay, to).await;
        copied.with_context(|| go_on_from(replay.next()))
    };
    let interrupted = tokio::select! {
        done = done => done.map(|()| false),
        () = signals.next() => Ok(true),
    };
    let (published, next) = (replay.events() - before, replay.next());
    if published > 0 || interrupted.is_ok() {
        say!("{published} events published into {into}, {} in all.", replay.events());
    }
    if interrupted? {
        bail!("stopped; {}", go_on_from(next));
    }
    Ok(Exit::Done)
}

fn go_on_from(next: u64) -> String {
    format!("the next block is {next}: run it again to continue")
}

/// Fails if a reorg may still orphan block `to`.
async fn ensure_final(inquiry: &Inquiry, profile: &Profile, to: u64) -> anyhow::Result<()> {
    let head = node::head(inquiry).await?;
    match node::newest_final(inquiry, profile, head.block.number).await? {
        Some(last) if to <= last => Ok(()),
        Some(last) => bail!(
            "block {to} is not final yet, and a replay takes nothing back: --to must not be above {last}"
        ),
        None => {
            bail!(
                "no block of the chain is final yet, and a replay takes nothing back: try again later"
            )
        }
    }
}

async fn copy(
    target: &Target,
    inquiry: &Inquiry,
    replay: &mut Replay,
    to: u64,
) -> anyhow::Result<()> {
    let filter = &target.chain.filter;
    let bar = Bar::new("blocks", to + 1 - replay.next());
    while replay.next() <= to {
        let next = replay.next();
        let blocks = inquiry.blocks(next..=to.min(next + BLOCKS_PER_QUESTION - 1)).await?;
        for block in blocks {
            let CheckedBlock { block, logs } = block;
            ensure!(
                replay.tip().is_none_or(|tip| tip == block.parent_hash),
                "the parent of block {block} is not the last replayed block: the node is on another chain"
            );
            let events = filter.events(target.id(), &block, logs);
            let append = async || replay.append(&block, &events).await;
            patiently(append, ReplayError::is_retryable).await?;
            bar.advance(1);
        }
    }
    bar.end();
    Ok(())
}
