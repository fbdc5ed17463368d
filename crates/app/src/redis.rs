//! How this program reaches Redis.

use std::time::Duration;

use ethhook_streams::{RedisConfig, Streams};

use crate::config::{Client, Inputs, Problem, RedisSettings};
use crate::{logging, tell};

/// Redis is near; one that takes longer than this to take a connection is as good as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A step of 10,000 entries holds Redis for some 50 ms; a disk that stalls takes far longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to Redis; nothing is sent yet.
///
/// # Errors
/// If there can be no such way.
pub(crate) fn open(settings: &RedisSettings) -> Result<Streams, Problem> {
    Streams::new(RedisConfig {
        url: settings.url.clone(),
        authorities: settings.authorities.clone(),
        pool_size: settings.pool_size,
        connect_timeout: CONNECT_TIMEOUT,
        response_timeout: RESPONSE_TIMEOUT,
    })
    .map_err(|error| Problem::line(error.to_string()))
}

/// Reads what a client of the streams needs and starts the log; none if something is wrong, which is
/// then told.
///
/// # Errors
/// If the log does not start.
pub(crate) fn client(
    inputs: Result<Inputs, Vec<Problem>>,
) -> anyhow::Result<Option<(Client, Streams)>> {
    let loaded = inputs.and_then(|inputs| {
        let client = Client::load(&inputs)?;
        let streams = open(&client.redis).map_err(|problem| vec![problem])?;
        Ok((client, streams))
    });
    match loaded {
        Ok((client, streams)) => {
            logging::start(&client.logging)?;
            Ok(Some((client, streams)))
        }
        Err(problems) => {
            tell(&problems);
            Ok(None)
        }
    }
}
