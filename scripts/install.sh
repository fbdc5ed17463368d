# shellcheck shell=bash
# Functions that install what a script needs. Source this file; do not run it.

# need COMMAND PACKAGE...: installs the Debian packages if the command is missing.
need() {
  local command=$1
  shift
  if command -v "$command" >/dev/null; then return; fi
  if ! command -v apt-get >/dev/null; then
    echo "$command is missing, and there is no apt-get: install it by hand" >&2
    exit 1
  fi
  echo "Installing $*"
  apt_get update -qq
  apt_get install -y -qq --no-install-recommends "$@" >/dev/null
}

# need_venv: installs python3 with what it needs to make virtual environments, a separate package in Debian.
need_venv() {
  if python3 -c 'import ensurepip' 2>/dev/null; then return; fi
  need python3-venv python3 python3-venv
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "run '$*' as root" >&2
    exit 1
  fi
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@"
}

# need_unpacked COMMAND PACKAGE...: unpacks the Debian packages into .tools/deb, unless that was done
# before. Unlike need, it configures nothing and starts no service.
need_unpacked() {
  local command=$1 root=.tools/deb
  shift
  PATH=$PWD/$root/usr/bin:$PATH
  if [ -e "$root/usr/bin/$command" ]; then return; fi
  if ! command -v apt-get >/dev/null; then
    if command -v "$command" >/dev/null; then return; fi
    echo "$command is missing, and there is no apt-get: install it by hand" >&2
    exit 1
  fi
  echo "Unpacking $*"
  mkdir -p "$root"
  local packages
  packages=$(mktemp -d)
  # The package lists may be missing or outdated; only root can update them.
  (cd "$packages" && apt-get download -qq "$@" 2>/dev/null) || {
    apt_get update -qq
    (cd "$packages" && apt-get download -qq "$@")
  }
  local package
  for package in "$packages"/*.deb; do dpkg-deb --extract "$package" "$root"; done
  rm -rf "$packages"
}

# Debian's Alertmanager looks for its templates at a fixed path, wherever it was unpacked.
need_alertmanager() {
  local templates=usr/share/prometheus/alertmanager
  need_unpacked prometheus-alertmanager prometheus-alertmanager
  if [ -e "/$templates/default.tmpl" ] || [ ! -e ".tools/deb/$templates" ]; then return; fi
  as_root mkdir -p "/$templates"
  as_root cp ".tools/deb/$templates/default.tmpl" ".tools/deb/$templates/email.tmpl" "/$templates/"
}

# Prometheus, Alertmanager and the exporters.
need_monitoring() {
  need_unpacked prometheus prometheus
  need_alertmanager
  need_unpacked prometheus-redis-exporter prometheus-redis-exporter
  need_unpacked prometheus-node-exporter prometheus-node-exporter
}

# The dependencies of examples/, at the versions pinned there, under .tools/examples.
need_examples() {
  local tools=.tools/examples
  if ! cmp -s examples/python/requirements.txt "$tools/python/requirements.txt"; then
    need_venv
    python3 -m venv "$tools/python"
    "$tools/python/bin/pip" install --quiet --disable-pip-version-check -r examples/python/requirements.txt
    cp examples/python/requirements.txt "$tools/python/"
  fi
  if ! cmp -s examples/node/package-lock.json "$tools/node/node_modules/pinned.json"; then
    need npm npm
    mkdir -p "$tools/node"
    cp examples/node/package.json examples/node/package-lock.json "$tools/node/"
    npm ci --silent --no-fund --no-audit --prefix "$tools/node"
    cp examples/node/package-lock.json "$tools/node/node_modules/pinned.json"
  fi
}

need_cargo() {
  if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
    # shellcheck source=/dev/null
    . "$HOME/.cargo/env"
  fi
  if ! command -v cargo >/dev/null; then
    echo "Rust is missing: see https://rustup.rs" >&2
    exit 1
  fi
  # For crates with C or assembly code: TLS, Keccak and the allocator.
  need cc gcc libc6-dev
  need make make
}
