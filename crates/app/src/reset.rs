//! `ethhook reset`: deletes a chain's data in Redis.

use std::fmt::Write;

use anyhow::bail;
use ethhook_domain::{Cursor, Profile};
use ethhook_streams::{Inventory, Keys};

use crate::config::{Client, Inputs};
use crate::output;
use crate::output::say;
use crate::{Exit, logging};

/// Prints what there is, asks unless `yes`, and deletes it.
///
/// # Errors
/// If an ingestor writes the chain, there is no terminal to ask on, or Redis fails.
pub(crate) async fn run(inputs: &Inputs, chain: &str, yes: bool) -> anyhow::Result<Exit> {
    let client = Client::load(inputs)?;
    logging::start(&client.logging)?;
    let streams = &client.streams;
    let chain = client.chain(chain)?;
    match streams.inventory(chain.chain_id).await {
        Ok(inventory) => {
            output::text(&describe(chain, &streams.address(), &inventory));
            if let Some(holder) = streams.lease_holder(chain.chain_id).await? {
                bail!("{}: {holder}: stop that process first", chain.name);
            }
        }
        // Unreadable data is a reason to delete it, not to refuse.
        Err(error) if !error.is_retryable() => {
            say!("The data of {} cannot be read: {error}", chain.name);
        }
        Err(error) => return Err(error.into()),
    }
    if !yes && !output::confirm(&chain.name, "delete all of this")? {
        say!("Nothing was deleted.");
        return Ok(Exit::Done);
    }
    streams.reset(chain.chain_id).await?;
    say!("Deleted. The ingestor starts {} over, within seconds if it is running.", chain.name);
    Ok(Exit::Done)
}

fn describe(chain: &Profile, address: &str, inventory: &Inventory) -> String {
    let keys = Keys::of(chain.chain_id);
    let width = keys.cursor.len();
    let mut text = format!("Chain {} ({}) in Redis at {address}:\n", chain.name, chain.chain_id);
    let mut line = |key: &str, holds: String| {
        let _ = writeln!(text, "  {key:<width$}  {holds}");
    };
    line(&keys.events, format!("{} entries", inventory.events_len));
    line(&keys.blocks, format!("{} markers", inventory.blocks_len));
    let cursor = inventory.cursor.as_ref().map_or("none".to_owned(), |cursor| {
        let Cursor { number, start_number, writer, .. } = cursor;
        format!("at block {number}, started at {start_number}, written by {writer}")
    });
    line(&keys.cursor, cursor);
    line(&keys.seen_pattern(), format!("{} records", inventory.dedup_records));
    for group in &inventory.groups {
        let lag = group.lag.map_or_else(|| "an unknown number".to_owned(), |lag| lag.to_string());
        let _ = writeln!(
            text,
            "  group {}: {} pending, {lag} not yet read; it is deleted too",
            group.name, group.pending
        );
    }
    text
}
