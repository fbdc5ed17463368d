#!/bin/sh
# Prepares a fresh Ubuntu 24.04 or Debian 13 for EthHook: firewall, swap, security updates, Docker
# with Compose. Run as root; idempotent. docker/cloud-init.yml runs it at the first boot, and
# scripts/deploy_droplet.sh at each deployment.
set -eu

# Prefix of the files written; set only in tests.
root=${ETHHOOK_ROOT:-}
SWAP_MEGABYTES=2048

say() { printf 'host_setup: %s\n' "$*"; }
fail() {
  say "$*" >&2
  exit 1
}

# write_if_changed PATH: writes standard input to PATH; returns 1 if the file already has that content.
write_if_changed() {
  content=$(cat)
  if [ "$(cat "$root$1" 2>/dev/null)" = "$content" ]; then return 1; fi
  mkdir -p "$(dirname "$root$1")"
  printf '%s\n' "$content" >"$root$1"
  say "wrote $1"
}

[ "$(id -u)" -eq 0 ] || fail "must be root"
command -v apt-get >/dev/null || fail "apt-get is missing: this is for Ubuntu 24.04 or Debian 13"

# ---- Packages. An existing Docker with Compose v2 is kept.
wanted="ca-certificates ufw unattended-upgrades"
if ! docker compose version >/dev/null 2>&1; then
  id=$(sed -n 's/^ID=//p' "$root/etc/os-release" | tr -d '"')
  case $id in
    ubuntu) wanted="$wanted docker.io docker-compose-v2 docker-buildx" ;;
    debian) wanted="$wanted docker.io docker-cli docker-compose docker-buildx" ;;
    *) fail "cannot install Docker on '$id': install it with Compose v2, then run this again" ;;
  esac
fi
missing=
for package in $wanted; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  say "installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  # At the first boot, another process may hold the lock.
  apt-get -o DPkg::Lock::Timeout=600 update -qq
  # shellcheck disable=SC2086 # several packages
  apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $missing >/dev/null
fi
docker compose version >/dev/null 2>&1 \
  || fail "docker compose does not work here (Debian 12's is too old): see docs.docker.com/engine/install"

# ---- Swap, for rarely used pages, and so that a build does not run out of memory.
if [ -z "$(swapon --noheadings --show)" ]; then
  say "creating $SWAP_MEGABYTES MB of swap"
  fallocate -l "${SWAP_MEGABYTES}M" "$root/swapfile"
  chmod 600 "$root/swapfile"
  mkswap "$root/swapfile" >/dev/null
  swapon "$root/swapfile"
fi
if [ -e "$root/swapfile" ] && ! grep -qs '^/swapfile ' "$root/etc/fstab"; then
  echo '/swapfile none swap sw 0 0' >>"$root/etc/fstab"
fi

# ---- Memory overcommit: without it, Redis may fail to fork to rewrite its append-only file.
if write_if_changed /etc/sysctl.d/90-ethhook.conf <<'EOF'
vm.overcommit_memory = 1
vm.swappiness = 10
EOF
then sysctl -q -p "$root/etc/sysctl.d/90-ethhook.conf"; fi

# ---- Automatic security updates, with a reboot if one needs it: EthHook drains, and continues from
# its cursor.
write_if_changed /etc/apt/apt.conf.d/52ethhook-upgrades <<'EOF' || true
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Automatic-Reboot "true";
Unattended-Upgrade::Automatic-Reboot-Time "04:00";
EOF

# ---- Firewall: only ssh, on the ports sshd listens on. (Docker's published ports bypass it, which is
# why docker-compose.yml binds each to 127.0.0.1.)
if ! ufw status | grep -q '^Status: active'; then
  listens=
  if command -v sshd >/dev/null; then
    mkdir -p "$root/run/sshd" # sshd -T needs it, and a socket-activated one may not have made it yet
    listens=$(sshd -T) || fail "sshd -T fails, so the ports of ssh are not known: set up the firewall by hand"
  fi
  ports=$(printf '%s\n' "$listens" | sed -nE 's/^port ([0-9]+)$/\1/p; s/^listenaddress .*:([0-9]+)$/\1/p' | sort -un)
  # Not `limit`: a deployment and a tunnel easily open six connections in 30 seconds.
  for port in ${ports:-22}; do ufw allow "$port/tcp" >/dev/null; done
  ufw default deny incoming >/dev/null
  ufw --force enable >/dev/null
  say "firewall on, ssh open on ${ports:-22}"
fi

systemctl enable --quiet --now docker
say "ready"
