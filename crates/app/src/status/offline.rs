//! The state of chains according to Redis alone.

use std::fmt;
use std::time::Duration;

use ethhook_domain::Profile;
use ethhook_streams::{ReadError, Standing, Streams};
use futures_util::future::join_all;
use tokio::time::timeout;

/// Timeout for each chain; they are read at the same time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the state of some chain could not be read.
pub(super) enum Failure {
    /// Redis did not answer within [`PATIENCE`] for the chain of this name.
    Late(String),
    /// Reading the chain of this name failed.
    Of(String, ReadError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late(chain) => write!(f, "{chain}: no answer in time"),
            Self::Of(chain, error) => write!(f, "{chain}: {error}"),
        }
    }
}

/// The state of each of `chains`, in the same order, none for those that could not be read; and the first failure.
pub(super) async fn standings(
    streams: &Streams,
    chains: &[&Profile],
) -> (Vec<Option<Standing>>, Option<Failure>) {
    let ask = |chain: &&Profile| timeout(PATIENCE, streams.standing(chain.chain_id));
    let mut failure = None;
    let answers = join_all(chains.iter().map(ask)).await;
    let standings = answers.into_iter().zip(chains).map(|(answer, chain)| {
        let name = || chain.name.clone();
        let noted = match answer {
            Ok(Ok(standing)) => return Some(standing),
            Ok(Err(error)) => Failure::Of(name(), error),
            Err(_) => Failure::Late(name()),
        };
        failure.get_or_insert(noted);
        None
    });
    (standings.collect(), failure)
}
