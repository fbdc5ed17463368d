#!/usr/bin/env bash
# Line coverage of all tests, including the processes that they start. Not part of CI: it builds
# everything a second time, instrumented.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

need_cargo
need redis-server redis-server
if ! cargo tarpaulin --version >/dev/null 2>&1; then
  echo "Installing cargo-tarpaulin"
  cargo install --locked cargo-tarpaulin
fi
# The LLVM engine also covers child processes. A separate target folder preserves the normal build.
exec cargo tarpaulin --engine llvm --follow-exec --workspace --locked \
  --timeout 900 --target-dir target/coverage --out Stdout --out Html --output-dir coverage \
  --exclude-files 'crates/testkit/*' --exclude-files '*/tests/*' --exclude-files '*/benches/*' "$@"
