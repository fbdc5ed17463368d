//! What several commands ask a chain's node.

use anyhow::Context;
use ethhook_domain::{Header, Profile};
use ethhook_ingest::inquiry::{Inquiry, Which};

/// Blocks requested from the node at once.
pub(crate) const BLOCKS_PER_QUESTION: u64 = 32;

/// The node's head.
pub(crate) async fn head(inquiry: &Inquiry) -> anyhow::Result<Header> {
    inquiry.header(Which::Latest).await?.context("the node returned no head")
}

/// The newest block that counts as final below `head`; none if no block does yet.
pub(crate) async fn newest_final(
    inquiry: &Inquiry,
    profile: &Profile,
    head: u64,
) -> anyhow::Result<Option<u64>> {
    let tag = inquiry.header(Which::Finalized).await?.map(|header| header.block.number);
    Ok(profile.newest_final(head, tag))
}
