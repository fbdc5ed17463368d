#!/usr/bin/env bash
# Ingests all configured chains, and starts its own Redis unless one is configured. With nothing
# configured, it ingests four simulated chains. Ctrl-C stops everything.
#   ETHHOOK_BIN   the binary to run, instead of building one
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

READY_SECONDS=60
# A demo that was stopped for longer than this starts over, because catching up would take too long.
DEMO_KEPT_SECONDS=3600
MAXMEMORY=512mb

say() { printf '%s\n' "$*"; }
fail() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 1
}

# ---- Child processes, stopped in reverse order: the ingestor first, so that it can drain.
redis_pid=
own_redis=
simulator_pid=
ingestor_pid=
stopping=

# spawn COMMAND...: runs in its own session, so that Ctrl-C reaches only this script. The command is
# terminated when this script dies, even by kill -9.
spawn() { exec setsid setpriv --pdeathsig TERM "$@"; }

alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# shellcheck disable=SC2329 # called by the trap
stop() { # PID SECONDS
  alive "$1" || return 0
  kill -TERM "$1" 2>/dev/null || return 0
  local i
  for ((i = 0; i < $2 * 10; i++)); do
    alive "$1" || break
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# shellcheck disable=SC2329 # called by the trap
stop_all() {
  trap '' INT TERM HUP
  stop "$ingestor_pid" 10
  stop "$simulator_pid" 5
  stop "$redis_pid" 20
}

# shellcheck disable=SC2329 # called by the trap
on_signal() {
  stopping=1
  say ""
  say "Stopping."
}
trap on_signal INT TERM HUP
trap stop_all EXIT

# ---- Helpers.
port_taken() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

free_port() { # FIRST
  local port
  for ((port = $1; port < $1 + 1000; port++)); do
    if ! port_taken 127.0.0.1 "$port"; then
      echo "$port"
      return
    fi
  done
  fail "no free port in the 1000 from $1"
}

resolved() { # KEY: its value, as shown by check-config
  sed -n "s/^$1=\([^ ]*\) *# .*/\1/p" <<<"$settings"
}

is_set() { # KEY: whether it is set, not defaulted
  [ -n "$(sed -n "/ # default$/d; s/^$1\(_FILE\)\{0,1\}=.*/set/p" <<<"$settings")" ]
}

# Returns whether the ingestor is ready; if it is not, $why holds the reason.
ready() {
  why="nothing listens on $health"
  local status='' line reply
  reply=$(
    exec 2>/dev/null
    exec 3<>"/dev/tcp/${health%:*}/${health##*:}" || exit 0
    printf 'GET /ready HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$health" >&3
    timeout 3 cat <&3
  ) || true
  read -r _ status _ <<<"$reply" || true
  line=$(tail -n 1 <<<"$reply")
  if [ -n "$line" ]; then why=$line; fi
  [ "$status" = 200 ]
}

# ---- Build.
ethhook=${ETHHOOK_BIN:-}
if [ -z "$ethhook" ]; then
  need_cargo
  say "Building (the first time takes a few minutes)"
  quiet=--quiet
  [ ! -t 2 ] || quiet= # show progress on a terminal
  cargo build --release $quiet --locked -p ethhook
  [ -z "$stopping" ] || exit 0
  ethhook=${CARGO_TARGET_DIR:-target}/release/ethhook
fi

# ---- Configured, or a demo?
mkdir -p data
demo=
errors=$(mktemp)
if settings=$("$ethhook" check-config 2>"$errors"); then
  home=data
elif [ ! -e .env ] && [ "$(wc -l <"$errors")" -eq 1 ] && grep -q 'no chain is set' "$errors"; then
  demo=1
  home=data/demo
  # Other settings, such as ports, apply to the demo as well.
  settings=$(LOCAL_WS_URL=ws://127.0.0.1:1 "$ethhook" check-config)
else
  cat "$errors" >&2
  rm -f "$errors"
  exit 78
fi
rm -f "$errors"
mkdir -p "$home"
exec 9>"data/run.lock"
flock -n 9 || fail "another run.sh is already running here"
log=$home/ethhook.log

# ---- Redis.
start_redis() {
  need redis-server redis-server
  mkdir -p "$home/redis"
  local port=6390 tries
  for ((tries = 0; tries < 20; tries++)); do
    port=$(free_port "$port")
    spawn redis-server --bind 127.0.0.1 --port "$port" --dir "$PWD/$home/redis" \
      --appendonly yes --appendfsync everysec --save '' \
      --maxmemory "$MAXMEMORY" --maxmemory-policy noeviction --stream-node-max-bytes 16384 \
      --daemonize no --logfile "$PWD/$home/redis.log" 9>&- &
    redis_pid=$!
    while alive "$redis_pid"; do
      # Check that it is ours: another process may have taken the port first.
      if redis-cli -p "$port" info server 2>/dev/null | grep -q "^process_id:$redis_pid"; then
        until redis-cli -p "$port" ping 2>/dev/null | grep -q PONG; do
          [ -z "$stopping" ] || exit 0
          alive "$redis_pid" || break 3
          sleep 0.1
        done
        unset REDIS_URL_FILE REDIS_HOST REDIS_PORT REDIS_PASSWORD REDIS_PASSWORD_FILE
        export REDIS_URL=redis://127.0.0.1:$port
        own_redis=REDIS_URL=$REDIS_URL
        redis_cli="redis-cli -p $port"
        return
      fi
      [ -z "$stopping" ] || exit 0
      sleep 0.1
    done
    port=$((port + 1))
  done
  tail -n 5 "$home/redis.log" >&2
  fail "Redis did not start; see $home/redis.log"
}

reset_demo_if_old() {
  local now last
  now=$(date +%s)
  if [ -e "$home/genesis-time" ]; then
    last=$(stat -c %Y "$log" 2>/dev/null || echo 0)
    if [ $((now - last)) -gt "$DEMO_KEPT_SECONDS" ]; then
      say "The last demo is too old to catch up; starting a new one."
      rm -rf "$home"
      mkdir -p "$home"
    fi
  fi
  if [ ! -e "$home/genesis-time" ]; then
    # In the past, so that the chain already has some blocks.
    echo $((now - 200)) >"$home/genesis-time"
  fi
}

if [ -n "$demo" ]; then reset_demo_if_old; fi
# Not for the demo: its chains have the ids of real ones.
if [ -z "$demo" ] \
  && { is_set REDIS_URL || is_set REDIS_HOST || is_set REDIS_PORT || is_set REDIS_PASSWORD; }; then
  say "Using the configured Redis"
  redis_cli="redis-cli -u \"\$REDIS_URL\""
else
  start_redis
  say "Started Redis: $redis_cli (data in $PWD/$home/redis, at most $MAXMEMORY)"
fi

# ---- Simulated chains.
start_simulator() {
  local out=$home/simulate.out name value tries
  : >"$out"
  spawn "$ethhook" simulate --listen 127.0.0.1:0 \
    --genesis-time "$(cat "$home/genesis-time")" >"$out" 2>>"$log" 9>&- &
  simulator_pid=$!
  for ((tries = 0; tries < 300; tries++)); do
    grep -q '^BASE_HTTP_URL=' "$out" && break
    alive "$simulator_pid" || break
    sleep 0.1
  done
  grep -q '^BASE_HTTP_URL=' "$out" || fail "the simulator did not start; see $log"
  while IFS='=' read -r name value; do
    case $name in
      *_URL)
        export "$name=$value"
        ;;
    esac
  done <"$out"
  local port
  for name in METRICS_PORT HEALTH_PORT; do
    port=$(resolved "$name")
    if [ "$port" -ne 0 ] && port_taken 127.0.0.1 "$port"; then
      value=$(free_port $((port + 1)))
      say "$name $port is taken; using $value"
      export "$name=$value"
    fi
  done
}

[ -z "$stopping" ] || exit 0
if [ -n "$demo" ]; then
  start_simulator
  say "Nothing is configured: ingesting four simulated chains. For real ones, copy"
  say ".env.example to .env and set a URL there."
fi

# ---- The ingestor.
settings=$("$ethhook" check-config)
host=$(resolved BIND_ADDRESS)
case $host in 0.0.0.0 | ::) host=127.0.0.1 ;; esac
health=$host:$(resolved HEALTH_PORT)
streams=$(sed -n 's/^# .* stream \(events:[0-9]*\),.*/\1/p' <<<"$settings" | tr '\n' ' ')
[ -n "$streams" ] || fail "check-config names no stream"
say ""
say "Streams:  $streams"
say "Entries:  $redis_cli XREVRANGE ${streams%% *} + - COUNT 1"
say "Page:     http://$health/ (and /health, /ready)"
say "Metrics:  http://$host:$(resolved METRICS_PORT)/metrics"
say "Commands: export ${own_redis:+$own_redis }HEALTH_PORT=${health##*:}; $ethhook status"
say "Log:      $PWD/$log"
say "Press Ctrl-C to stop everything."
say ""
touch "$log"
started_at=$(wc -l <"$log")
spawn "$ethhook" ingest --progress 2>>"$log" 9>&- &
ingestor_pid=$!

deadline=$((SECONDS + READY_SECONDS))
until [ -n "$stopping" ] || ! alive "$ingestor_pid" || [ "${health##*:}" = 0 ]; do
  if ready; then
    say "Ready."
    break
  fi
  if [ "$SECONDS" -ge "$deadline" ]; then
    say "Not ready after $READY_SECONDS s, continuing: $why"
    break
  fi
  sleep 0.5
done

exited() { [ -n "$1" ] && ! alive "$1"; }
until [ -n "$stopping" ] || exited "$ingestor_pid" || exited "$redis_pid" || exited "$simulator_pid"; do
  sleep 1 9>&- &
  wait $! || true # interrupted by a signal
done
if [ -n "$stopping" ]; then exit 0; fi
if exited "$redis_pid"; then
  fail "Redis exited; see $home/redis.log. Run this again: everything continues from Redis' data on disk"
fi
if exited "$simulator_pid"; then fail "the simulator exited; see $log"; fi
code=0
wait "$ingestor_pid" || code=$?
tail -n "+$((started_at + 1))" "$log" | tail -n 20 >&2
how=exited
[ "$code" -le 128 ] || how="was killed by signal $((code - 128))"
printf 'run.sh: the ingestor %s; see %s\n' "$how" "$log" >&2
exit "$code"
