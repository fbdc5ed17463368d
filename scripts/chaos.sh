#!/usr/bin/env bash
# Injects faults between the real binary, nodes and a Redis, and compares the streams with the chains
# after each round.
# Usage: scripts/chaos.sh [--seed N] [--minutes M] [--append FILE]           all kinds, mixed
#        scripts/chaos.sh --part NAME [--count N] [--seed N] [--append FILE] one kind, N times
#        scripts/chaos.sh --list                                            the parts
#        scripts/chaos.sh --all FILE                     all parts in full, then 20 minutes mixed
#        scripts/chaos.sh --render FILE [--into PAGE]    tables of the results in FILE
#   --seed     repeats the schedule of an earlier run (default: a new seed, which is printed)
#   --append   appends the results to a file, as a line of JSON
# With CHAOS_PREBUILT=1 it reuses the last build.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh
need_cargo
need redis-server redis-server
if [ -z "${CHAOS_PREBUILT:-}" ]; then
  cargo build --quiet --locked --package ethhook --features fail-points --bin ethhook --example chaos
  # Copies, so that a concurrent build does not change what is being tested; renamed, so that they are never missing.
  mkdir -p target/chaos/new
  cp target/debug/ethhook target/debug/examples/chaos target/chaos/new/
  mv -f target/chaos/new/* target/chaos/
  git describe --always --dirty --abbrev=7 >target/chaos/commit 2>/dev/null || echo unknown >target/chaos/commit
fi
# shellcheck source=/dev/null
about="$(date -u +%F), $(nproc) cores, $(. /etc/os-release && echo "$PRETTY_NAME"), \
Redis $(redis-server --version | sed 's/.* v=\([^ ]*\).*/\1/'), debug build of $(cat target/chaos/commit)"
chaos() {
  target/chaos/chaos --program target/chaos/ethhook --about "$about" "$@"
}
if [ "${1:-}" = --all ]; then
  failed=
  for part in $(chaos --list | cut -d' ' -f1); do
    chaos --part "$part" --append "$2" || failed=1
  done
  chaos --minutes 20 --append "$2" || failed=1
  [ -z "$failed" ]
else
  chaos "$@"
fi
