#!/usr/bin/env bash
# Causes faults at random between the real binary, a node and a Redis, and compares the streams with
# the chain after each round of them.
# Usage: scripts/chaos.sh [--seed N] [--minutes M] [--append FILE]
#   --seed     repeats the schedule of another run (default: a new one, which is printed)
#   --minutes  how long to go on (default 10)
#   --append   adds the results to a file, as a line of JSON
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh
need_cargo
need redis-server redis-server
cargo build --quiet --locked --package ethhook --features fail-points --bin ethhook --example chaos
# Copies, so that another build meanwhile does not change what is being tried.
mkdir -p target/chaos
cp --remove-destination target/debug/ethhook target/debug/examples/chaos target/chaos/
exec target/chaos/chaos --program target/chaos/ethhook "$@"
