#!/usr/bin/env bash
# Measures latency, throughput and cost on this machine, beside its limits, and prints a table.
# Usage: scripts/bench.sh [--quick] [--rows A,B] [--json] [--redis-url URL] [--node-url URL] [--peer]
#        scripts/bench.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh
need_cargo
need redis-server redis-server
# Apart, so that the program is built as it is shipped, without what only tests ask of its libraries.
cargo build --release --quiet --package ethhook --bin ethhook
cargo build --release --quiet --package ethhook --example bench
exec target/release/examples/bench "$@"
