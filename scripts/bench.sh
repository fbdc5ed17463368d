#!/usr/bin/env bash
# Measures latency, throughput and cost, compared with the limits of this machine, and prints a table.
# Usage: scripts/bench.sh [--quick] [--rows A,B] [--json] [--redis-url URL] [--node-url URL] [--peer]
#        scripts/bench.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh
need_cargo
need redis-server redis-server
# Built separately from the example, so that the binary has only the features of a release and none that
# only tests enable.
cargo build --release --quiet --package ethhook --bin ethhook
cargo build --release --quiet --package ethhook --example bench
exec target/release/examples/bench "$@"
