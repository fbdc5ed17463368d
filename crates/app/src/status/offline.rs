//! What Redis alone tells of the chains.

use std::time::Duration;

use ethhook_domain::Profile;
use ethhook_streams::{Standing, Streams};
use futures_util::future::join_all;

/// How long Redis may take to tell of all chains.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where each of `chains` stands, in their order; none of those of which Redis does not tell. And why it
/// does not tell of all, in a line.
pub(super) async fn standings(
    streams: &Streams,
    chains: &[&Profile],
) -> (Vec<Option<Standing>>, Option<String>) {
    let asked = join_all(chains.iter().map(|chain| streams.standing(chain.chain_id)));
    let Ok(answers) = tokio::time::timeout(PATIENCE, asked).await else {
        return (chains.iter().map(|_| None).collect(), Some("no answer in time".to_owned()));
    };
    let mut failure = None;
    let standings = answers.into_iter().zip(chains).map(|(answer, chain)| {
        let noted = answer.map_err(|error| {
            failure.get_or_insert_with(|| format!("{}: {error}", chain.name));
        });
        noted.ok()
    });
    (standings.collect(), failure)
}
