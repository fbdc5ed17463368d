#!/usr/bin/env bash
# Installs this version of EthHook over ssh and starts it: on a fresh Ubuntu 24.04 or Debian 13 the first
# time, as an upgrade after that. Running it again updates only what has changed.
#
# Usage: scripts/deploy_droplet.sh [--env FILE] [--build-here] [--dry-run] [USER@]HOST
#   --env FILE    its configuration (default: .env here; if there is none, the host's is kept)
#   --build-here  builds the image on this machine, with its Docker, and sends it: for a host with 1 GB,
#                 where a build takes very long
#   --dry-run     prints what would be done, without contacting the host
#
# The user must be root, or able to run sudo without a password. The commit that is checked out is
# deployed: to roll back, check out the previous one and run this again. Monitoring is started too if the
# configuration sets COMPOSE_PROFILES=monitoring. docker/ethhook/ethhook.toml and the files in
# docker/alertmanager/secrets are copied as well, where they exist.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."

# Its directory on the host; overridden only in tests.
directory=${ETHHOOK_DIR:-/opt/ethhook}
# The group of Alertmanager's container.
ALERTMANAGER_GROUP=65534
HEALTHY_SECONDS=600

usage() { sed -n '2,16s/^# \{0,1\}//p' "$0"; }
say() { printf '==== %s\n' "$*"; }
fail() {
  printf 'deploy_droplet.sh: %s\n' "$*" >&2
  exit 1
}

env_file=
build_here=
dry_run=
host=
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --env)
      [ $# -ge 2 ] || fail "--env needs a file"
      case $2 in /*) env_file=$2 ;; *) env_file=$called_from/$2 ;; esac
      [ -r "$env_file" ] || fail "cannot read $env_file"
      shift
      ;;
    --build-here) build_here=1 ;;
    --dry-run) dry_run=1 ;;
    -*)
      usage >&2
      exit 2
      ;;
    *)
      [ -z "$host" ] || fail "one host at a time, not $host and $1"
      host=$1
      ;;
  esac
  shift
done
if [ -z "$host" ]; then
  usage >&2
  exit 2
fi
if [ -z "$env_file" ] && [ -r .env ]; then env_file=.env; fi
git rev-parse --verify --quiet HEAD >/dev/null || fail "this is not a clone of the repository"
[ -z "$(git status --porcelain --untracked-files=no)" ] \
  || printf 'deploy_droplet.sh: uncommitted changes are not deployed\n' >&2

# All steps share one connection, closed at the end.
sockets=$(mktemp -d)
trap '[ -n "$dry_run" ] || ssh -o ControlPath="$sockets/%C" -O exit "$host" 2>/dev/null || true; rm -rf "$sockets"' EXIT
connection=(-o ConnectTimeout=20 -o ControlMaster=auto -o ControlPath="$sockets/%C" -o ControlPersist=60)

# remote DESCRIPTION COMMAND...: runs a shell command on the host as root, with our standard input.
remote() {
  local what=$1
  shift
  say "$what"
  if [ -n "$dry_run" ]; then
    printf 'ssh %s: %s\n' "$host" "$*"
    # Drain the input, so that the writer does not fail.
    [ -t 0 ] || cat >/dev/null
    return
  fi
  # shellcheck disable=SC2029 # expanded here on purpose
  ssh "${connection[@]}" "$host" "sudo=; [ \$(id -u) -eq 0 ] || sudo='sudo -n'; \$sudo sh -ec $(printf '%q' "$*")" \
    || fail "$what: failed on $host"
}

# ---- The machine.
remote "Waiting for the first boot to finish" \
  'if command -v cloud-init >/dev/null; then cloud-init status --wait >/dev/null || true; fi' </dev/null
remote "Firewall, swap, updates, Docker" 'sh -s' <docker/host_setup.sh

# ---- The files, replaced in place because running containers mount some of them. Files that only an
# earlier version had are removed.
commit=$(git rev-parse --short HEAD)
git archive HEAD | remote "Copying the files of $commit to $directory" \
  "mkdir -p $directory && cd $directory && cat >.new.tar && tar -tf .new.tar | grep -v '/\$' | sort >.new.list" \
  "&& if [ -e .list ]; then comm -13 .new.list .list | xargs -r rm -f; fi" \
  "&& tar -xf .new.tar && mv .new.list .list && rm .new.tar"
if [ -n "$env_file" ]; then
  remote "Copying the configuration from $env_file" \
    "cd $directory && umask 077 && cat >.env.new && mv .env.new .env" <"$env_file"
else
  remote "Keeping the configuration of the host" \
    "[ -s $directory/.env ] || { echo 'no .env here or on the host: copy .env.example to .env and set a URL' >&2; exit 1; }" </dev/null
fi
toml=docker/ethhook/ethhook.toml
if [ -r "$toml" ]; then
  remote "Copying $toml" "cd $directory && umask 022 && cat >$toml.new && mv $toml.new $toml" <"$toml"
fi
for secret in slack_url pagerduty_key; do
  file=docker/alertmanager/secrets/$secret
  [ -r "$file" ] || continue
  remote "Copying the secret $secret" "cd $directory && umask 027 && cat >$file.new" \
    "&& chgrp $ALERTMANAGER_GROUP $file.new && mv $file.new $file" <"$file"
done

# ---- The service.
compose="cd $directory && docker compose"
if [ -n "$build_here" ]; then
  say "Building the image here"
  if [ -z "$dry_run" ]; then
    command -v docker >/dev/null || fail "--build-here needs Docker on this machine"
    docker build --quiet --platform linux/amd64 -f docker/Dockerfile -t ethhook:local . >/dev/null
    docker save ethhook:local | gzip
  fi | remote "Sending the image" 'gunzip | docker load'
else
  remote "Building the image on the host (slow the first time)" "$compose build --quiet ethhook" </dev/null
fi
remote "Checking the configuration" "$compose run --rm --no-deps ethhook check-config >/dev/null" </dev/null
remote "Starting" \
  "$compose up -d --no-build --remove-orphans --wait --wait-timeout $HEALTHY_SECONDS" </dev/null
remote "Reloading the monitoring, if it runs" \
  "cd $directory && for service in prometheus alertmanager; do" \
  "if [ -n \"\$(docker compose ps --quiet \$service 2>/dev/null)\" ]; then docker compose exec -T \$service kill -HUP 1; fi; done" </dev/null
remote "Running containers" "$compose ps" </dev/null

cat <<END
==== Done. To access it from here:
ssh -N -L 8080:127.0.0.1:8080 -L 9090:127.0.0.1:9090 -L 3000:127.0.0.1:3000 $host
curl -s localhost:8080/ready     # {"ready":true,"why":[]} once every chain is at its head
END
