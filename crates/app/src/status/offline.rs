//! What Redis alone tells of the chains.

use std::time::Duration;

use ethhook_domain::Profile;
use ethhook_streams::{Standing, Streams};
use futures_util::future::join_all;

/// How long Redis may take to tell of all chains.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where each of `chains` stands, in their order.
///
/// # Errors
/// Why Redis does not tell, in a line.
pub(super) async fn standings(
    streams: &Streams,
    chains: &[&Profile],
) -> Result<Vec<Standing>, String> {
    let asked = join_all(chains.iter().map(|chain| streams.standing(chain.chain_id)));
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answers) => answers
            .into_iter()
            .zip(chains)
            .map(|(answer, chain)| answer.map_err(|error| format!("{}: {error}", chain.name)))
            .collect(),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
