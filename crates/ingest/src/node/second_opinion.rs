//! What one endpoint's answer does not prove is compared with another's (ADR 5).
//!
//! An empty answer proves nothing where the header does not say so, and receipts of another root than the
//! header's may be altered. An endpoint that lacks what others have, time after time, is asked last.

use std::time::Duration;

use ethhook_domain::verify::{Check, Failure, Verified};
use ethhook_domain::{Header, Proof};
use tokio::time::timeout;
use tracing::warn;

use super::blocks::FetchedBlock;
use super::selection::SPAN_PATIENCE;
use super::{Node, NodeError, OTHERS_PATIENCE, distrust};
use crate::rpc::{Attempt, Endpoint};

/// Wait before asking an endpoint again about blocks that it says are empty.
const SECOND_ASKING: Duration = Duration::from_millis(500);
/// After so many undisputed blocks in a row, others with such receipts are not asked for twice for a while.
const ENOUGH_UNDISPUTED: u32 = 16;
const UNDISPUTED_REMEMBERED: Duration = Duration::from_secs(600);

impl Node {
    /// The logs of `header`'s block, and the endpoint that has them: `answerer`, unless it says without proof that there
    /// are none, and another has some.
    pub(super) async fn confirmed<'a>(
        &'a self,
        mut answerer: &'a Endpoint,
        header: &Header,
        mut verified: Verified,
    ) -> Result<(&'a Endpoint, Verified), NodeError> {
        if is_unproven(&verified) {
            let (other, second) = match self.opinion_of_another(answerer, header).await {
                Some(theirs) => theirs,
                None => {
                    tokio::time::sleep(SECOND_ASKING).await;
                    (answerer, self.checked(&Attempt::with(answerer), header).await?)
                }
            };
            if !second.logs.is_empty() {
                (answerer, verified) = (other, second);
            }
        }
        if self.is_disputable(&verified) {
            verified = self.settle_dispute(answerer, header, verified).await?;
        }
        Ok((answerer, verified))
    }

    /// Of several blocks, confirms those that `answerer` says are empty; one that is not becomes an error.
    ///
    /// # Errors
    /// If there is no second answer.
    pub(super) async fn confirm_several(
        &self,
        answerer: &Endpoint,
        headers: &[Header],
        outcomes: &mut [FetchedBlock],
    ) -> Result<(), NodeError> {
        let unproven = |outcome: &FetchedBlock| outcome.as_ref().is_ok_and(is_unproven);
        if !outcomes.iter().any(unproven) {
            return Ok(());
        }
        let again = self.several_again(answerer, headers).await?;
        for (outcome, again) in outcomes.iter_mut().zip(again) {
            if unproven(outcome) && !again.is_ok_and(|again| again.logs.is_empty()) {
                *outcome = Err(NodeError::Unknown);
            }
        }
        Ok(())
    }

    /// Whether another endpoint should be asked for the receipts, because their root is not the header's. If that is so
    /// of block after block, and nobody has others, it is probably the chain's way to encode receipts.
    pub(super) fn is_disputable(&self, verified: &Verified) -> bool {
        verified.root_differs && !self.unproven_streak.has(ENOUGH_UNDISPUTED, UNDISPUTED_REMEMBERED)
    }

    /// The block as the receipts root proves it, if another endpoint has it so; else as `answerer` gave it, unless
    /// another contradicts that without proof.
    async fn settle_dispute(
        &self,
        answerer: &Endpoint,
        header: &Header,
        verified: Verified,
    ) -> FetchedBlock {
        let differ = || Failure {
            check: Check::ReceiptsRoot,
            detail: format!("another endpoint has other receipts of {}", header.block),
        };
        match self.opinion_of_another(answerer, header).await {
            Some((_, theirs)) if theirs.proof == Proof::ReceiptsRoot => {
                distrust(answerer, differ());
                return Ok(theirs);
            }
            Some((_, theirs)) if theirs.logs != verified.logs => return Err(differ().into()),
            _ => {}
        }
        self.unproven_streak.note();
        warn!(
            endpoint = answerer.metrics.position,
            block = %header.block,
            proof = verified.proof.as_str(),
            "the receipts' root is not the header's, and no endpoint proves other receipts: published with a weaker proof"
        );
        Ok(verified)
    }

    /// The first other endpoint that answers in time, and the block as it has it; none if none does.
    async fn opinion_of_another<'a>(
        &'a self,
        answerer: &'a Endpoint,
        header: &Header,
    ) -> Option<(&'a Endpoint, Verified)> {
        for other in self.others(answerer) {
            let attempt = Attempt::with(other);
            let asked = timeout(OTHERS_PATIENCE, self.checked(&attempt, header)).await;
            if let Ok(Ok(verified)) = asked {
                return Some((other, verified));
            }
        }
        None
    }

    /// Several blocks as another endpoint has them, or the same one now.
    async fn several_again(
        &self,
        answerer: &Endpoint,
        headers: &[Header],
    ) -> Result<Vec<FetchedBlock>, NodeError> {
        for other in self.others(answerer) {
            let attempt = Attempt::with(other);
            let asked = timeout(SPAN_PATIENCE, self.several(&attempt, headers)).await;
            if let Ok(Ok(outcomes)) = asked {
                return Ok(outcomes);
            }
        }
        tokio::time::sleep(SECOND_ASKING).await;
        self.several(&Attempt::with(answerer), headers).await
    }

    fn others<'a>(&'a self, answerer: &'a Endpoint) -> impl Iterator<Item = &'a Endpoint> {
        self.endpoints.iter().filter(move |other| !std::ptr::eq(*other, answerer))
    }
}

/// Whether the block is empty according to an answer, without proof.
fn is_unproven(verified: &Verified) -> bool {
    verified.logs.is_empty() && verified.proof != Proof::ReceiptsRoot
}

/// Notes that some endpoints lack logs that `answerer` has.
pub(super) fn note_lacks(answerer: &Endpoint, lacking: &[&Endpoint]) {
    answerer.note_logs_given();
    lacking.iter().for_each(|endpoint| endpoint.note_logs_missing());
}

#[cfg(test)]
mod tests {
    use ethhook_simulator::{Chain, Fault, RunningNode};

    use super::*;
    use crate::config::{ChainConfig, EndpointConfig, Fetch};
    use crate::rpc::{MANY_LACKS, Method};
    use crate::testing::{mined, serve, unread};

    const RECEIPTS: &str = Method::Receipts.name();

    #[tokio::test]
    async fn g6_receipts_of_another_root_are_held_against_another_endpoint() {
        let (views, nodes) = two_views(40).await;
        let node_of = |nodes: &[RunningNode]| {
            let mut config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
            (config.fetch, config.profile.verify) = (Fetch::Receipts, Proof::Bloom);
            let (heads, metrics) = unread();
            Node::new(&config, &heads, &metrics).0
        };
        let alter = |view: usize| {
            views[view].faults().push(RECEIPTS, Fault::AlterLog, 1_000);
        };
        let proofs = async |node: &Node, headers: &[Header]| {
            let mut proofs = Vec::new();
            for header in headers {
                proofs.push(node.block(header).await.map(|verified| verified.proof).ok());
            }
            proofs
        };
        let both = node_of(&nodes);
        let mut headers = Vec::new();
        while headers.len() < 20 {
            headers.extend(both.by_numbers(headers.len() as u64 + 1..=40).await.unwrap());
        }
        alter(0);
        assert_eq!(proofs(&both, &headers[..1]).await, [Some(Proof::ReceiptsRoot)]);
        assert!(both.endpoints[0].is_set_aside());
        // Several at once: the other is asked for them.
        let both = node_of(&nodes);
        let several = both.blocks(&headers[..3]).await.unwrap();
        assert!(several.iter().all(|o| o.as_ref().unwrap().proof == Proof::ReceiptsRoot));
        // Where no other answers, or all say the same, the bloom is proof enough, as the operator wants it.
        views[1].faults().push(RECEIPTS, Fault::Null, 1);
        assert_eq!(proofs(&both, &headers[..1]).await, [Some(Proof::Bloom)]);
        alter(1);
        views.iter().for_each(|view| view.stats().reset());
        let enough = ENOUGH_UNDISPUTED as usize;
        assert_eq!(proofs(&both, &headers[..20]).await, [Some(Proof::Bloom); 20]);
        let asked = views.each_ref().map(|view| view.stats().requests(RECEIPTS));
        assert_eq!(asked, [20, enough as u64 - 1]);
        // Later, and after a block that is proven, another is asked again.
        both.unproven_streak.age(UNDISPUTED_REMEMBERED);
        let asks = async |header: &Header| {
            views[1].stats().reset();
            both.block(header).await.unwrap();
            views[1].stats().requests(RECEIPTS)
        };
        assert_eq!((asks(&headers[0]).await, asks(&headers[0]).await), (1, 0));
        views.iter().for_each(|view| view.faults().clear());
        assert_eq!(asks(&headers[0]).await, 0);
        alter(0);
        assert_eq!(asks(&headers[0]).await, 1);
    }

    #[tokio::test]
    async fn g6_where_two_differ_and_neither_proves_its_logs_nothing_is_published() {
        let (views, nodes) = two_views(1).await;
        let mut config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
        config.profile.verify = Proof::Bloom;
        let (heads, metrics) = unread();
        let (node, _) = Node::new(&config, &heads, &metrics);
        let header = node.by_numbers(1..=1).await.unwrap().remove(0);
        views[0].faults().push(RECEIPTS, Fault::AlterLog, 1);
        // Logs without receipts prove no root.
        views[1].faults().push(RECEIPTS, Fault::Error(-32601, "no such method".into()), 1);
        let why = node.block(&header).await.unwrap_err().to_string();
        assert!(why.contains("another endpoint has other receipts"), "{why}");
        assert!(node.endpoints.iter().all(|endpoint| !endpoint.is_set_aside()));
    }

    #[tokio::test]
    async fn one_that_lacks_what_another_has_time_after_time_is_asked_last() {
        let (views, nodes) = two_views(3).await;
        let config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
        for (fault, lacks) in [
            (Fault::Null, true),
            (Fault::Empty, true),
            (Fault::Error(-32000, "over quota".into()), true),
            (Fault::Html, false), // it may have it
            (Fault::Delay(Duration::ZERO), false),
        ] {
            let (heads, metrics) = unread();
            let (node, _) = Node::new(&config, &heads, &metrics);
            let header = node.by_numbers(1..=1).await.unwrap().remove(0);
            let ask = async |times: u32, fault: &Fault| {
                for _ in 0..times {
                    views[0].faults().push(RECEIPTS, fault.clone(), 1);
                    assert_eq!(node.block(&header).await.unwrap().proof, Proof::ReceiptsRoot);
                    node.by_hash(header.block.hash).await.unwrap(); // ends what its breaker counts
                }
                assert!(!node.endpoints[0].is_set_aside());
                !std::ptr::eq(node.by_preference()[0], &raw const node.endpoints[0])
            };
            assert!(!ask(MANY_LACKS - 1, &fault).await, "{fault:?}");
            assert!(!ask(1, &Fault::Delay(Duration::ZERO)).await, "it has one");
            assert!(!ask(MANY_LACKS - 1, &fault).await, "{fault:?}");
            assert_eq!(ask(1, &fault).await, lacks, "{fault:?}");
            // It is still there if the other fails.
            views[0].faults().clear();
            views[1].faults().push(RECEIPTS, Fault::Null, 1);
            assert!(node.block(&header).await.is_ok(), "{fault:?}");
            views[1].faults().clear();
        }
    }

    #[tokio::test]
    async fn one_that_says_empty_where_another_has_logs_stops_nothing_and_is_asked_last() {
        let (views, nodes) = two_views(3).await;
        let mut config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
        (config.fetch, config.profile.verify) = (Fetch::Logs, Proof::Structure);
        let (heads, metrics) = unread();
        let (node, _) = Node::new(&config, &heads, &metrics);
        let header = node.by_numbers(1..=1).await.unwrap().remove(0);
        views[0].faults().push(Method::Logs.name(), Fault::Empty, 1_000);
        for _ in 0..MANY_LACKS {
            assert!(std::ptr::eq(node.by_preference()[0], &raw const node.endpoints[0]));
            assert!(!node.block(&header).await.unwrap().logs.is_empty());
        }
        assert!(std::ptr::eq(node.by_preference()[0], &raw const node.endpoints[1]));
    }

    /// A chain of so many blocks behind two endpoints.
    async fn two_views(blocks: u64) -> ([Chain; 2], [RunningNode; 2]) {
        let chain = mined(blocks);
        let views: [Chain; 2] = [chain.clone().into(), chain.view()];
        let nodes = [serve(views[0].clone()).await, serve(views[1].clone()).await];
        (views, nodes)
    }
}
