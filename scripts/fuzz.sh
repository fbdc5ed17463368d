#!/usr/bin/env bash
# Fuzzes everything that reads bytes from outside, with libFuzzer. Needs no nightly Rust.
# Usage: scripts/fuzz.sh [--seconds N] [TARGET]...
#   --seconds  how long each target runs (default 60)
#   TARGET     one of those in fuzz/targets (default: all)
# Inputs that make a target fail are saved in fuzz/artifacts: fix the bug, then add the input to
# fuzz/seeds/TARGET, which the normal tests run as well.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

CARGO_FUZZ_VERSION=0.13.1

seconds=60
targets=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds)
      seconds=${2:?--seconds needs a number}
      shift
      ;;
    -*)
      sed -n '2,7s/^# //p' "$0" >&2
      exit 2
      ;;
    *) targets+=("$1") ;;
  esac
  shift
done
if [ ${#targets[@]} -eq 0 ]; then
  for target in fuzz/targets/*.rs; do
    targets+=("$(basename "$target" .rs)")
  done
fi

need_cargo
need c++ g++
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "Installing cargo-fuzz"
  cargo install --locked --quiet "cargo-fuzz@$CARGO_FUZZ_VERSION"
fi

# No sanitizer, because the stable toolchain has none; the code forbids `unsafe`.
options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1)
cargo fuzz build --sanitizer none
for target in "${targets[@]}"; do
  printf '\n==== %s\n' "$target"
  mkdir -p "fuzz/corpus/$target"
  cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    "${options[@]}" 2>&1 | grep -vE '^#[0-9]+\s+(REDUCE|NEW|pulse)'
done
