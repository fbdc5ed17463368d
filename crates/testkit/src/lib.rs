//! Dev-only: real redis-server, real dev node, recorded chain data, TCP proxy, the checker.

pub mod anvil;
pub mod campaign;
pub mod canary;
pub mod chain_data;
pub mod checker;
pub mod ingestor;
pub mod node_rpc;
pub mod proxy;
pub mod redis_server;
