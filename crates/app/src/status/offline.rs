//! The state of chains according to Redis alone.

use std::fmt;
use std::time::Duration;

use ethhook_domain::Profile;
use ethhook_streams::{ReadError, Standing, Streams};
use futures_util::future::join_all;

/// Timeout for all chains together.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the state of some chain could not be read.
pub(super) enum Failure {
    /// Redis did not answer within [`PATIENCE`].
    Late,
    /// Reading the chain of this name failed.
    Of(String, ReadError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("no answer in time"),
            Self::Of(chain, error) => write!(f, "{chain}: {error}"),
        }
    }
}

/// The state of each of `chains`, in the same order, none for those that could not be read; and the first failure.
pub(super) async fn standings(
    streams: &Streams,
    chains: &[&Profile],
) -> (Vec<Option<Standing>>, Option<Failure>) {
    let asked = join_all(chains.iter().map(|chain| streams.standing(chain.chain_id)));
    let Ok(answers) = tokio::time::timeout(PATIENCE, asked).await else {
        return (chains.iter().map(|_| None).collect(), Some(Failure::Late));
    };
    let mut failure = None;
    let standings = answers.into_iter().zip(chains).map(|(answer, chain)| {
        let noted = answer.map_err(|error| {
            failure.get_or_insert_with(|| Failure::Of(chain.name.clone(), error));
        });
        noted.ok()
    });
    (standings.collect(), failure)
}
