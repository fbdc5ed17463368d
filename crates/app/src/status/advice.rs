//! What is wrong with a chain, in plain words, and what to do about it.

use std::time::Duration;

use ethhook_streams::ReadError;

use super::offline::Failure;
use super::{Chain, Level, State, Trouble, spoken};

/// A group whose entries wait longer than this may not be read at all.
const GROUP_WARNING: Duration = Duration::from_secs(15 * 60);
/// Longer than this, and retention may have to choose between its bytes and the group.
const GROUP_ERROR: Duration = Duration::from_secs(60 * 60);

/// What else is known of a chain within the service.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen<'a> {
    /// Why it stands still, in its own words.
    pub(super) stands_still: Option<&'a str>,
    /// Why `/ready` does not count it as ready.
    pub(super) not_ready: Option<&'a str>,
    /// Entries that the byte cap took from consumer groups since the service started.
    pub(super) lost_unread: u64,
}

impl Trouble {
    fn warning(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), to_do: to_do.into() }
    }

    fn error(what: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { level: Level::Error, what: what.into(), to_do: to_do.into() }
    }

    /// No service answers; `why` is how asking it failed.
    pub(super) fn no_service(why: &str) -> Self {
        Self::error(
            format!("the service does not answer here: {why}"),
            "start it (`docker compose up -d`, `systemctl start ethhook` or `ethhook ingest`), or set \
             HEALTH_PORT and BIND_ADDRESS as the service has them; below is what Redis holds",
        )
    }

    /// Redis did not answer, or with what cannot be read.
    pub(super) fn no_redis(failure: &Failure) -> Self {
        let what = format!("Redis does not answer as it should: {failure}");
        match failure {
            Failure::Of(_, ReadError::Redis(_)) | Failure::Late => Self::error(
                what,
                "nothing is lost: the service waits and goes on from where Redis stands. Start Redis, \
                 or look at its log, its memory and REDIS_URL",
            ),
            Failure::Of(chain, _) => Self::error(
                what,
                format!(
                    "this version of ethhook writes no such thing: find out what did; `ethhook reset \
                     --chain {chain}` deletes the chain's keys, to start it anew"
                ),
            ),
        }
    }

    pub(super) fn stopping() -> Self {
        Self::error("the service is shutting down", "wait for its next start")
    }
}

/// All that is wrong with `chain`, the worst first.
pub(super) fn troubles(chain: &Chain, seen: Seen<'_>) -> Vec<Trouble> {
    let mut troubles: Vec<Trouble> = stands_still(chain, seen).into_iter().collect();
    troubles.extend(endpoints(chain));
    troubles.extend(groups(chain));
    troubles.extend(lost(chain, seen.lost_unread));
    troubles.sort_by_key(|trouble| trouble.level == Level::Warning); // stable
    troubles
}

fn stands_still(chain: &Chain, seen: Seen<'_>) -> Option<Trouble> {
    let name = &chain.name;
    if let Some(alarm) = &chain.alarm {
        return Some(Trouble::error(
            format!("stopped by an alarm: {alarm}"),
            format!(
                "look at the chain in a block explorer; `ethhook clear-alarm --chain {name}` follows \
                 the node once you trust it"
            ),
        ));
    }
    if chain.state == State::StandingBy {
        return None;
    }
    if let Some(why) = seen.stands_still {
        let all_open = chain.endpoints.iter().all(|endpoint| endpoint.breaker == "open");
        let to_do = if !chain.endpoints.is_empty() && all_open {
            let key = name.to_uppercase();
            format!(
                "every endpoint is set aside: look at the provider's status page, the key's quota, \
                 and {key}_WS_URL and {key}_HTTP_URL; another URL after a comma is asked next"
            )
        } else if why.contains("`ethhook ") || why.contains("serves chain id") {
            "it goes on by itself once you have done something about it".to_owned()
        } else {
            "it goes on by itself once that is over; the log has each failure".to_owned()
        };
        return Some(Trouble::error(why, to_do));
    }
    let why = seen.not_ready?;
    let to_do = if why.starts_with("no endpoint") {
        "look at the provider, or add a second URL after a comma; it goes on once one answers"
    } else if chain.state == State::CatchingUp {
        "it catches up by itself while this number falls; else the endpoint is too slow or its rate \
         too low (_RPS)"
    } else {
        "the log has each failure"
    };
    Some(Trouble::error(why, to_do))
}

fn endpoints(chain: &Chain) -> impl Iterator<Item = Trouble> {
    chain.endpoints.iter().flat_map(|endpoint| {
        let position = endpoint.position;
        let set_aside = (endpoint.breaker != "closed").then(|| {
            Trouble::warning(
                format!("endpoint {position} is set aside: it failed, lied or asked for patience"),
                "it is tried again by itself; if this stays, look at its key's quota and its URL",
            )
        });
        let deaf = (endpoint.subscribed == Some(false)).then(|| {
            Trouble::warning(
                format!("no heads come from endpoint {position}: its WebSocket is down"),
                "the chain is polled as long as an endpoint answers, and nothing is lost; if this stays, \
                 look at its ws URL",
            )
        });
        set_aside.into_iter().chain(deaf)
    })
}

fn lost(chain: &Chain, entries: u64) -> Option<Trouble> {
    let name = &chain.name;
    (entries > 0).then(|| {
        Trouble::error(
            format!(
                "consumer groups have lost {entries} entries that they had not acknowledged to the byte \
                 cap since the service started"
            ),
            format!(
                "raise STREAM_MAX_BYTES, or make the consumers faster; the log says which group, and \
                 `ethhook replay --chain {name}` brings the events again"
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
            "group {} has {behind}entries to read, the oldest waits for {}",
            group.name,
            spoken(waiting)
        );
        let to_do = if group.consumers == 0 {
            format!(
                "it has no consumer: start one, or delete the group (`redis-cli XGROUP DESTROY \
                 events:{} {}`); what waits for it stays in Redis, \
                 up to STREAM_MAX_BYTES",
                chain.chain_id, group.name
            )
        } else {
            "look whether its consumers run and acknowledge; what waits for them stays in Redis, up to \
             STREAM_MAX_BYTES"
                .to_owned()
        };
        Some(Trouble { level, what, to_do })
    })
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Profile;

    use super::super::{Endpoint, Group};
    use super::*;

    fn chain() -> Chain {
        Chain { state: State::Following, ..Chain::unknown(&Profile::unknown("tiny", 7)) }
    }

    fn endpoint(position: usize, breaker: &str, subscribed: Option<bool>) -> Endpoint {
        Endpoint { position, breaker: breaker.into(), subscribed, failed_checks: 0 }
    }

    fn group(consumers: u64, behind: Option<u64>, waiting_seconds: u64) -> Group {
        Group { name: "g".into(), consumers, pending: 0, behind, waiting_seconds }
    }

    /// Level, and what is told of it.
    fn told(chain: &Chain, seen: Seen<'_>) -> Vec<(Level, String)> {
        let told = |t: Trouble| (t.level, format!("{}: {}", t.what, t.to_do));
        troubles(chain, seen).into_iter().map(told).collect()
    }

    #[test]
    fn a_chain_that_is_well_has_no_trouble() {
        let mut chain = chain();
        chain.endpoints = vec![endpoint(0, "closed", Some(true)), endpoint(1, "closed", None)];
        chain.groups = vec![group(1, Some(10), 900)];
        assert_eq!(told(&chain, Seen::default()), []);
    }

    #[test]
    fn an_alarm_hides_what_follows_from_it_and_names_its_command() {
        let mut chain = chain();
        chain.alarm = Some("a reorg".into());
        let seen = Seen {
            stands_still: Some("stopped by an alarm: a reorg"),
            not_ready: None,
            lost_unread: 0,
        };
        let told = told(&chain, seen);
        assert_eq!(told.len(), 1);
        assert!(told[0].1.contains("a reorg") && told[0].1.contains("clear-alarm --chain tiny"));
    }

    #[test]
    fn standing_by_is_no_trouble_and_standing_still_is() {
        let mut chain = chain();
        let seen = Seen {
            stands_still: Some("no endpoint answers"),
            not_ready: Some("that"),
            lost_unread: 0,
        };
        chain.state = State::StandingBy;
        assert_eq!(told(&chain, seen), []);
        chain.state = State::StandingStill;
        chain.endpoints = vec![endpoint(0, "open", None)];
        let told = told(&chain, seen);
        assert_eq!((told[0].0, told[1].0), (Level::Error, Level::Warning));
        assert!(told[0].1.starts_with("no endpoint answers: every endpoint is set aside"));
        assert!(told[0].1.contains("TINY_WS_URL"), "{told:?}");
    }

    #[test]
    fn a_chain_far_behind_is_told_how_far() {
        let chain = Chain { state: State::CatchingUp, ..chain() };
        let seen = Seen { not_ready: Some("900 blocks (1800 s) behind"), ..Seen::default() };
        let told = told(&chain, seen);
        assert!(told[0].1.starts_with("900 blocks") && told[0].1.contains("_RPS"), "{told:?}");
    }

    #[test]
    fn advice_fits_what_is_wrong() {
        let seen = |why| Seen { stands_still: Some(why), ..Seen::default() };
        let chain = Chain { state: State::StandingStill, ..chain() };
        let advice = |seen| told(&chain, seen).remove(0).1;
        let operator = "once you have done something";
        assert!(advice(seen("no cursor: run `ethhook reset`")).contains(operator));
        assert!(advice(seen("the endpoint serves chain id 5")).contains(operator));
        assert!(advice(seen("Redis is away")).contains("once that is over"));
        let seen = Seen { not_ready: Some("no endpoint has answered for 9 s"), ..Seen::default() };
        assert!(advice(seen).contains("second URL"));
        let lost = advice(Seen { lost_unread: 7, ..Seen::default() });
        assert!(lost.contains("lost 7 entries") && lost.contains("replay --chain tiny"), "{lost}");
    }

    #[test]
    fn groups_warn_after_a_quarter_and_are_errors_after_an_hour() {
        for (waiting, level) in
            [(900, None), (901, Some(Level::Warning)), (3_601, Some(Level::Error))]
        {
            let chain = Chain { groups: vec![group(2, None, waiting)], ..chain() };
            let told = told(&chain, Seen::default());
            assert_eq!(told.first().map(|t| t.0), level, "{waiting}");
            assert!(
                told.iter().all(|t| t.1.starts_with("group g has entries to read, ")),
                "{told:?}"
            );
        }
        let chain = Chain { groups: vec![group(0, Some(5), 7_200)], ..chain() };
        let told = told(&chain, Seen::default());
        assert!(told[0].1.contains("waits for 2 h") && told[0].1.contains("DESTROY events:7 g"));
    }
}
