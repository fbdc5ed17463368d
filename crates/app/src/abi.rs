//! Events known by name: those of ERC-20, ERC-721 and ERC-1155, and those in ABI files.

use std::collections::HashMap;
use std::path::Path;

use alloy_dyn_abi::{DynSolEvent, DynSolValue, Specifier};
use alloy_json_abi::{Event, JsonAbi};
use alloy_primitives::{B256, hex};
use anyhow::Context;
use ethhook_domain::ProcessedEvent;
use serde_json::{Map, Value, json};

/// EIP-20, EIP-721 and EIP-1155. Two events of the first two standards have the same signature, and
/// so the same first topic; which parameters are indexed tells them apart.
const BUILT_IN: [&str; 8] = [
    "event Transfer(address indexed from, address indexed to, uint256 value)",
    "event Approval(address indexed owner, address indexed spender, uint256 value)",
    "event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)",
    "event Approval(address indexed owner, address indexed approved, uint256 indexed tokenId)",
    "event ApprovalForAll(address indexed owner, address indexed operator, bool approved)",
    "event TransferSingle(address indexed operator, address indexed from, address indexed to, uint256 id, uint256 value)",
    "event TransferBatch(address indexed operator, address indexed from, address indexed to, uint256[] ids, uint256[] values)",
    "event URI(string value, uint256 indexed id)",
];

/// One event that can be decoded.
#[derive(Debug)]
struct Known {
    event: Event,
    decoder: DynSolEvent,
}

/// All known events by first topic.
#[derive(Debug, Default)]
pub(crate) struct Abis(HashMap<B256, Vec<Known>>);

/// A decoded log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) name: String,
    /// `Transfer(address,address,uint256)`.
    pub(crate) signature: String,
    /// By parameter name, or by position for unnamed parameters.
    pub(crate) arguments: Map<String, Value>,
}

impl Abis {
    /// The events of `files`, followed by the built-in ones.
    ///
    /// # Errors
    /// If a file cannot be read, or is not an ABI.
    pub(crate) fn with_files(files: &[impl AsRef<Path>]) -> anyhow::Result<Self> {
        let mut abis = Self::default();
        for file in files {
            let file = file.as_ref();
            let shown = file.display();
            let text = std::fs::read_to_string(file).with_context(|| format!("{shown}"))?;
            let abi = read(&text).with_context(|| format!("{shown} is not an ABI"))?;
            for event in abi.events() {
                abis.add(event.clone()).with_context(|| format!("{shown}: {}", event.name))?;
            }
        }
        for declaration in BUILT_IN {
            abis.add(Event::parse(declaration)?)?;
        }
        Ok(abis)
    }

    /// Adds an event, unless it is anonymous: it then has no topic to identify it.
    fn add(&mut self, event: Event) -> anyhow::Result<()> {
        if !event.anonymous {
            let decoder = event.resolve()?;
            self.0.entry(event.selector()).or_default().push(Known { event, decoder });
        }
        Ok(())
    }

    /// The first topics of the events called `name`; for a signature, its topic, whether known or
    /// not.
    ///
    /// # Errors
    /// If no known event has this name, or the signature is not one.
    pub(crate) fn topics(&self, name: &str) -> anyhow::Result<Vec<B256>> {
        if name.contains('(') {
            // `uint` is short for `uint256`, so that the text itself would not do.
            let event = Event::parse(name).ok().filter(|event| event.resolve().is_ok());
            let event = event.with_context(|| {
                format!("{name} is not a signature, such as 'Deposit(address,uint256)'")
            })?;
            return Ok(vec![event.selector()]);
        }
        let known = self.0.iter().filter(|(_, known)| known.iter().any(|k| k.event.name == name));
        let topics: Vec<_> = known.map(|(topic, _)| *topic).collect();
        if topics.is_empty() {
            let names = self.0.values().flatten().map(|known| known.event.name.as_str());
            let names: std::collections::BTreeSet<_> = names.collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            anyhow::bail!(
                "no event {name} is known; there are {names}: give --abi FILE, or the signature, such as \
                 'Deposit(address,uint256)'"
            );
        }
        Ok(topics)
    }

    /// Decodes an event, if it is known; if several definitions share its topic, the first that
    /// fits is used.
    pub(crate) fn decode(&self, event: &ProcessedEvent) -> Option<Decoded> {
        let known = self.0.get(event.topics.first()?)?;
        known.iter().find_map(|known| known.decode(event))
    }
}

impl Known {
    fn decode(&self, event: &ProcessedEvent) -> Option<Decoded> {
        if self.decoder.indexed().len() + 1 != event.topics.len() {
            return None;
        }
        let topics = event.topics.iter().copied();
        let values = self.decoder.decode_log_parts(topics, &event.data).ok()?;
        let (mut indexed, mut body) = (values.indexed.into_iter(), values.body.into_iter());
        let mut arguments = Map::new();
        for (position, input) in self.event.inputs.iter().enumerate() {
            let value = if input.indexed { indexed.next()? } else { body.next()? };
            let name = match input.name.as_str() {
                "" => position.to_string(),
                name => name.to_owned(),
            };
            arguments.insert(name, shown(value));
        }
        let (name, signature) = (self.event.name.clone(), self.event.signature());
        Some(Decoded { name, signature, arguments })
    }
}

/// Parses an array of items, or a compiler artifact that has it under `abi`.
fn read(text: &str) -> Result<JsonAbi, serde_json::Error> {
    let mut value: Value = serde_json::from_str(text)?;
    if let Some(abi) = value.get_mut("abi") {
        value = abi.take();
    }
    serde_json::from_value(value)
}

/// Numbers become decimal text, because JSON numbers are exact only up to 2^53; bytes and addresses
/// become hex.
fn shown(value: DynSolValue) -> Value {
    match value {
        DynSolValue::Bool(flag) => json!(flag),
        DynSolValue::Int(number, _) => json!(number.to_string()),
        DynSolValue::Uint(number, _) => json!(number.to_string()),
        DynSolValue::FixedBytes(word, size) => json!(hex::encode_prefixed(&word[..size])),
        DynSolValue::Address(address) => json!(hex::encode_prefixed(address)),
        DynSolValue::Function(function) => json!(hex::encode_prefixed(function)),
        DynSolValue::Bytes(bytes) => json!(hex::encode_prefixed(bytes)),
        DynSolValue::String(text) => json!(text),
        DynSolValue::Array(values)
        | DynSolValue::FixedArray(values)
        | DynSolValue::Tuple(values) => values.into_iter().map(shown).collect(),
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;

    use super::*;

    #[test]
    fn a_signature_is_read_as_solidity_and_what_is_none_is_refused() {
        let abis = Abis::with_files(&[] as &[&str]).unwrap();
        let topic = |signature| vec![keccak256(signature)];
        for signature in
            ["Deposit(address,uint256)", "Deposit(address, uint)", "Deposit( address,uint )"]
        {
            assert_eq!(abis.topics(signature).unwrap(), topic("Deposit(address,uint256)"));
        }
        let nested = "Filled((address,uint256)[],bytes)";
        assert_eq!(abis.topics(nested).unwrap(), topic(nested));
        for wrong in ["Bad(uint", "Bad(nothing)", "(uint256)", "Bad(uint256) and more"] {
            let told = abis.topics(wrong).unwrap_err().to_string();
            assert!(told.starts_with(&format!("{wrong} is not a signature")), "{told}");
        }
    }
}
