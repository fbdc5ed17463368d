# shellcheck shell=bash
# Installs what a script needs. To be sourced, not run.

# need COMMAND PACKAGE...: installs the Debian packages if there is no such command.
need() {
  local command=$1
  shift
  if command -v "$command" >/dev/null; then return; fi
  if ! command -v apt-get >/dev/null; then
    echo "$command is missing, and there is no apt-get: install it by hand" >&2
    exit 1
  fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "$command is missing: run 'apt-get install $*' as root" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "Installing $*"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
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
}
