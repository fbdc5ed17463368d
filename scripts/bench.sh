#!/usr/bin/env bash
# Measures head-to-stream latency, requests a block and memory on this machine.
# Usage: scripts/bench.sh [SECONDS]   length of the second part (default 200: 100 blocks of 2 s)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh
need_cargo
need redis-server redis-server
cargo build --release --quiet --package ethhook --bin ethhook --example bench
exec target/release/examples/bench "$@"
