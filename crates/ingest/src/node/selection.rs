//! Which endpoint is asked, and when another as well.
//!
//! Endpoints are asked in the order of the configuration, much slower ones last. If one fails, lags, gives a false
//! answer or is slower than usual, the next is asked.

use std::future::Future;
use std::time::Duration;

use futures_util::future::select_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use super::{LIAR_WAIT, Node, NodeError};
use crate::rpc::{Attempt, Endpoint, REQUEST_TIMEOUT};

/// An endpoint slower than the fastest by this factor plus `NOTICEABLE` loses its place in the
/// order.
const MUCH_SLOWER: u32 = 2;
const NOTICEABLE: Duration = Duration::from_millis(10);

/// The least wait before the next endpoint is asked as well.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
/// The same for several blocks: such an answer takes time.
pub(super) const SPAN_PATIENCE: Duration = Duration::from_secs(5);

/// How much is asked for at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// One block, or less.
    OneBlock,
    /// Several blocks.
    Blocks,
}

impl Request {
    fn least_patience(self) -> Duration {
        match self {
            Self::OneBlock => LEAST_PATIENCE,
            Self::Blocks => SPAN_PATIENCE,
        }
    }
}

impl Node {
    /// The answer of the best endpoint that has one, about one block. The next endpoint is asked if
    /// one fails, and in addition (a hedge) if one takes longer than usual and than the least
    /// patience. Time during which our own rate limit holds a request back does not count.
    ///
    /// An endpoint that failed a check is set aside only if another passed it: if every one fails
    /// the same check, the check is suspect, and the chain waits (G6).
    pub(super) async fn first<'a, T, F>(
        &'a self,
        ask: impl Fn(Attempt<'a>) -> F,
    ) -> Result<T, NodeError>
    where
        F: Future<Output = Result<T, NodeError>> + 'a,
    {
        let order = self.by_preference();
        self.first_to_have(order, Request::OneBlock, ask).await.map(|(answer, _)| answer)
    }

    /// As [`Node::first`], for any request and of endpoints in a certain order; also those that answered before, and do
    /// not have it.
    pub(super) async fn first_to_have<'a, T, F>(
        &'a self,
        order: Vec<&'a Endpoint>,
        request: Request,
        ask: impl Fn(Attempt<'a>) -> F,
    ) -> Result<(T, Vec<&'a Endpoint>), NodeError>
    where
        F: Future<Output = Result<T, NodeError>> + 'a,
    {
        let mut rest = order.into_iter();
        // Polling these few is cheaper than `FuturesUnordered`, which wakes its task once more for each that has no
        // answer yet.
        let mut running = Vec::new();
        // The attempt whose answer is awaited before the next endpoint is asked; none to ask it at
        // once.
        let mut newest: Option<Attempt<'_>> = None;
        let patience =
            |attempt: &Attempt<'_>| attempt.endpoint().patience().max(request.least_patience());
        let (mut liars, mut lacking) = (Vec::new(), Vec::new());
        let mut failures = Vec::new();
        loop {
            if newest.is_none()
                && let Some(endpoint) = rest.next()
            {
                let attempt = newest.insert(Attempt::with(endpoint)).clone();
                running.push(Box::pin(ask(attempt).map(move |answer| (endpoint, answer))));
            }
            if running.is_empty() {
                return Err(NodeError::most_telling(failures));
            }
            let left =
                newest.as_ref().map_or(REQUEST_TIMEOUT, |newest| newest.left_of(patience(newest)));
            tokio::select! {
                biased;
                ((endpoint, answer), position, _) = select_all(&mut running) => match answer {
                    Ok(answer) => {
                        set_aside(&liars);
                        return Ok((answer, lacking));
                    }
                    Err(error) => {
                        drop(running.swap_remove(position));
                        newest.take_if(|newest| std::ptr::eq(newest.endpoint(), endpoint));
                        if error.is_lie() {
                            liars.push(endpoint);
                        } else if error.is_lack() {
                            lacking.push(endpoint);
                        }
                        failures.push(error);
                    }
                },
                () = tokio::time::sleep(left), if rest.len() > 0 => {
                    let slow = newest.take_if(|newest| newest.left_of(patience(newest)).is_zero());
                    if let Some(slow) = slow {
                        slow.endpoint().note_slow(patience(&slow));
                        // The time for several blocks says nothing about when an answer about one
                        // is late.
                        if request == Request::OneBlock {
                            slow.endpoint().note_latency(patience(&slow));
                        }
                    }
                }
            }
        }
    }

    /// The endpoints in the configured order, except that those much slower than the fastest come
    /// later, then those that lack what others have, and those that are set aside last.
    pub(super) fn by_preference(&self) -> Vec<&Endpoint> {
        let medians: Vec<_> = self.endpoints.iter().map(Endpoint::usual_latency).collect();
        let fastest = medians.iter().flatten().min().copied().unwrap_or_default();
        let too_slow = MUCH_SLOWER * fastest + NOTICEABLE;
        let mut order: Vec<_> = self.endpoints.iter().zip(medians).collect();
        order.sort_by_key(|(endpoint, median)| {
            let is_slow = median.is_some_and(|median| median > too_slow);
            (endpoint.is_set_aside(), endpoint.is_lacking(), is_slow) // stable
        });
        order.into_iter().map(|(endpoint, _)| endpoint).collect()
    }

    /// The order for what any endpoint may give, whichever branch it follows: by preference, but those where a message
    /// would have to wait, because they accept no more now, after those where it would not.
    pub(super) fn by_wait(&self) -> Vec<&Endpoint> {
        let mut order = self.by_preference();
        order.sort_by_cached_key(|endpoint| {
            let wait = Some(endpoint.wait()).filter(|wait| *wait > NOTICEABLE);
            (endpoint.is_set_aside(), endpoint.is_lacking(), wait)
        });
        order
    }

    /// The order for the contents of blocks: by wait, but those that refused receipts lately last, where there is
    /// no other way.
    pub(super) fn for_contents(&self) -> Vec<&Endpoint> {
        let mut order = self.by_wait();
        if self.needs_receipts() {
            order.sort_by_cached_key(|endpoint| {
                (endpoint.is_set_aside(), !endpoint.offers_receipts())
            });
        }
        order
    }

    /// The answers of all endpoints that have one, in the order of the configuration, and the failures of the others.
    /// Once one endpoint has answered, each further answer is awaited for `grace`, if that is given.
    pub(super) async fn each<'a, T, F>(
        &'a self,
        grace: Option<Duration>,
        ask: impl Fn(Attempt<'a>) -> F,
    ) -> (Vec<(&'a Endpoint, T)>, Vec<NodeError>)
    where
        F: Future<Output = Result<T, NodeError>> + 'a,
    {
        let asked = |endpoint| ask(Attempt::with(endpoint)).map(move |answer| (endpoint, answer));
        let mut answers: FuturesUnordered<_> = self.endpoints.iter().map(asked).collect();
        let (mut told, mut liars, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((endpoint, answer)) = match grace.filter(|_| !told.is_empty()) {
            None => answers.next().await,
            Some(grace) => timeout(grace, answers.next()).await.ok().flatten(),
        } {
            match answer {
                Ok(answer) => told.push((endpoint, answer)),
                Err(error) => {
                    liars.extend(error.is_lie().then_some(endpoint));
                    failures.push(error);
                }
            }
        }
        if !told.is_empty() {
            set_aside(&liars);
        }
        told.sort_by_key(|(endpoint, _)| endpoint.metrics.position);
        (told, failures)
    }
}

/// Endpoints that failed a check which another passed.
fn set_aside(liars: &[&Endpoint]) {
    liars.iter().for_each(|liar| liar.set_aside(LIAR_WAIT, None));
}
