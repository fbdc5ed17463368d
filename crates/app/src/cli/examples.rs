//! The text below the options in each command's `--help`.

pub(super) const PROGRAM: &str = "\
Examples:
  Ingest Ethereum into the Redis on this machine:
    ETHEREUM_WS_URL=wss://... ethhook ingest --progress
  Try it without a node:
    ethhook simulate --chains 1,10
    ETHEREUM_WS_URL=ws://127.0.0.1:8545/1 ethhook ingest --progress
  See what is configured, and where each value came from:
    ethhook check-config
  See how it is doing:
    ethhook status --watch
  Watch the events of one chain:
    ethhook tail --chain ethereum
  Compare its stream with the chain:
    ethhook verify --chain ethereum

Configuration: environment, then .env, then ethhook.toml, then defaults; `ethhook check-config
--example` prints every key.

Exit codes: 0 done; 1 failed, retrying may help; 2 wrong command line; 3 differences (verify);
78 wrong configuration.";

pub(super) const STATUS: &str = "\
Examples:
  ethhook status
  ethhook status --watch
  ethhook status --json | jq '.chains[] | {name, lag_blocks}'
  docker compose exec ethhook ethhook status

Exit codes: 0 all is well; 1 something is wrong, or no service answers; 78 wrong configuration.";

pub(super) const VERIFY: &str = "\
Examples:
  ethhook verify --chain ethereum
  ethhook verify --chain ethereum --from 21000000 --to 21000999

Exit codes: 0 no differences; 1 could not compare, see standard error; 2 wrong command line;
3 differences, listed on standard output; 78 wrong configuration.";

pub(super) const REPLAY: &str = "\
Examples:
  ethhook replay --chain ethereum --from 21000000 --to 21000999 --into history:1
  ethhook replay --chain base --from 2000000 --to 2100000 --into usdc \\
    --contract 0x833589fcd6edb6e08f4c7c32d4f71b54bda02913

Exit codes: 0 the stream has the whole range; 1 stopped or failed, run it again to continue; 2 wrong
command line; 78 wrong configuration.";

pub(super) const TAIL: &str = "\
Examples:
  ethhook tail --chain ethereum
  ethhook tail --chain ethereum --from 21000000 --event Transfer \\
    --contract 0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48 | jq .decoded.args
  ethhook tail --chain base --abi pool.json --event Swap
  ethhook tail --chain base --group audit

Exit codes: 0 ended by a signal or by its reader; 1 failed; 2 wrong command line; 78 wrong
configuration.";

pub(super) const GROUPS_CREATE: &str = "\
Examples:
  ethhook groups create --chain ethereum --group indexer
  ethhook groups create --chain ethereum --group indexer --from 21000000
  ethhook groups create --chain ethereum --group indexer --from 2026-01-31T12:00:00Z";

pub(super) const COMPLETIONS: &str = "\
Examples:
  ethhook completions bash > /etc/bash_completion.d/ethhook
  ethhook completions zsh > ~/.zfunc/_ethhook
  ethhook completions fish > ~/.config/fish/completions/ethhook.fish";

pub(super) const INGEST: &str = "\
Examples:
  ethhook ingest
  ETHEREUM_WS_URL=wss://... BASE_WS_URL=wss://... ethhook ingest --progress

Exit codes: 0 stopped by a signal; 1 failed, retrying may help; 2 wrong command line; 78 wrong
configuration.";

pub(super) const SIMULATE: &str = "\
Examples:
  ethhook simulate
  ethhook simulate --chains 1,10 --block-time-ms 500 --reorg-every 10
  ethhook simulate --faults 7";

pub(super) const CHECK_CONFIG: &str = "\
Examples:
  ethhook check-config
  ethhook check-config --example > .env.example

Exit codes: 0 valid; 78 wrong configuration.";

pub(super) const HEALTHCHECK: &str = "\
Examples:
  ethhook healthcheck
  ethhook healthcheck --ready

Exit codes: 0 alive, or ready; 1 not; 78 wrong configuration.";

pub(super) const GROUPS_LIST: &str = "\
Examples:
  ethhook groups list
  ethhook groups list --chain ethereum --json | jq .behind";

pub(super) const GROUPS_PRUNE: &str = "\
Examples:
  ethhook groups prune --chain ethereum --group indexer
  ethhook groups prune --chain ethereum --group indexer --idle-minutes 1440";

pub(super) const GROUPS_DELETE: &str = "\
Examples:
  ethhook groups delete --chain ethereum --group indexer
  ethhook groups delete --chain ethereum --group indexer --yes";

pub(super) const REWIND: &str = "\
Examples:
  ethhook rewind --chain ethereum --to 21000000
  ethhook rewind --chain ethereum --to 21000000 --yes";

pub(super) const SKIP: &str = "\
Examples:
  ethhook skip --chain ethereum --to 21000000
  ethhook skip --chain ethereum --to latest --yes";

pub(super) const CLEAR_ALARM: &str = "\
Examples:
  ethhook clear-alarm --chain ethereum";

pub(super) const RESET: &str = "\
Examples:
  ethhook reset --chain local
  ethhook reset --chain local --yes";
