//! What calls cost at known providers, in their own units.
//!
//! The figures are those that the providers publish (as of November 2026); a batch costs as much as its calls.
//! Messages that a subscription pushes are not counted.
//! - Alchemy, compute units: <https://www.alchemy.com/docs/reference/compute-unit-costs>. A call may count more
//!   against the rate limit ("throughput CU") than is billed for it.
//! - Infura, credits: <https://docs.metamask.io/services/get-started/pricing/credit-cost>.
//! - QuickNode, API credits: <https://www.quicknode.com/api-credits>, 20 per call on the built-in chains.
//! - Ankr, API credits: <https://www.ankr.com/docs/rpc-service/pricing>, 200 per call on EVM chains.
//! - Moralis, compute units: <https://docs.moralis.com/rpc-nodes/pricing>, the archive price where there are two.

use url::Url;

use crate::config::EndpointConfig;

/// The price of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Price {
    /// Units billed.
    pub(super) units: u32,
    /// Units counted against the rate limit.
    pub(super) throughput: u32,
}

/// Methods whose price is not the provider's usual one, with `(units, throughput)`.
type Exceptions = &'static [(&'static str, u32, u32)];

/// The prices of one provider.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prices {
    /// Suffixes of its host names.
    hosts: &'static [&'static str],
    usual: u32,
    exceptions: Exceptions,
}

const KNOWN: &[Prices] = &[
    Prices {
        hosts: &["alchemy.com", "alchemyapi.io"],
        usual: 20,
        exceptions: &[
            ("eth_chainId", 0, 0),
            ("eth_getLogs", 60, 60),
            ("eth_getBlockReceipts", 20, 500),
        ],
    },
    Prices {
        hosts: &["infura.io"],
        usual: 80,
        exceptions: &[
            ("eth_chainId", 5, 5),
            ("eth_getLogs", 255, 255),
            ("eth_getBlockReceipts", 1_000, 1_000),
        ],
    },
    Prices { hosts: &["quiknode.pro"], usual: 20, exceptions: &[] },
    Prices { hosts: &["ankr.com"], usual: 200, exceptions: &[] },
    Prices { hosts: &["moralis-nodes.com"], usual: 12, exceptions: &[("eth_chainId", 3, 3)] },
];

/// Any other provider, including your own node: each call is one unit.
const UNKNOWN: Prices = Prices { hosts: &[], usual: 1, exceptions: &[] };

impl Prices {
    /// The prices of the provider to whose address requests are sent.
    pub(super) fn of(config: &EndpointConfig) -> Self {
        let url = config.http.as_ref().or(config.ws.as_ref());
        let url = url.and_then(|url| Url::parse(url.reveal()).ok());
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let is_of = |prices: &&Prices| prices.hosts.iter().any(|suffix| is_under(host, suffix));
        KNOWN.iter().find(is_of).copied().unwrap_or(UNKNOWN)
    }

    pub(super) fn of_call(&self, method: &str) -> Price {
        let exception = self.exceptions.iter().find(|(name, _, _)| *name == method);
        let usual = Price { units: self.usual, throughput: self.usual };
        exception.map_or(usual, |&(_, units, throughput)| Price { units, throughput })
    }
}

fn is_under(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Secret;

    use super::*;

    fn receipts_at(http: Option<&str>, ws: Option<&str>) -> Price {
        let config = EndpointConfig { http: http.map(Secret::new), ws: ws.map(Secret::new) };
        Prices::of(&config).of_call("eth_getBlockReceipts")
    }

    #[test]
    fn a_provider_is_known_by_the_end_of_its_host() {
        let price = |units, throughput| Price { units, throughput };
        let alchemy = "https://eth-mainnet.g.alchemy.com/v2/KEY";
        assert_eq!(receipts_at(Some(alchemy), None), price(20, 500));
        let infura = "wss://mainnet.infura.io/ws/v3/KEY";
        assert_eq!(receipts_at(None, Some(infura)), price(1_000, 1_000));
        assert_eq!(receipts_at(Some("http://localhost:8545"), Some(infura)), price(1, 1));
        for other in ["http://notalchemy.com", "http://alchemy.com.example", "http://127.0.0.1"] {
            assert_eq!(receipts_at(Some(other), None), price(1, 1), "{other}");
        }
    }
}
