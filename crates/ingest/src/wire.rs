//! What bytes from a node are read as, before anything is believed: the very readers that endpoints
//! use, for tests that feed them bytes of their own making (`fuzz/`). Errors are as they are logged.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::config::EndpointConfig;
use crate::rpc::{self, Frame, Head, Redaction};

/// The result in the answer `body` to request `id`; none for `null`.
///
/// # Errors
/// The error in it, or why it is no answer to this request.
pub fn answer<T: DeserializeOwned>(body: &[u8], id: u64) -> Result<Option<T>, String> {
    read(body, |text| rpc::decode(text, id))
}

/// The height of the head that a WebSocket's frame tells of; none if it tells of none.
///
/// # Errors
/// Why it cannot be read.
pub fn head(frame: &[u8]) -> Result<Option<u64>, String> {
    Ok(match read(frame, rpc::read_frame)? {
        Frame::Head(Head::Header(header)) => Some(header.block.number),
        Frame::Head(Head::Number(number)) => Some(number),
        _ => None,
    })
}

fn read<T>(bytes: &[u8], read: impl FnOnce(&str) -> Result<T, rpc::RpcError>) -> Result<T, String> {
    let text = rpc::text(Bytes::copy_from_slice(bytes));
    text.and_then(|text| read(&text)).map_err(|error| error.to_string())
}

/// What the endpoint `config` said, as it is logged: without the keys in its addresses, and without
/// any URL (G11).
#[must_use]
pub fn redacted(config: &EndpointConfig, said: &str) -> String {
    Redaction::of(config).clean(said.to_owned())
}
