//! Parses bytes from a node, before any check: the functions that endpoints use, exposed for tests
//! that pass them arbitrary bytes (`fuzz/`). Errors are in the form in which they are logged.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::config::EndpointConfig;
use crate::rpc::{self, Frame, Head, Redaction};

/// The result in the answer `body` to request `id`; none for `null`.
///
/// # Errors
/// The error in it, or why it is not an answer to this request.
pub fn answer<T: DeserializeOwned>(body: &[u8], id: u64) -> Result<Option<T>, String> {
    read(body, |text| rpc::decode(text, id))
}

/// The height of the head in a WebSocket's frame; none if it contains no head.
///
/// # Errors
/// Why it cannot be parsed.
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

/// What the endpoint `config` said, in the form in which it is logged: without the keys in its
/// addresses, and without any URL (G11).
#[must_use]
pub fn redacted(config: &EndpointConfig, said: &str) -> String {
    Redaction::of(config).clean(said.to_owned())
}
