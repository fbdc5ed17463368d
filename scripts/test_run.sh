#!/usr/bin/env bash
# Tests scripts/run.sh in a folder of its own: with nothing configured it must become ready, the commands that it prints
# must work, and nothing may be left once it is stopped. ETHHOOK_BIN is the binary to run.
set -euo pipefail
cd "$(dirname "$0")/.."
ETHHOOK_BIN=$(realpath "${ETHHOOK_BIN:-target/debug/ethhook}")
export ETHHOOK_BIN

work=$(mktemp -d)
pid=
# shellcheck disable=SC2329 # called by the trap
clean_up() {
  [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || true
  [ -z "$pid" ] || wait "$pid" || true
  rm -rf "$work"
}
trap clean_up EXIT

fail() {
  printf 'test_run.sh: %s\n' "$*" >&2
  sed 's/^/  out: /' "$work/out" >&2
  exit 1
}
shows() { # URL PATTERN
  curl -fsS -o "$work/shown" "$1" || fail "nothing at $1"
  grep -q "$2" "$work/shown" || fail "no $2 at $1"
}
printed() { sed -n "s/^$1: *//p" "$work/out"; }

cp -r scripts "$work/scripts"
METRICS_PORT=19090 HEALTH_PORT=18080 "$work/scripts/run.sh" >"$work/out" 2>&1 &
pid=$!
for ((i = 0; i < 900; i++)); do
  grep -q '^Ready\.' "$work/out" && break
  kill -0 "$pid" 2>/dev/null || break
  sleep 0.1
done
grep -q '^Ready\.' "$work/out" || fail "it does not become ready"

[ "$(printed Streams | wc -w)" -eq 4 ] || fail "not four streams"
# The newest entry: its ID, then the fields.
eval "$(printed Entries)" >"$work/entry"
grep -q '^block_number$' "$work/entry" || fail "no entry: $(cat "$work/entry")"
(eval "$(printed Commands)") >"$work/status" || fail "status: $(cat "$work/status")"
grep -q 'All is well' "$work/status" || fail "status: $(cat "$work/status")"
page=$(printed Page)
shows "${page%% *}" '<html'
shows "$(printed Metrics)" '^ethhook_published_block{'

kill -TERM "$pid"
wait "$pid" || fail "it ends with status $?"
pid=
! pgrep -f "$work" >/dev/null || fail "left behind: $(pgrep -af "$work")"

# A Redis that ends while it reads a damaged file is told of.
file=$(ls "$work"/data/demo/redis/appendonlydir/*.incr.aof)
# shellcheck disable=SC2016 # lengths, not variables
for ((i = 0; i < 200000; i++)); do printf '*3\r\n$3\r\nSET\r\n$6\r\n%06d\r\n$100\r\n%0100d\r\n' "$i" 0; done >>"$file"
dd if=/dev/zero of="$file" bs=4096 count=1 seek=$(($(stat -c %s "$file") / 4096 - 100)) conv=notrunc status=none
if timeout 60 "$work/scripts/run.sh" >"$work/out" 2>&1; then fail "it ran on a damaged file"; fi
grep -q 'Redis did not start; see ' "$work/out" || fail "it does not say that Redis did not start"
! pgrep -f "$work" >/dev/null || fail "left behind: $(pgrep -af "$work")"
echo "run.sh: ready, its commands work, nothing is left"
