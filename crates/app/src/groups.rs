//! `ethhook groups`: the consumer groups of the live streams.

use ethhook_domain::{EntryId, Profile};
use ethhook_streams::{Consumer, GroupError, GroupLag, Streams};
use serde_json::json;

use crate::cli::GroupsCommand;
use crate::config::{Client, Inputs};
use crate::output;
use crate::output::say;
use crate::status::spoken;
use crate::{Exit, logging};

/// Carries out the command.
///
/// # Errors
/// If the chain, stream or group does not exist, there is no terminal to ask on, or Redis fails.
pub(crate) async fn run(inputs: &Inputs, command: GroupsCommand) -> anyhow::Result<Exit> {
    let client = Client::load(inputs)?;
    logging::start(&client.logging)?;
    let streams = &client.streams;
    match command {
        GroupsCommand::List { chain, json } => {
            let chains = client.chosen(chain.as_deref())?;
            list(streams, &chains, json).await?;
        }
        GroupsCommand::Create { chain, group, from } => {
            let chain = client.chain(&chain)?;
            let after = from.resolve(streams, chain).await?;
            streams.create_group(chain.chain_id, &group, after).await?;
            let given = match after {
                None => "only new events".to_owned(),
                Some(EntryId::MIN) => "everything retained".to_owned(),
                Some(id) => format!("everything after {id}"),
            };
            say!("Group {group} of {} reads {given}.", chain.name);
        }
        GroupsCommand::Prune { chain, group, idle } => {
            let chain = client.chain(&chain)?;
            let removed = streams.prune_consumers(chain.chain_id, &group, idle).await?;
            match removed.as_slice() {
                [] => say!("No consumer was removed."),
                names => say!("Removed: {}.", names.join(", ")),
            }
            for dead in streams.consumers(chain.chain_id, &group).await? {
                if dead.idle >= idle {
                    say!(
                        "{} is kept: it has {} pending entries, which another consumer can claim (XAUTOCLAIM).",
                        dead.name,
                        dead.pending
                    );
                }
            }
        }
        GroupsCommand::Delete { chain, group, yes } => {
            delete(streams, client.chain(&chain)?, &group, yes).await?;
        }
    }
    Ok(Exit::Done)
}

async fn delete(streams: &Streams, chain: &Profile, group: &str, yes: bool) -> anyhow::Result<()> {
    let groups = streams.groups(chain.chain_id).await?;
    if let Some(held) = groups.iter().find(|held| held.group == group) {
        let consumers = streams.consumers(chain.chain_id, group).await?;
        output::text(&as_text(chain, held, &consumers));
        if !yes && !output::confirm(group, "delete this group")? {
            say!("Nothing was deleted.");
            return Ok(());
        }
    }
    streams.delete_group(chain.chain_id, group).await?;
    say!("Deleted.");
    Ok(())
}

async fn list(streams: &Streams, chains: &[&Profile], json: bool) -> anyhow::Result<()> {
    let mut none = true;
    for chain in chains {
        for group in streams.groups(chain.chain_id).await? {
            none = false;
            let consumers = match streams.consumers(chain.chain_id, &group.group).await {
                // Deleted in the meantime, or its name is not text.
                Err(GroupError::NoGroup(_)) => Vec::new(),
                consumers => consumers?,
            };
            if json {
                say!("{}", as_json(chain, &group, &consumers));
            } else {
                output::text(&as_text(chain, &group, &consumers));
            }
        }
    }
    if none && !json {
        say!("There are no groups; `ethhook groups create` creates one.");
    }
    Ok(())
}

fn as_json(chain: &Profile, group: &GroupLag, consumers: &[Consumer]) -> serde_json::Value {
    let consumer = |consumer: &Consumer| {
        json!({
            "name": consumer.name,
            "pending": consumer.pending,
            "idle_seconds": consumer.idle.as_secs(),
        })
    };
    json!({
        "chain": chain.name,
        "group": group.group,
        "behind": group.entries,
        "waiting_seconds": group.waiting.as_secs(),
        "pending": group.pending,
        "consumers": consumers.iter().map(consumer).collect::<Vec<_>>(),
    })
}

fn as_text(chain: &Profile, group: &GroupLag, consumers: &[Consumer]) -> String {
    let waiting = || {
        format!(
            "{} of them pending; the oldest waiting for {}",
            group.pending,
            spoken(group.waiting)
        )
    };
    let state = match group.entries {
        Some(0) => "has read and acknowledged everything".to_owned(),
        Some(entries) => format!("{entries} entries to read or acknowledge, {}", waiting()),
        // Redis cannot tell, for instance for a group that another client created in the middle of
        // the stream, until it has read to the end.
        None => format!("entries to read that Redis has not counted, {}", waiting()),
    };
    let mut text = format!("{} {}: {state}\n", chain.name, group.group);
    for consumer in consumers {
        text += &format!(
            "  {}: {} pending, has not read for {}\n",
            consumer.name,
            consumer.pending,
            spoken(consumer.idle)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn how_far_a_group_is_takes_one_line_and_each_consumer_another() {
        let chain = Profile::unknown("local", 1);
        let of = |entries, pending, seconds| {
            let waiting = Duration::from_secs(seconds);
            let group = GroupLag { entries, pending, waiting, ..GroupLag::default() };
            as_text(&chain, &GroupLag { group: "readers".to_owned(), ..group }, &[])
        };
        assert_eq!(of(Some(0), 0, 0), "local readers: has read and acknowledged everything\n");
        assert_eq!(
            of(Some(9), 4, 7_200),
            "local readers: 9 entries to read or acknowledge, 4 of them pending; the oldest waiting for 2 h\n"
        );
        assert_eq!(
            of(None, 0, 5),
            "local readers: entries to read that Redis has not counted, 0 of them pending; the oldest waiting for 5 s\n"
        );
        let consumer = Consumer { name: "a".into(), pending: 2, idle: Duration::from_secs(180) };
        let told = as_text(&chain, &GroupLag::default(), &[consumer]);
        assert!(told.ends_with("\n  a: 2 pending, has not read for 3 min\n"), "{told}");
    }
}
