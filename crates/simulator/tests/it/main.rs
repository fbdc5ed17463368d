//! The node over its real socket: answers, announcements, faults on request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod answers;
mod blocks;
mod branches;
mod client;
mod faults;
mod heads;
mod providers;
mod recorded;
mod transport;
