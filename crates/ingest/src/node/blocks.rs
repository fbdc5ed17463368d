//! Fetches the logs of blocks: of one by its hash, or of several with one message (ADR 11).
//!
//! Either way, each block is checked against its own header; the caller requests a block that
//! failed among others again, separately.

use ethhook_domain::block::{Body, Quantity};
use ethhook_domain::verify::{self, Verified};
use ethhook_domain::{BlockRef, Header, Log, Proof, Receipt};
use serde_json::json;
use tracing::warn;

use super::second_opinion::note_lacks;
use super::selection::Request;
use super::{Node, NodeError, check_failed};
use crate::config::Fetch;
use crate::rpc::{Attempt, Endpoint, INVALID_PARAMS, Method, RpcError};

/// How many blocks to fetch with one message, and whether they must be consecutive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// 1: one block at a time.
    pub(crate) blocks: usize,
    /// They are fetched as one range.
    pub(crate) in_a_row: bool,
}

/// How the contents of blocks are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchWay {
    Receipts,
    Logs,
}

impl FetchWay {
    fn method(self) -> Method {
        match self {
            Self::Receipts => Method::Receipts,
            Self::Logs => Method::Logs,
        }
    }
}

/// The result for one block of several.
pub(crate) type FetchedBlock = Result<Verified, NodeError>;

impl Node {
    /// The logs of `header`'s block, if the header alone proves them.
    pub(crate) fn told_by(&self, header: &Header) -> Option<Verified> {
        verify::without_fetching(&self.profile, header, &self.wanted)
    }

    /// The best way at the moment to fetch blocks that are not at the head.
    pub(crate) fn plan(&self) -> Plan {
        let preferred = self.for_contents();
        let Some(endpoint) = preferred.first() else { return Plan { blocks: 1, in_a_row: false } };
        let way = self.way(endpoint, endpoint.blocks_at_once(Method::Logs));
        Plan { blocks: endpoint.blocks_at_once(way.method()), in_a_row: way == FetchWay::Logs }
    }

    /// The checked logs of `header`'s block, by one request.
    pub(crate) async fn block(&self, header: &Header) -> FetchedBlock {
        let ((first, verified), mut lacking) = self
            .first_to_have(self.for_contents(), Request::OneBlock, async |attempt| {
                Ok((attempt.endpoint(), self.checked(&attempt, header).await?))
            })
            .await?;
        let (answerer, verified) = self.confirmed(first, header, verified).await?;
        lacking.extend((!std::ptr::eq(first, answerer)).then_some(first));
        note_lacks(answerer, &lacking);
        Ok(verified)
    }

    /// The checked logs of the blocks of `headers`, in their order, fetched as [`Node::plan`]
    /// proposes.
    ///
    /// # Errors
    /// If none of them could be fetched.
    pub(crate) async fn blocks(&self, headers: &[Header]) -> Result<Vec<FetchedBlock>, NodeError> {
        if let [header] = headers {
            return Ok(vec![self.block(header).await]);
        }
        let ((answerer, mut outcomes), lacking) = self
            .first_to_have(self.for_contents(), Request::Blocks, async |attempt| {
                let outcomes = self.several(&attempt, headers).await?;
                match outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
                    Some(error) if outcomes.iter().all(Result::is_err) => Err(error.clone()),
                    _ => Ok((attempt.endpoint(), outcomes)),
                }
            })
            .await?;
        self.confirm_several(answerer, headers, &mut outcomes).await?;
        note_lacks(answerer, &lacking);
        Ok(outcomes)
    }

    /// Whether logs without their receipts would not do: they prove no receipts root.
    pub(super) fn needs_receipts(&self) -> bool {
        match self.fetch {
            Fetch::Receipts => true,
            Fetch::Auto => self.profile.verify == Proof::ReceiptsRoot,
            Fetch::Logs => false,
        }
    }

    /// How to fetch this many blocks, from what the endpoint offers and the operator allows: the
    /// cheaper way if both would do, and at the same cost receipts, which prove more.
    pub(super) fn way(&self, endpoint: &Endpoint, blocks: usize) -> FetchWay {
        let receipts_of_all = endpoint.units_of(Method::Receipts).saturating_mul(blocks as u64);
        match self.fetch {
            Fetch::Receipts => FetchWay::Receipts,
            Fetch::Logs => FetchWay::Logs,
            Fetch::Auto if self.needs_receipts() => FetchWay::Receipts,
            Fetch::Auto if !endpoint.offers_receipts() => FetchWay::Logs,
            Fetch::Auto if endpoint.units_of(Method::Logs) < receipts_of_all => FetchWay::Logs,
            Fetch::Auto => FetchWay::Receipts,
        }
    }

    pub(super) async fn several(
        &self,
        attempt: &Attempt<'_>,
        headers: &[Header],
    ) -> Result<Vec<FetchedBlock>, NodeError> {
        let follow_each_other =
            headers.windows(2).all(|pair| pair[1].block.number == pair[0].block.number + 1);
        match self.way(attempt.endpoint(), headers.len()) {
            FetchWay::Logs if follow_each_other => {
                let ask = |part| self.range(attempt, part);
                Self::in_parts(attempt, Method::Logs, headers, ask).await
            }
            // A range has no gaps: blocks with gaps were planned as a batch of receipts.
            FetchWay::Logs | FetchWay::Receipts => {
                let ask = |part| self.batch(attempt, part);
                Self::in_parts(attempt, Method::Receipts, headers, ask).await
            }
        }
    }

    /// Fetches blocks by several messages, each for about as many blocks as the endpoint takes at
    /// once; if one was too large, it is repeated in smaller parts.
    ///
    /// # Errors
    /// If none could be fetched. If some could, the others have the error as their outcome.
    async fn in_parts<'a, F>(
        attempt: &Attempt<'_>,
        method: Method,
        headers: &'a [Header],
        ask: impl Fn(&'a [Header]) -> F,
    ) -> Result<Vec<FetchedBlock>, NodeError>
    where
        F: Future<Output = Result<Vec<FetchedBlock>, NodeError>>,
    {
        let mut outcomes = Vec::with_capacity(headers.len());
        let mut rest = headers;
        while !rest.is_empty() {
            let blocks = attempt.endpoint().blocks_at_once(method).min(rest.len());
            let (part, others) = rest.split_at(blocks);
            match ask(part).await {
                Ok(more) => {
                    outcomes.extend(more);
                    rest = others;
                }
                // From now on, the endpoint is asked about fewer blocks at once.
                Err(NodeError::Rpc(error)) if blocks > 1 && error.may_be_of_size() => {}
                Err(error) if outcomes.is_empty() => return Err(error),
                // Keeps the results so far; the rest is requested again.
                Err(error) => {
                    outcomes.extend(rest.iter().map(|_| Err(error.clone())));
                    break;
                }
            }
        }
        Ok(outcomes)
    }

    /// The logs of consecutive blocks, as one range.
    async fn range(
        &self,
        attempt: &Attempt<'_>,
        headers: &[Header],
    ) -> Result<Vec<FetchedBlock>, NodeError> {
        let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
            return Ok(Vec::new());
        };
        let bounds = json!([{
            "fromBlock": Quantity(first.block.number),
            "toBlock": Quantity(last.block.number),
        }]);
        let logs = attempt.call_span::<Vec<Log>>(Method::Logs, headers.len(), &bounds);
        let logs = logs.await?.ok_or(NodeError::Unknown)?;
        let verified = verify::verify_range(&self.profile, headers, logs);
        let verified = verified.map_err(|failure| {
            // It may have been cut short.
            attempt.endpoint().note_batch_too_large(Method::Logs, headers.len());
            check_failed(attempt.endpoint(), failure)
        })?;
        Ok(verified.into_iter().map(Ok).collect())
    }

    /// The receipts of each block, as one batch.
    async fn batch(
        &self,
        attempt: &Attempt<'_>,
        headers: &[Header],
    ) -> Result<Vec<FetchedBlock>, NodeError> {
        let by_number = attempt.endpoint().takes_numbers();
        let params: Vec<_> =
            headers.iter().map(|header| receipts_params(&header.block, by_number)).collect();
        let items = attempt.call_each::<Vec<Receipt>>(Method::Receipts, &params).await?;
        let refused = items.iter().filter(|item| item.is_err()).count();
        if 2 * refused > headers.len() {
            attempt.endpoint().note_batch_too_large(Method::Receipts, headers.len());
        }
        let outcomes = headers.iter().zip(items).map(|(header, item)| match item {
            Ok(Some(receipts)) => {
                let body = Body::Receipts(receipts);
                let verified = self.held_against(attempt.endpoint(), header, body)?;
                // It is requested again, separately.
                if self.is_disputable(&verified) { Err(NodeError::Unknown) } else { Ok(verified) }
            }
            Ok(None) => Err(NodeError::Unknown),
            Err(error) => {
                self.note_lack(attempt.endpoint(), &error);
                Err(error.into())
            }
        });
        Ok(outcomes.collect())
    }

    pub(super) async fn checked(&self, attempt: &Attempt<'_>, header: &Header) -> FetchedBlock {
        let body = self.body(attempt, header).await?;
        self.held_against(attempt.endpoint(), header, body)
    }

    fn held_against(&self, endpoint: &Endpoint, header: &Header, body: Body) -> FetchedBlock {
        let verified = verify::verify(&self.profile, header, body)
            .map_err(|failure| check_failed(endpoint, failure))?;
        if verified.proof == Proof::ReceiptsRoot {
            self.unproven_streak.end();
        }
        Ok(verified)
    }

    /// The logs of one block, in the best way that the endpoint offers.
    async fn body(&self, attempt: &Attempt<'_>, header: &Header) -> Result<Body, NodeError> {
        if self.way(attempt.endpoint(), 1) == FetchWay::Receipts {
            match self.receipts_of(attempt, header).await {
                Err(NodeError::Rpc(error @ RpcError::NotOffered(_))) => {
                    self.note_lack(attempt.endpoint(), &error);
                    if self.needs_receipts() {
                        return Err(error.into());
                    }
                }
                other => return other,
            }
        }
        let params = json!([{ "blockHash": header.block.hash }]);
        match attempt.call_span::<Vec<Log>>(Method::Logs, 1, &params).await {
            // More logs than the provider puts in an answer; for receipts it has no such limit.
            Err(error)
                if error.is_too_large()
                    && self.fetch == Fetch::Auto
                    && attempt.endpoint().offers_receipts() =>
            {
                match self.receipts_of(attempt, header).await {
                    Err(NodeError::Rpc(lack)) => {
                        self.note_lack(attempt.endpoint(), &lack);
                        Err(error.into())
                    }
                    other => other,
                }
            }
            other => other?.map(Body::Logs).ok_or(NodeError::Unknown),
        }
    }

    async fn receipts_of(&self, attempt: &Attempt<'_>, header: &Header) -> Result<Body, NodeError> {
        let ask = async |by_number| {
            let params = receipts_params(&header.block, by_number);
            attempt.call_span::<Vec<Receipt>>(Method::Receipts, 1, &params).await
        };
        let endpoint = attempt.endpoint();
        let mut by_number = endpoint.takes_numbers();
        let mut answer = ask(by_number).await;
        if let Err(RpcError::Answer { code: INVALID_PARAMS, .. }) = answer {
            by_number = !by_number;
            answer = ask(by_number).await;
        }
        if let Ok(Some(receipts)) = &answer {
            // Not if they are of another block, as at the same height of another branch.
            let is_asked = receipts.iter().all(|receipt| receipt.block_hash == header.block.hash);
            endpoint.note_takes_numbers(by_number && is_asked);
        }
        let answer = answer.map_err(|error| match error {
            RpcError::NotOffered(said) => {
                RpcError::NotOffered(format!("{}: {said}", Method::Receipts.name()))
            }
            error => error,
        });
        answer?.map(Body::Receipts).ok_or(NodeError::Unknown)
    }

    fn note_lack(&self, endpoint: &Endpoint, error: &RpcError) {
        if matches!(error, RpcError::NotOffered(_)) && endpoint.offers_receipts() {
            let method = Method::Receipts.name();
            warn!(endpoint = endpoint.metrics.position, method, "method not offered");
            endpoint.note_receipts_refused();
        }
    }
}

/// What to ask for a block's receipts with. Some nodes only accept a number; the hashes in the receipts show which block
/// they are of.
fn receipts_params(block: &BlockRef, by_number: bool) -> serde_json::Value {
    if by_number { json!([Quantity(block.number)]) } else { json!([block.hash]) }
}
