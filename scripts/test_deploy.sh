#!/usr/bin/env bash
# Tests scripts/deploy_droplet.sh with a folder as the host: ssh is replaced by a stub that runs commands
# locally; docker, apt-get, ufw and others by stubs that record their calls. The recorded calls and the
# contents of the folder must be right after the first deployment, and still be after the second.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  printf 'test_deploy.sh: %s\n' "$*" >&2
  sed 's/^/  /' "$machine/calls" >&2; sed "s/^/  out: /" "$work/out" >&2
  exit 1
}
called() { grep -qF -- "$1" "$machine/calls" || fail "not called: $1"; }
not_called() { ! grep -qF -- "$1" "$machine/calls" || fail "called: $1"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export machine=$work/machine
stubs=$work/stubs
mkdir -p "$machine/etc" "$stubs"
echo 'ID=ubuntu' >"$machine/etc/os-release"

stub() { # NAME: records its call, then runs the script on standard input
  # shellcheck disable=SC2016 # expanded when it is called
  { printf '#!/bin/bash\necho "%s $*" >>"$machine/calls"\n' "$1" && cat; } >"$stubs/$1"
  chmod +x "$stubs/$1"
}
# The last argument is the command for the host's shell.
stub ssh <<'END'
ETHHOOK_ROOT=$machine exec bash -c "${!#}"
END
# Always root, whoever runs this.
stub id <<'END'
[ "$*" = -u ] && echo 0
END
stub dpkg-query <<'END'
[ -e "$machine/installed" ] && echo 'install ok installed'
END
stub apt-get <<'END'
[[ "$*" != *install* ]] || touch "$machine/installed"
END
stub docker <<'END'
[ -e "$machine/installed" ] || exit 1
case "$*" in *"ps --quiet prometheus"*) echo 1 ;; *check-config*) grep -q _URL= .env ;; load) cat ;; esac
END
stub swapon <<'END'
if [ "$1" = --noheadings ]; then cat "$machine/swaps" 2>/dev/null || true; else echo "$1" >"$machine/swaps"; fi
END
stub fallocate <<'END'
touch "$3"
END
stub ufw <<'END'
case $1 in status) cat "$machine/ufw" 2>/dev/null ;; --force) echo 'Status: active' >"$machine/ufw" ;; esac
exit 0
END
stub sshd <<'END'
[ ! -e "$machine/no-sshd" ] || exit 255
printf 'port 22\nlistenaddress 0.0.0.0:2222\nlistenaddress [::]:2222\n'
END
for name in mkswap sysctl systemctl cloud-init chgrp; do stub "$name" </dev/null; done

export PATH=$stubs:$PATH ETHHOOK_DIR=$machine/opt/ethhook
deploy() { ./scripts/deploy_droplet.sh "$@" operator@host >"$work/out" 2>&1; }

./scripts/deploy_droplet.sh --help | grep -q '^Usage:' || fail "no --help"
code=0
./scripts/deploy_droplet.sh >/dev/null 2>&1 || code=$?
[ "$code" = 2 ] || fail "without a host it exits with $code"

touch "$machine/calls"
: >"$work/empty.env"
deploy --dry-run --env "$work/empty.env" || fail "--dry-run failed"
[ ! -s "$machine/calls" ] || fail "--dry-run reached the host"
grep -q 'docker compose up' "$work/out" || fail "--dry-run does not show what it would do"

# A firewall that might shut ssh out is not set up.
touch "$machine/no-sshd"
if deploy --env "$work/empty.env"; then fail "it was deployed without knowing the ports of ssh"; fi
grep -q 'sshd -T fails' "$work/out" || fail "it does not say that sshd fails"
not_called "ufw --force"
rm "$machine/no-sshd"

# A wrong configuration is reported before anything is started.
if deploy --env "$work/empty.env"; then fail "a wrong configuration was deployed"; fi
grep -q 'Checking the configuration: failed on operator@host' "$work/out" || fail "it does not say what failed"
not_called "compose up"
called "apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends ca-certificates ufw"
called "docker.io docker-compose-v2"
called "fallocate -l 2048M"
called "ufw allow 2222/tcp"
called "ufw --force enable"
called "systemctl enable --quiet --now docker"
grep -q 'overcommit_memory = 1' "$machine/etc/sysctl.d/90-ethhook.conf" || fail "no sysctl"
grep -q 'Unattended-Upgrade "1"' "$machine/etc/apt/apt.conf.d/52ethhook-upgrades" || fail "no upgrades"
[ "$(grep -c '^/swapfile ' "$machine/etc/fstab")" = 1 ] || fail "no swap in fstab"

# A valid one starts the service; the machine is not set up a second time. A file that only an earlier
# version had is removed.
: >"$machine/calls"
echo 'ETHEREUM_WS_URL=wss://node.example/key' >"$work/right.env"
echo 'gone' >"$ETHHOOK_DIR/of-an-older-version" && echo of-an-older-version >>"$ETHHOOK_DIR/.list"
echo 'kept' >"$ETHHOOK_DIR/docker/alertmanager/secrets/slack_url"
deploy --env "$work/right.env" || fail "it failed: $(cat "$work/out")"
called "docker compose up -d --no-build --remove-orphans --wait"
called "docker compose exec -T prometheus kill -HUP 1"
for done in "apt-get " "fallocate" "mkswap" "sysctl" "ufw allow" "ufw --force"; do not_called "$done"; done
[ "$(stat -c %a "$ETHHOOK_DIR/.env")" = 600 ] || fail ".env is readable by others"
cmp -s "$work/right.env" "$ETHHOOK_DIR/.env" || fail ".env differs"
cmp -s Cargo.lock "$ETHHOOK_DIR/Cargo.lock" || [ -n "$(git status --porcelain Cargo.lock)" ] || fail "files are missing"
[ ! -e "$ETHHOOK_DIR/of-an-older-version" ] || fail "a file of an older version is still there"
[ -e "$ETHHOOK_DIR/docker/alertmanager/secrets/slack_url" ] || fail "a secret on the host is gone"

# A file is named from where the script is called, and a description of other chains is copied too, where there is one.
: >"$machine/calls"
toml=docker/ethhook/ethhook.toml
if [ ! -e "$toml" ]; then
  trap 'rm -rf "$work" "$toml"' EXIT
  echo '[chains.gnosis]' >"$toml"
  script=$PWD/scripts/deploy_droplet.sh
  (cd "$work" && "$script" --env right.env operator@host >"$work/out" 2>&1) || fail "it failed: $(cat "$work/out")"
  cmp -s "$toml" "$ETHHOOK_DIR/$toml" || fail "$toml differs"
  rm "$toml"
  deploy --env "$work/right.env" || fail "it failed: $(cat "$work/out")"
  [ -e "$ETHHOOK_DIR/$toml" ] || fail "the host's $toml is gone"
fi

# With an image built here, and the host's configuration.
: >"$machine/calls"
if [ ! -e .env ]; then
  deploy --build-here || fail "--build-here: $(cat "$work/out")"
  called "docker build --quiet"
  not_called "compose build"
  cmp -s "$work/right.env" "$ETHHOOK_DIR/.env" || fail "the host's .env was not kept"
fi
echo "ok -- deployed five times"
