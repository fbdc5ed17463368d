#!/usr/bin/env bash
# Installs what the tests need and runs all checks, or a part of them:
#   --unit         formatting, lints, docs and the tests next to the code, some with their own Redis
#   --integration  the tests of the programs, with a real Redis and a real dev node
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

ANVIL_VERSION=1.7.1

section() { printf '\n==== %s\n' "$*"; }

unit=1
integration=1
case ${1:-} in
  '') ;;
  --unit) integration= ;;
  --integration) unit= ;;
  *)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac

need_cargo
need redis-server redis-server
if [ -n "$integration" ]; then
  section "Redis, the dev node and the monitoring"
  need_monitoring
  need chromium chromium
  if [ -z "${ANVIL_BIN:-}" ]; then
    anvil=.tools/node_modules/.bin/anvil
    need node nodejs
    if ! "$anvil" --version 2>/dev/null | grep -qF "$ANVIL_VERSION"; then
      need npm npm
      npm install --silent --no-fund --no-audit --prefix .tools "@foundry-rs/anvil@$ANVIL_VERSION"
    fi
    ANVIL_BIN=$PWD/$anvil
    export ANVIL_BIN
  fi
  need_examples
  redis-server --version
  "$ANVIL_BIN" --version | head -n 1
fi

if [ -n "$unit" ]; then
  section "cargo fmt"
  cargo fmt --all -- --check
  cargo fmt --manifest-path examples/rust/Cargo.toml -- --check
  section "cargo clippy"
  cargo clippy --workspace --all-targets --locked -- -D warnings
  section "cargo doc"
  # For contributors, so private items are documented and may be linked to.
  RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items --locked --quiet
fi

if [ -n "$unit" ]; then
  section "Dependencies"
  ./scripts/supply_chain.sh
  section "Containers and the droplet"
  ./scripts/lint_containers.sh --steps
  ./scripts/test_deploy.sh
  section "Prometheus and Alertmanager"
  ./scripts/check_monitoring.sh
fi

# Most tests spend most of their time waiting for a block or a server.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}
if [ -n "$unit" ] && [ -n "$integration" ]; then
  section "All tests"
  cargo test --workspace --locked
elif [ -n "$unit" ]; then
  section "Unit tests"
  cargo test --workspace --locked --lib --bins
  cargo test --package ethhook-domain --locked --tests
else
  section "Integration tests"
  cargo test --workspace --locked --test '*'
fi
if [ -n "$integration" ]; then
  section "run.sh"
  # The binary that the tests built.
  ETHHOOK_BIN=${CARGO_TARGET_DIR:-target}/debug/ethhook ./scripts/test_run.sh
  section "The commands of the guides"
  if [ "$(id -u)" -eq 0 ] && unshare --net --mount true 2>/dev/null; then
    ETHHOOK_BIN=${CARGO_TARGET_DIR:-target}/debug/ethhook ./scripts/walk.sh
  else
    echo "Skipped: this needs root and its own namespaces"
  fi
fi
section "Passed"
