//! The breaker of one endpoint, as its requests and its WebSocket share it.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::breaker::Breaker;
use super::{BreakerState, RpcError};
use crate::metrics::EndpointMetrics;

#[derive(Clone)]
pub(super) struct SharedBreaker {
    breaker: Arc<Mutex<Breaker>>,
    metrics: EndpointMetrics,
}

impl SharedBreaker {
    pub(super) fn new(metrics: EndpointMetrics) -> Self {
        Self { breaker: Arc::default(), metrics }
    }

    /// Does `act` with the breaker, and exports and logs the state that it is in afterwards.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaker.state();
        let result = act(&mut breaker);
        let after = breaker.state();
        self.metrics.breaker(after);
        let endpoint = self.metrics.position;
        match after {
            BreakerState::Open if before == BreakerState::Closed => {
                let cause = RpcError::SetAside(breaker.cause());
                warn!(endpoint, %cause, "the endpoint is left alone");
            }
            BreakerState::Closed if before != after => {
                info!(endpoint, "the endpoint is used again")
            }
            _ => {}
        }
        result
    }
}
