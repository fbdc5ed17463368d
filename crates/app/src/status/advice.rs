//! What is wrong with a chain, in plain words, and what to do about it.

use std::borrow::Cow;
use std::time::Duration;

use ethhook_ingest::BreakerState;
use ethhook_ingest::status::{Cause, Needs, Stall, Unready};
use ethhook_streams::ReadError;

use super::offline::Failure;
use super::{Chain, Level, Trouble, spoken};

/// If a group's entries wait longer than this, perhaps nobody reads them.
const GROUP_WARNING: Duration = Duration::from_secs(15 * 60);
/// If they wait longer than this, retention may soon have to remove unread entries to respect the
/// byte cap.
const GROUP_ERROR: Duration = Duration::from_secs(60 * 60);

/// What else the service knows about a chain.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Why `/ready` does not count it as ready.
    pub(super) unready: Option<Unready>,
    /// The cause of the stall in `unready`.
    pub(super) cause: Option<Cause>,
    /// Entries removed by the byte cap before consumer groups read them, since the service started.
    pub(super) lost_unread: u64,
}

impl Trouble {
    fn warning(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), to_do: to_do.into() }
    }

    fn error(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { level: Level::Error, what: what.into(), to_do: to_do.into() }
    }

    /// No service answers; `why` is the error.
    pub(super) fn no_service(why: &str) -> Self {
        Self::error(
            format!("the service does not answer here: {why}"),
            "start it (`docker compose up -d`, `systemctl start ethhook` or `ethhook ingest`), or set \
             HEALTH_PORT and BIND_ADDRESS as for the service; the data shown is from Redis",
        )
    }

    /// Redis did not answer, or its data cannot be read.
    pub(super) fn no_redis(failure: &Failure) -> Self {
        let what = format!("the data in Redis cannot be read: {failure}");
        match failure {
            Failure::Of(_, ReadError::Redis(_)) | Failure::Late(_) => Self::error(
                what,
                "nothing is lost: the service waits, then continues from the cursor. Start Redis, or \
                 check its log, its memory and REDIS_URL",
            ),
            Failure::Of(chain, _) => Self::error(
                what,
                format!(
                    "this version of ethhook does not write such data: find out what did; `ethhook \
                     reset --chain {chain}` deletes the chain's keys and starts it over"
                ),
            ),
        }
    }

    /// Redis has a `maxmemory-policy` that evicts keys.
    pub(super) fn evicting(policy: &str) -> Self {
        Self::error(
            format!(
                "Redis' maxmemory-policy is {policy}: when memory is full, it deletes keys, and published \
                 events with them"
            ),
            "run CONFIG SET maxmemory-policy noeviction, and set it in Redis' configuration",
        )
    }

    pub(super) fn stopping() -> Self {
        Self::error("the service is shutting down", "wait for its next start")
    }
}

/// All troubles of `chain`, the worst first.
pub(super) fn troubles(chain: &Chain, seen: &Seen) -> Vec<Trouble> {
    let mut troubles: Vec<Trouble> = unready(chain, seen).into_iter().collect();
    // If all endpoints are set aside, the chain's own trouble already says so.
    let is_said = matches!(
        &seen.unready,
        Some(Unready::Stalled(Stall { needs: Needs::Time | Needs::Operator, .. }))
    );
    if !(is_said && all_set_aside(chain)) {
        troubles.extend(endpoints(chain));
    }
    troubles.extend(groups(chain));
    troubles.extend(lost(chain, seen.lost_unread));
    troubles.sort_by_key(|trouble| trouble.level == Level::Warning); // stable
    troubles
}

fn unready(chain: &Chain, seen: &Seen) -> Option<Trouble> {
    let name = &chain.name;
    let key = name.to_uppercase();
    if let Some(alarm) = &chain.alarm {
        return Some(Trouble::error(
            format!("stopped by an alarm: {alarm}"),
            format!(
                "check the chain in a block explorer; once you trust the node, follow it with \
                 `ethhook clear-alarm --chain {name}`"
            ),
        ));
    }
    let unready = seen.unready.as_ref()?;
    let to_do = match unready {
        Unready::Stalled(Stall { needs: Needs::Turn, .. }) => return None,
        Unready::Stalled(Stall { needs: Needs::Operator, .. }) => format!(
            "do as it says (add `--chain {name}` to commands), or as SETUP_GUIDE.md does under \"What /ready says\"; the chain \
             then continues automatically"
        ),
        Unready::Stalled(Stall { needs: Needs::Room, .. }) => {
            "nothing is lost: raise Redis' maxmemory, lower STREAM_MAX_BYTES, RETENTION_HOURS or DEDUP_TTL_SECONDS, or \
             make sure that consumer groups read and acknowledge; the chain then continues automatically"
                .to_owned()
        }
        Unready::Stalled(_) if all_set_aside(chain) => {
            format!(
                "every endpoint is set aside: check the provider's status page, the key's quota, \
                 {key}_WS_URL and {key}_HTTP_URL, or add a second URL after a comma"
            )
        }
        // Nodes say in too many ways that they do not offer a method.
        Unready::Stalled(_) if seen.cause == Some(Cause::Block) => format!(
            "the chain continues automatically once this is over; if it lasts, add another endpoint: \
             {key}_VERIFY=receipts_root needs one that offers eth_getBlockReceipts, and {key}_VERIFY=bloom does \
             not, but then no check covers a log's data, and a log can be missing"
        ),
        Unready::Stalled(Stall { needs: Needs::Time, .. }) => {
            "the chain continues automatically once this is over; the log has each failure".to_owned()
        }
        Unready::NoHead | Unready::NoAnswer(_) => {
            "check the provider, or add a second URL after a comma; the chain continues once one answers"
                .to_owned()
        }
        Unready::NothingPublished | Unready::Behind { .. } => format!(
            "if this number falls, it is catching up; if not, the endpoint is too slow or its rate limit \
             too low ({key}_RPS)"
        ),
    };
    Some(Trouble::error(unready.to_string(), to_do))
}

fn all_set_aside(chain: &Chain) -> bool {
    !chain.endpoints.is_empty() && chain.endpoints.iter().all(|e| e.breaker == BreakerState::Open)
}

fn endpoints(chain: &Chain) -> impl Iterator<Item = Trouble> {
    let key = chain.name.to_uppercase();
    chain.endpoints.iter().flat_map(move |endpoint| {
        let position = endpoint.position;
        let set_aside = (endpoint.breaker != BreakerState::Closed).then(|| {
            Trouble::warning(
                format!("endpoint {position} is set aside: it failed, gave wrong data or was rate limited"),
                "it is retried automatically; if this persists, check its key's quota and its URL",
            )
        });
        let deaf = (endpoint.subscribed == Some(false)).then(|| {
            Trouble::warning(
                format!("endpoint {position} sends no heads: its WebSocket is down"),
                "nothing is lost: the chain is polled as long as an endpoint answers; if this persists, \
                 check its ws URL",
            )
        });
        let apart = endpoint.apart.then(|| {
            Trouble::warning(
                format!("endpoint {position} follows another branch of the chain than the stream"),
                format!(
                    "the log has a block of both: look it up in a block explorer, and remove the endpoint \
                     that is wrong from {key}_WS_URL and {key}_HTTP_URL and restart; if the stream is, it then \
                     takes those blocks back"
                ),
            )
        });
        set_aside.into_iter().chain(deaf).chain(apart)
    })
}

fn lost(chain: &Chain, entries: u64) -> Option<Trouble> {
    let name = &chain.name;
    (entries > 0).then(|| {
        Trouble::error(
            format!(
                "consumer groups have lost {entries} entries since the service started: the byte cap \
                 removed them before they were acknowledged"
            ),
            format!(
                "raise STREAM_MAX_BYTES, or make the consumers faster; the log says which group, and \
                 `ethhook replay --chain {name}` writes the events again"
            ),
        )
    })
}

fn groups(chain: &Chain) -> impl Iterator<Item = Trouble> {
    chain.groups.iter().filter_map(|group| {
        let waiting = Duration::from_secs(group.waiting_seconds);
        let level = match waiting {
            waiting if waiting > GROUP_ERROR => Level::Error,
            waiting if waiting > GROUP_WARNING => Level::Warning,
            _ => return None,
        };
        let behind = group.behind.map(|entries| format!("{entries} ")).unwrap_or_default();
        let what = format!(
            "group {} has {behind}entries to read, the oldest waiting for {}",
            group.name,
            spoken(waiting)
        );
        let to_do = if group.consumers == 0 {
            format!(
                "it has no consumer: start one, or delete the group (`ethhook groups delete --chain {} \
                 --group {}`); its entries stay in Redis, up to STREAM_MAX_BYTES",
                chain.name,
                quoted(&group.name)
            )
        } else {
            "check that its consumers run and acknowledge; its entries stay in Redis, up to \
             STREAM_MAX_BYTES"
                .to_owned()
        };
        Some(Trouble { level, what, to_do })
    })
}

/// The text as one word for a shell.
fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "._:@%+=-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Profile;

    use ethhook_ingest::status::Lag;

    use super::super::{Endpoint, Group, State};
    use super::*;

    fn chain() -> Chain {
        Chain { state: State::Following, ..Chain::unknown(&Profile::unknown("tiny", 7)) }
    }

    fn endpoint(position: usize, breaker: BreakerState, subscribed: Option<bool>) -> Endpoint {
        Endpoint {
            position,
            breaker,
            subscribed,
            failed_checks: 0,
            apart: false,
            calls_per_second: None,
        }
    }

    fn group(consumers: u64, behind: Option<u64>, waiting_seconds: u64) -> Group {
        Group { name: "g".into(), consumers, pending: 0, behind, waiting_seconds }
    }

    /// The level and text of each trouble.
    fn told(chain: &Chain, seen: &Seen) -> Vec<(Level, String)> {
        let told = |t: Trouble| (t.level, format!("{}: {}", t.what, t.to_do));
        troubles(chain, seen).into_iter().map(told).collect()
    }

    #[test]
    fn a_chain_that_is_well_has_no_trouble() {
        let mut chain = chain();
        chain.endpoints = vec![
            endpoint(0, BreakerState::Closed, Some(true)),
            endpoint(1, BreakerState::Closed, None),
        ];
        chain.groups = vec![group(1, Some(10), 900)];
        assert_eq!(told(&chain, &Seen::default()), []);
    }

    fn seen(unready: Unready) -> Seen {
        Seen { unready: Some(unready), ..Seen::default() }
    }

    fn stalled(why: &str, needs: Needs) -> Seen {
        seen(Unready::Stalled(Stall { why: why.to_owned(), needs }))
    }

    #[test]
    fn a_groups_name_is_one_word_in_a_command() {
        for (name, word) in
            [("a.b:c-1", "a.b:c-1"), ("my group", "'my group'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(quoted(name), word);
        }
    }

    #[test]
    fn an_endpoint_on_another_branch_is_named() {
        let mut chain = chain();
        let well = endpoint(0, BreakerState::Closed, Some(true));
        chain.endpoints = vec![well.clone(), Endpoint { position: 1, apart: true, ..well }];
        let told = told(&chain, &Seen::default());
        assert_eq!((told.len(), told[0].0), (1, Level::Warning));
        assert!(told[0].1.starts_with("endpoint 1 follows another branch"), "{told:?}");
        assert!(told[0].1.contains("TINY_WS_URL and TINY_HTTP_URL"), "{told:?}");
    }

    #[test]
    fn an_alarm_hides_what_follows_from_it_and_names_its_command() {
        let mut chain = chain();
        chain.alarm = Some("a reorg".into());
        let told = told(&chain, &stalled("stopped by an alarm: a reorg", Needs::Operator));
        assert_eq!(told.len(), 1);
        assert!(told[0].1.contains("a reorg") && told[0].1.contains("clear-alarm --chain tiny"));
    }

    #[test]
    fn standing_by_is_no_trouble_and_a_stall_is() {
        let mut chain = chain();
        assert_eq!(told(&chain, &stalled("another's turn", Needs::Turn)), []);
        chain.endpoints = vec![endpoint(0, BreakerState::Open, None)];
        let told = told(&chain, &stalled("no endpoint answers", Needs::Time));
        assert_eq!((told.len(), told[0].0), (1, Level::Error), "the endpoint is not told of twice");
        assert!(told[0].1.starts_with("no endpoint answers: every endpoint is set aside"));
        assert!(told[0].1.contains("TINY_WS_URL"), "{told:?}");
        // A problem that only an operator can fix takes precedence.
        let told = self::told(&chain, &stalled("serves chain id 5", Needs::Operator));
        assert!(told.len() == 1 && told[0].1.contains("do as it says"), "{told:?}");
    }

    #[test]
    fn advice_fits_what_is_wrong() {
        let advice = |seen| told(&chain(), &seen).remove(0).1;
        let operator = advice(stalled("data is left", Needs::Operator));
        assert!(operator.contains("do as it says") && operator.contains("--chain tiny"));
        let full = advice(stalled("Redis does not accept a step", Needs::Room));
        assert!(full.contains("raise Redis' maxmemory"), "{full}");
        assert!(advice(stalled("Redis is away", Needs::Time)).contains("once this is over"));
        let block = stalled("block 7 is not available: method not offered", Needs::Time);
        let block = advice(Seen { cause: Some(Cause::Block), ..block });
        assert!(
            block.contains("eth_getBlockReceipts") && block.contains("TINY_VERIFY=bloom"),
            "{block}"
        );
        let no_answer = advice(seen(Unready::NoAnswer(Some(Duration::from_secs(9)))));
        assert!(no_answer.starts_with("no endpoint has answered for 9 s"), "{no_answer}");
        assert!(no_answer.contains("second URL"), "{no_answer}");
        let behind =
            advice(seen(Unready::Behind { lag: Lag { blocks: 900, seconds: 1_800 }, head: 950 }));
        assert!(behind.starts_with("900 blocks (1800 s) behind head 950"), "{behind}");
        assert!(behind.contains("TINY_RPS"), "{behind}");
        let lost = advice(Seen { lost_unread: 7, ..Seen::default() });
        assert!(lost.contains("lost 7 entries") && lost.contains("replay --chain tiny"), "{lost}");
    }

    #[test]
    fn groups_warn_after_a_quarter_and_are_errors_after_an_hour() {
        for (waiting, level) in
            [(900, None), (901, Some(Level::Warning)), (3_601, Some(Level::Error))]
        {
            let chain = Chain { groups: vec![group(2, None, waiting)], ..chain() };
            let told = told(&chain, &Seen::default());
            assert_eq!(told.first().map(|t| t.0), level, "{waiting}");
            assert!(
                told.iter().all(|t| t.1.starts_with("group g has entries to read, ")),
                "{told:?}"
            );
        }
        let chain = Chain { groups: vec![group(0, Some(5), 7_200)], ..chain() };
        let told = told(&chain, &Seen::default());
        assert!(
            told[0].1.contains("waiting for 2 h")
                && told[0].1.contains("groups delete --chain tiny --group g")
        );
    }
}
