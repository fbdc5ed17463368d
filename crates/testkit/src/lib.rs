//! Dev-only: real redis-server (alone, under Sentinel, in a Cluster), real dev node, recorded chain
//! data, TCP proxy, the checker.

pub mod anvil;
pub mod campaign;
pub mod canary;
pub mod certificates;
pub mod chain_data;
pub mod checker;
pub mod cluster;
pub mod daemon;
mod entry;
pub mod guide;
pub mod ingestor;
pub mod node_rpc;
pub mod prometheus_server;
pub mod proxy;
pub mod redis_server;
pub mod replication;
pub mod sentinel;
