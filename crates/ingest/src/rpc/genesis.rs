//! The genesis block by which a chain's endpoints are told from those of another chain under the same id.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy_primitives::B256;

use super::RpcError;

/// Hash of the chain's block 0, shared by its endpoints; none until the cursor or the first endpoint tells it.
#[derive(Clone, Default)]
pub(crate) struct Genesis(Arc<Mutex<Option<B256>>>);

impl Genesis {
    /// Sets what the endpoints must have; none accepts that of the first one asked. Returns whether it changed.
    pub(crate) fn expect(&self, hash: Option<B256>) -> bool {
        std::mem::replace(&mut *self.lock(), hash) != hash
    }

    /// The hash, if it is known.
    pub(crate) fn known(&self) -> Option<B256> {
        *self.lock()
    }

    /// Checks an endpoint's.
    pub(super) fn check(&self, got: B256) -> Result<(), RpcError> {
        match *self.lock().get_or_insert(got) {
            wanted if wanted == got => Ok(()),
            wanted => Err(RpcError::WrongGenesis { wanted, got }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<B256>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
