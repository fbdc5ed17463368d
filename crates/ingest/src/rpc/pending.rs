//! The requests on a WebSocket that wait for their answers.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Answer, RpcError};

/// Requests that may wait to be sent, and as many that may wait for their answers; further ones are refused.
pub(super) const MAX_PENDING: usize = 256;

/// One call, or a batch of `calls` calls numbered from `id`.
pub(super) struct Command {
    pub(super) id: u64,
    pub(super) calls: u64,
    pub(super) text: String,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// Requests waiting for answers: by the first id, the number of calls and where to send the answer.
#[derive(Default)]
pub(super) struct Pending(BTreeMap<u64, (u64, oneshot::Sender<Answer>)>);

impl Pending {
    /// Whether another request may wait. Those whose callers gave up are dropped for it.
    pub(super) fn has_room(&mut self) -> bool {
        if self.0.len() >= MAX_PENDING {
            self.0.retain(|_, (_, reply)| !reply.is_closed());
        }
        self.0.len() < MAX_PENDING
    }

    pub(super) fn add(&mut self, command: Command) -> String {
        self.0.insert(command.id, (command.calls, command.reply));
        command.text
    }

    /// The request waiting for the answer `id`, alone or in a batch.
    pub(super) fn take(&mut self, id: u64) -> Option<oneshot::Sender<Answer>> {
        let (&first, &(calls, _)) = self.0.range(..=id).next_back()?;
        (id - first < calls).then(|| self.0.remove(&first).map(|(_, reply)| reply))?
    }

    /// The largest waiting batch, of several the first: the refusal of a whole batch has no id, and a refused batch
    /// is usually too large.
    pub(super) fn take_batch(&mut self) -> Option<oneshot::Sender<Answer>> {
        let batches = self.0.iter().filter(|(_, (calls, _))| *calls > 1);
        let first = batches.max_by_key(|(first, (calls, _))| (*calls, Reverse(**first)));
        let first = first.map(|(first, _)| *first)?;
        self.0.remove(&first).map(|(_, reply)| reply)
    }

    /// Nobody will be answered any more.
    pub(super) fn fail(self, error: &RpcError) {
        for (_, reply) in self.0.into_values() {
            reply.send(Err(error.clone())).ok(); // the caller may have given up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_without_a_number_is_of_the_largest_batch() {
        let mut pending = Pending::default();
        let mut ask = |id, calls| {
            let (reply, answer) = oneshot::channel();
            pending.add(Command { id, calls, text: String::new(), reply });
            answer
        };
        let mut asked = [ask(20, 5), ask(30, 1), ask(40, 6), ask(50, 6)];
        let mut told = |pending: &mut Pending| {
            let reply = pending.take_batch()?;
            reply.send(Err(RpcError::Invalid(String::new()))).ok();
            asked.iter_mut().position(|answer| answer.try_recv().is_ok())
        };
        let order: Vec<_> = (0..4).map(|_| told(&mut pending)).collect();
        assert_eq!(order, [Some(2), Some(3), Some(0), None]);
        assert!(pending.take(30).is_some(), "what is no batch is left alone");
    }

    #[test]
    fn g7_only_requests_that_somebody_waits_for_fill_the_queue() {
        let mut pending = Pending::default();
        let mut waiting = Vec::new();
        for id in 0..MAX_PENDING as u64 {
            assert!(pending.has_room(), "{id}");
            let (reply, answer) = oneshot::channel();
            pending.add(Command { id, calls: 1, text: String::new(), reply });
            waiting.push(answer);
        }
        assert!(!pending.has_room());
        waiting.truncate(100);
        assert!(pending.has_room());
        assert_eq!(pending.0.len(), 100);
    }
}
