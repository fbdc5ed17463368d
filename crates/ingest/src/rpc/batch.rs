//! Several calls of one method in one message: an array of requests, and an array of answers in any
//! order (JSON-RPC 2.0, section 6).

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use super::{Request, Response, RpcError, parse};

/// The result of one call of a batch.
pub(crate) type Item<T> = Result<Option<T>, RpcError>;

/// An item and its id.
type Answered<T> = (Option<u64>, Item<T>);

/// The calls as JSON, with ids counting up from `first_id`.
pub(super) fn encode(
    first_id: u64,
    method: &str,
    params: &[impl Serialize],
) -> Result<String, RpcError> {
    let calls: Vec<_> = (first_id..)
        .zip(params)
        .map(|(id, params)| Request { jsonrpc: "2.0", id, method, params })
        .collect();
    serde_json::to_string(&calls).map_err(|error| RpcError::Invalid(error.to_string()))
}

/// The results in the order of the calls.
///
/// # Errors
/// If the batch was refused as a whole, or the answer is not one.
pub(super) fn decode<T: DeserializeOwned>(
    body: &str,
    first_id: u64,
    calls: usize,
) -> Result<Vec<Item<T>>, RpcError> {
    if !body.trim_ascii_start().starts_with('[') {
        let refusal: Response<IgnoredAny> = parse(body)?;
        let error = refusal.into_result().err();
        return Err(error.unwrap_or_else(|| RpcError::Invalid("a single answer to a batch".into())));
    }
    let unanswered = || Err(RpcError::Invalid("a call of the batch was not answered".into()));
    let mut items: Vec<Item<T>> = (0..calls).map(|_| unanswered()).collect();
    for (id, answer) in answers(body)? {
        let position = id.and_then(|id| id.checked_sub(first_id));
        let position = position.and_then(|position| usize::try_from(position).ok());
        let Some(item) = position.and_then(|position| items.get_mut(position)) else {
            return Err(RpcError::Invalid("an answer to a call that is not in the batch".into()));
        };
        *item = answer;
    }
    Ok(items)
}

/// The answers in their order of arrival: parsed in one pass if each has the expected shape,
/// otherwise one by one.
fn answers<T: DeserializeOwned>(body: &str) -> Result<Vec<Answered<T>>, RpcError> {
    if let Ok(responses) = parse::<Vec<Response<T>>>(body) {
        return Ok(responses.into_iter().map(|r| (r.id, r.into_result())).collect());
    }
    let read = |response: Response<Box<RawValue>>| {
        let (id, raw) = (response.id, response.into_result());
        (id, raw.and_then(|raw| raw.map(|raw| parse(raw.get())).transpose()))
    };
    Ok(parse::<Vec<_>>(body)?.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(body: &str) -> Result<Vec<Item<u64>>, RpcError> {
        decode(body, 20, 3)
    }

    #[test]
    fn answers_are_put_in_the_order_of_the_calls() {
        let items = decoded(
            r#" [{"id":22,"result":9},{"id":20,"result":7},{"id":21,"error":{"code":-32000,"message":"no"}}]"#,
        )
        .unwrap();
        assert!(matches!(items[0], Ok(Some(7))));
        assert!(matches!(items[1], Err(RpcError::Answer { code: -32000, .. })));
        assert!(matches!(items[2], Ok(Some(9))));
    }

    #[test]
    fn one_of_another_shape_spoils_no_other() {
        let items =
            decoded(r#"[{"id":20,"result":7},{"id":21,"result":"x"},{"id":22,"result":null}]"#)
                .unwrap();
        assert!(matches!(items[0], Ok(Some(7))));
        assert!(matches!(items[1], Err(RpcError::Invalid(_))));
        assert!(matches!(items[2], Ok(None)));
    }

    #[test]
    fn what_is_missing_foreign_or_refused_is_an_error() {
        let items = decoded(r#"[{"id":20,"result":null}]"#).unwrap();
        assert!(matches!(items[0], Ok(None)));
        assert!(matches!(items[1], Err(RpcError::Invalid(_))));
        let refused =
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch too large"}}"#;
        assert!(matches!(decoded(refused), Err(RpcError::Answer { code: -32600, .. })));
        for wrong in
            [r#"[{"id":19,"result":1}]"#, r#"[{"id":23,"result":1}]"#, "[7]", "{}", "[", ""]
        {
            assert!(matches!(decoded(wrong), Err(RpcError::Invalid(_))), "{wrong}");
        }
    }

    #[test]
    fn calls_are_numbered_in_their_order() {
        let text = encode(5, "m", &[[1], [2]]).unwrap();
        let expected = r#"[{"jsonrpc":"2.0","id":5,"method":"m","params":[1]},{"jsonrpc":"2.0","id":6,"method":"m","params":[2]}]"#;
        assert_eq!(text, expected);
    }
}
