//! The real binary between a real Redis and a real node, under faults. After each fault the checker
//! folds the stream and compares it with the node's canonical chain (the fold test of
//! ARCHITECTURE.md).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod alertmanager;
mod anvil;
mod bounds;
mod encoding;
mod end_block;
mod endpoints;
mod examples;
mod fetching;
mod interrupted;
mod monitoring;
mod operator;
mod page;
mod recorded;
mod redis_forms;
mod replay;
mod rig;
mod several;
mod simulated;
mod status;
mod tail;
mod verify;
