//! Every promise of this crate, tested against a real redis-server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and says what it shows by its name"
)]

mod chain;
mod encoding;
mod fault;
mod forms;
mod gone;
mod lease;
mod model;
mod orders;
mod pipeline;
mod preflight;
mod quiet;
mod reader;
mod retention;
mod rights;
mod step;
mod transaction;
