#!/usr/bin/env bash
# Runs the commands of the guides like an operator without Docker would. Each command is extracted from the
# text of a guide, its placeholders are filled in, and it is run with a real Redis and a simulated node. A
# command that is neither run nor known to need something that is missing here (Docker, a droplet) is a failure.
# With --alerts, it tests alerting instead, with a real Prometheus and Alertmanager and the shipped files and
# times: the node is stopped and restarted, then the ingestor, and each time an alert is sent (about 20 minutes).
# It needs root, and runs in its own namespaces: no file, port or process of this machine is touched.
# `systemctl`, `journalctl`, `apt-get`, `nano` and `sudo` are replaced by stand-ins.
# shellcheck disable=SC2317,SC2329 # functions are called by name
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD

GUIDES=(SETUP_GUIDE.md examples/README.md docs/runbooks/*.md)
# Not run: commands that need Docker, a droplet or the host's kernel, and those run by scripts/test.sh or --alerts.
ELSEWHERE='^(docker |ssh |git pull|\./scripts/|cd (python|node|rust)$|cd (python|node) && )|slack_url|pagerduty_key|alertmanager|:9091/|sysctl --system'

fail() {
  printf 'walk.sh: %s\n' "$*" >&2
  exit 1
}

# ---- Outside the namespaces: install the programs, then enter.
if [ "${1:-}" != --inside ]; then
  # shellcheck source=scripts/install.sh
  . scripts/install.sh
  need redis-server redis-server
  need curl curl
  need jq jq
  need_examples
  if [ "${1:-}" = --alerts ]; then
    need_monitoring
  fi
  need_cargo
  [ -n "${ETHHOOK_BIN:-}" ] || cargo build --quiet --locked -p ethhook
  cargo build --quiet --locked --manifest-path examples/rust/Cargo.toml --target-dir target/examples
  binary=$(realpath "${ETHHOOK_BIN:-${CARGO_TARGET_DIR:-target}/debug/ethhook}")
  export binary
  exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0" --inside "$@"
fi
shift
alerts=${1:-}

work=$(mktemp -d)
mount -t tmpfs walk "$work"
for folder in /etc /usr/local /var "$top"; do
  layer=$work/layers/${folder//\//-}
  mkdir -p "$layer/new" "$layer/work"
  mount -t overlay overlay -o "lowerdir=$folder,upperdir=$layer/new,workdir=$layer/work" "$folder"
done
cd "$top"
# shellcheck disable=SC2154 # status is assigned in the trap
trap 'status=$?; [ "$status" -eq 0 ] || tail -n 20 /var/log/ethhook >&2 2>/dev/null' EXIT
ip link set lo up
echo '127.0.0.1 ethhook redis-exporter node-exporter alertmanager' >>/etc/hosts

# ---- Stand-ins for programs of the host.
mkdir -p "$work/bin" "$work/credentials"
export PATH=$work/bin:$top/.tools/deb/usr/bin:$PATH work
stand_in() { # NAME: a script, read from standard input
  { echo '#!/bin/bash' && cat; } >"$work/bin/$1"
  chmod +x "$work/bin/$1"
}
stand_in sudo <<<'exec "$@"'
stand_in apt-get <<<'echo "redis-server is already the newest version"'
stand_in journalctl <<<'cat /var/log/ethhook'
# Sets what the guide's comment says, and starts at the first block, so that some blocks are final.
stand_in nano <<'END_NANO'
printf 'ETHEREUM_WS_URL=ws://127.0.0.1:8545/1\nETHEREUM_START_BLOCK=0\n' >>"$1"
END_NANO
# Runs the unit's command line with its credential, as an unprivileged user; Redis as in Debian's unit.
stand_in systemctl <<'END_SYSTEMCTL'
order=$1
shift
if [ "$order" = enable ]; then order=start; shift; fi
as() { local who=$1; shift; setsid setpriv --reuid "$who" --regid "$who" --clear-groups --no-new-privs "$@" & }
alive() { kill -0 "$(cat "$work/$1.pid" 2>/dev/null)" 2>/dev/null; }
stop() {
  alive "$1" || return 0
  kill -TERM "$(cat "$work/$1.pid")"
  for _ in $(seq 150); do alive "$1" || return 0; sleep 0.1; done
  echo "$1 does not stop" >&2; exit 1
}
start() {
  if [ "$1" = redis-server ]; then
    as redis redis-server /etc/redis/redis.conf --daemonize no >/dev/null 2>&1
    until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
  else
    install -o 65534 -m 400 /etc/ethhook/env "$work/credentials/env"
    chmod 755 "$work" "$work/credentials"
    read -r -a command < <(sed -n "s|%d|$work/credentials|; s/^ExecStart=//p" /etc/systemd/system/ethhook.service)
    cd /etc/ethhook || exit 1
    as 65534 --bounding-set -all "${command[@]}" >>/var/log/ethhook 2>&1
  fi
  echo $! >"$work/$1.pid"
}
for unit in "$@"; do
  case $order in
    daemon-reload) ;;
    stop) stop "$unit" ;;
    start) alive "$unit" || start "$unit" ;;
    restart) stop "$unit"; start "$unit" ;;
    status) alive "$unit" && echo 'Active: active (running)' ;;
    *) echo "systemctl $order?" >&2; exit 1 ;;
  esac
done
END_SYSTEMCTL

# ---- Commands of the guides.
# Prints all commands of a guide, one per line: indented code, without comments, continued lines joined.
commands_of() {
  sed -n -E 's/^ {4,}//p' "$1" | sed -E -e ':a' -e '/\\$/{N;s/ *\\\n */ /;ba}' \
    -e 's/ {2,}#.*$//' -e 's/ +$//' |
    grep -E '^\(?(sudo|ethhook|redis-cli|redis-check-aof|systemctl|journalctl|curl|cp|mv|cd|nano|chmod|echo|docker|ssh|git|\./|ACL|CHAIN_ID|top|df|du|free|ps|cargo) ?'
}
fill() { # fills in the guides' placeholders
  # With systemd, commands need the path of the configuration.
  sed -E -e 's|^ethhook |ethhook --env-file /etc/ethhook/env |' -e 's/\bNAME\b/ethereum/g' -e 's/events:ID/events:1/g' -e 's/\bGROUP\b/readers/g' -e 's/>PASSWORD/>secret/' \
    -e 's/-h NEW/-p 6380/' -e 's/\bOLD\b/127.0.0.1/' -e 's/--from N --to [NM]/--from 11 --to 40/' -e "s/0x…/${contract:-}/" -e 's/--to N\b/--to 100/'
}
for guide in "${GUIDES[@]}"; do commands_of "$guide"; done >"$work/commands"
: >"$work/done"
# run COMMAND [EXPECTED]: runs a command of a guide. It must exit with 0 (or $code), and its output must match
# the extended regular expression EXPECTED. With $for_seconds, it is stopped after that time. Its output is left
# in $shown.
run() {
  local command status=0
  grep -qxF -- "$1" "$work/commands" || fail "in no guide: $1"
  echo "$1" >>"$work/done"
  command=$(fill <<<"$1")
  printf '$ %s\n' "$command"
  shown=$(timeout "${for_seconds:-60}" bash -c "$command" 2>&1) || status=$?
  if [ -n "${for_seconds:-}" ] && [ "$status" -eq 124 ]; then status=0; fi
  head -c 2000 <<<"$shown" | sed 's/^/    /' | head -n 12
  [ "$status" -eq "${code:-0}" ] || fail "it exited with $status"
  if [ -n "${2:-}" ]; then grep -Eq -- "$2" <<<"$shown" || fail "its output does not match: $2"; fi
}
until_true() { # WHAT COMMAND...
  local what=$1 tries
  shift
  for ((tries = 0; tries < 600; tries++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  fail "$what: not within two minutes"
}
redis() { redis-cli "$@"; }
set_user() { # NAME CLIENT: makes the user whose rights a guide gives
  local command words
  command=$(grep -m 1 "^ACL SETUSER $1 " "$work/commands")
  echo "$command" >>"$work/done"
  read -r -a words <<<"$(fill <<<"$command")"
  "$2" "${words[@]}" | grep -qx OK || fail "no user $1"
}
cursor() { redis hget 'cursor:{events:1}' "$1"; }
on_host() { ethhook --env-file /etc/ethhook/env "$@"; }
is_ready() { on_host healthcheck --ready && on_host status --json | jq -e '.chains[0].state == "following"'; }
final_enough() { [ "$(cursor finalized_number)" -ge 100 ]; }

# ---- A node with a deterministic chain, old enough to have final blocks.
genesis=$(($(date +%s) - 260))
start_node() {
  ethhook simulate --chains 1 --block-time-ms 200 --events-per-block 20 --genesis-time "$genesis" \
    >>/var/log/node 2>&1 &
  node=$!
}

# ---- Section 4, systemd: from the binary to events.
mkdir -p target/release
cp "$binary" target/release/ethhook
run 'sudo install -m 755 target/release/ethhook /usr/local/bin/ethhook'
start_node
run 'sudo install -d /etc/ethhook'
run 'sudo install -m 600 .env.example /etc/ethhook/env'
run 'sudo nano /etc/ethhook/env'
run 'sudo apt-get install -y redis-server'
systemctl start redis-server # as the package does
run 'redis-cli config set appendonly yes' '^OK$'
run 'redis-cli config set save ""' '^OK$'
run 'redis-cli config set maxmemory 512mb' '^OK$'
run 'redis-cli config set maxmemory-policy noeviction' '^OK$'
run 'redis-cli config set stream-node-max-bytes 16384' '^OK$'
run 'redis-cli config rewrite' '^OK$'
run '(cd /etc/ethhook && sudo ethhook --env-file env check-config)' '^# ethereum: chain id 1, stream events:1,'
run 'sudo install -m 644 docker/ethhook.service /etc/systemd/system/ethhook.service'
run 'sudo systemctl daemon-reload'
run 'sudo systemctl enable --now ethhook'
until_true "the head" is_ready
systemctl status ethhook | grep -q 'active (running)'
journalctl -u ethhook | grep -q listening
journalctl -u ethhook | grep -q 'session opened'
run 'ethhook healthcheck' '^\{"alive":true\}$'
run 'curl -s localhost:8080/ready' '^\{"ready":true,"why":\[\]\}$'
until_true "final blocks" final_enough

# ---- With --alerts: which alerts are sent, and when.
if [ "$alerts" = --alerts ]; then
  ln -s "$top/docker/alertmanager" /etc/alertmanager
  cd docker/alertmanager/secrets
  run "echo 'https://hooks.slack.com/services/…' >slack_url"
  run "echo 'your-integration-key' >pagerduty_key"
  run 'sudo chgrp 65534 slack_url pagerduty_key && sudo chmod 640 slack_url pagerduty_key'
  # A minimal Slack that prints the title of each message.
  echo 'http://127.0.0.1:9999/slack' >slack_url
  cd "$top"
  python3 -c '
import http.server, json
class Slack(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print(message["attachments"][0]["title"], flush=True)
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 9999), Slack).serve_forever()' >"$work/slack" &
  prometheus-redis-exporter >/dev/null 2>&1 &
  prometheus-node-exporter >/dev/null 2>&1 &
  prometheus-alertmanager --config.file=docker/alertmanager/alertmanager.yml --storage.path="$work/alertmanager" \
    --cluster.listen-address= >"$work/alertmanager.log" 2>&1 &
  prometheus --config.file=docker/prometheus/prometheus.yml --storage.tsdb.path="$work/tsdb" \
    --web.listen-address=:9091 >"$work/prometheus.log" 2>&1 &
  firing() { curl -s localhost:9091/api/v1/alerts | jq -r '.data.alerts[] | select(.state == "firing") | .labels.alertname' | sort -u; }
  all_up() { [ "$(curl -s localhost:9091/api/v1/targets | jq '[.data.activeTargets[] | select(.health == "up")] | length')" = 5 ]; }
  wait_until() { # MINUTES WHAT COMMAND...
    local deadline=$((SECONDS + $1 * 60)) what=$2 before=$SECONDS
    shift 2
    until "$@" >/dev/null; do
      [ "$SECONDS" -lt "$deadline" ] || { firing >&2; tail -n 5 "$work"/*.log >&2; fail "$what: not in time"; }
      sleep 5
    done
    echo "$what: after $((SECONDS - before)) s"
  }
  fires() { grep -qx "$1" <<<"$(firing)"; }
  none_firing() { ! grep -qxE 'ChainStalled|WebSocketDown|RpcErrors|BreakerOpen|HeadLag|EthhookDown' <<<"$(firing)"; }
  sent() { grep -F "$1" "$work/slack"; }
  wait_until 2 'all five targets are scraped' all_up
  run "curl -s localhost:9091/api/v1/targets | grep -o '\"lastError\":\"[^\"]*\"'" '"lastError":""'
  wait_until 2 'no alert fires' none_firing
  kill "$node"
  wait_until 12 'the node is stopped: ChainStalled fires' fires ChainStalled
  wait_until 12 'WebSocketDown fires' fires WebSocketDown
  wait_until 2 'Slack is notified' sent ChainStalled
  start_node
  wait_until 12 'the node is back: no alert fires' none_firing
  systemctl stop ethhook
  wait_until 5 'the ingestor is stopped: EthhookDown fires' fires EthhookDown
  wait_until 2 'Slack is notified' sent EthhookDown
  systemctl start ethhook
  wait_until 5 'the ingestor is back: no alert fires' none_firing
  echo "Messages in Slack:"
  cat "$work/slack"
  exit
fi

# ---- The page, the status and Redis agree.
run 'ethhook status' 'All is well\.'
page=$(curl -s localhost:8080/status.json)
jq -e '.ok and .chains[0].endpoints[0].breaker == "closed"' <<<"$page" >/dev/null
for field in number published finalized_number finalized writer writer; do
  if [ -z "${of:-}" ]; then of=$field; continue; fi
  in_redis=$(cursor "$of") on_page=$(jq -r ".chains[0].$field" <<<"$page")
  echo "$of: $in_redis in Redis, $on_page on the page"
  # The chain advances in the meantime.
  case $of in
    writer) [ "$in_redis" = "$on_page" ] || fail "the writer differs" ;;
    *) if [ "$in_redis" -lt "$on_page" ] || [ "$in_redis" -gt $((on_page + 100)) ]; then fail "$of differs"; fi ;;
  esac
  of=
done
curl -s localhost:8080/ | grep -q '<title>EthHook</title>'

# ---- Is the stream still the chain?
run 'ethhook verify --chain ethereum' '^No differences: [0-9]+ blocks'
run 'ethhook verify --chain ethereum --from N --to N' '^No differences: 30 blocks'
# Alters an entry ten blocks below the tip, where no reorg reaches. Entries cannot be changed, so the stream is
# rewritten.
tip=$(cursor number)
# shellcheck disable=SC2016 # Lua
redis eval '
  local entries = redis.call("XRANGE", KEYS[1], "-", "+")
  for i = #entries, 1, -1 do
    local fields = entries[i][2] -- names and values: 4 is block_number, 18 data, 22 removed
    if fields[4] == ARGV[1] and fields[22] == "false" then fields[18] = "0xbad0" break end
  end
  redis.call("DEL", KEYS[1])
  for _, entry in ipairs(entries) do redis.call("XADD", KEYS[1], entry[1], unpack(entry[2])) end
' 1 events:1 $((tip - 10)) >/dev/null
status=0
on_host verify --chain ethereum --from "$((tip - 20))" --to "$tip" >"$work/verify" 2>&1 || status=$?
cat "$work/verify"
[ "$status" -eq 3 ] || fail "verify exited with $status"
grep -q 'data is 0xbad0, the chain has' "$work/verify" || fail "verify did not find the altered entry"
systemctl stop ethhook
on_host rewind --chain ethereum --to "$((tip - 30))" --yes
systemctl start ethhook
until_true "the head" is_ready
on_host verify --chain ethereum --from "$((tip - 20))" --to "$tip"

# ---- Groups, and the commands of the runbooks.
on_host groups create --chain ethereum --group readers --from 50
redis xreadgroup GROUP readers one COUNT 5 STREAMS events:1 '>' >/dev/null
run 'ethhook groups list --chain NAME' 'ethereum readers: [0-9]+ entries to read or acknowledge, 5 of them pending'
run 'redis-cli xinfo groups events:ID' readers
run 'redis-cli xpending events:ID GROUP' '^5$'
run 'redis-cli xinfo consumers events:ID GROUP' one
has_metrics() { curl -s localhost:9090/metrics | grep 'ethhook_entries_lost_unread_total{.*readers'; }
until_true "the group's metrics" has_metrics
for guide in docs/runbooks/*.md; do
  while read -r command; do
    case $command in
      *'Redis lost steps'*) code=1 run "$command" ;; # no match: it has not
      *9091*) ;; # Prometheus, only with --alerts
      curl* | journalctl* | redis-cli\ info* | redis-cli\ ping | redis-cli\ hmget* | redis-cli\ xrange*) run "$command" . ;;
      redis-cli\ xinfo\ stream* | redis-cli\ slowlog* | redis-cli\ --bigkeys | free* | ps* | df*) run "$command" ;;
    esac
  done < <(commands_of "$guide")
done
for_seconds=2 run 'top -b -n 1 | head -20' Tasks
for_seconds=7 run 'redis-cli --latency-history -i 5' .
for_seconds=60 run 'du -xh / --max-depth 2 2>/dev/null | sort -h | tail' /

run 'ethhook clear-alarm --chain NAME' 'no alarm'

# ---- Replay: a separate stream that equals the chain, each entry written once.
contract=$(on_host tail --chain ethereum --from 11 2>/dev/null | { read -r first; jq -r .contract <<<"$first"; })
run 'ethhook replay --chain ethereum --from N --to N --into history:1 --contract 0x…' '^[1-9][0-9]* events published into history:1'
run 'ethhook replay --chain ethereum --from N --to N --into history:1 --contract 0x…' '^0 events published into history:1'
run 'ethhook replay --chain NAME --from N --to M --into lost' '^600 events published into lost, 600 in all'
run 'ethhook replay --chain NAME --from N --to M --into lost' '^0 events published into lost, 600 in all'

# ---- The consumers in examples/: all three get the same sums, equal to those of what `tail` shows.
systemctl stop ethhook
export CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=$top/target/examples
(cd examples/python && ln -sfn "$top/.tools/examples/python" .venv)
(cd examples/node && ln -sfn "$top/.tools/examples/node/node_modules" node_modules)
sums() { redis hgetall "sums:{events:1}:$1" | paste - - | sort; }
# The sums of the transfers in the whole stream.
on_host tail --chain ethereum --from 0 >"$work/tail" 2>/dev/null &
tail=$!
all_shown() { [ "$(wc -l <"$work/tail")" -eq "$(redis xlen events:1)" ]; }
until_true "tail to show all entries" all_shown
kill "$tail"
# shellcheck disable=SC2016 # Python
expected=$(python3 -c '
import collections, json, sys
sums = collections.defaultdict(int)
for line in sys.stdin:
    event = json.loads(line)
    topics, data = event["topics"], event["data"]
    transfer = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    if len(topics) == 3 and topics[0] == transfer and len(data) == 66:
        sums[event["contract"]] += int(data, 16) * (-1 if event["removed"] else 1)
for contract, total in sorted(sums.items()):
    print(contract, total, sep="\t")
' <"$work/tail")
[ "$(wc -l <<<"$expected")" -gt 5 ] || fail "too few sums for a comparison: $expected"
same_sums() { [ "$(sums "$GROUP")" = "$expected" ]; }
set_user reader redis
export REDIS_URL=redis://reader:secret@127.0.0.1:6379
for consumer in 'sums .venv/bin/python consumer.py python' 'node node consumer.mjs node' 'rust cargo run rust'; do
  read -r GROUP consumer <<<"$consumer"
  export GROUP
  (cd "examples/${consumer##* }" && for_seconds=120 run "CHAIN_ID=1 ${consumer% *}") &
  reader=$!
  until_true "the sums of $GROUP to equal the stream's" same_sums
  pkill -TERM -f '[c]onsumer(\.py|\.mjs|-example)'
  wait "$reader" || fail "$GROUP did not exit with 0"
done
unset GROUP
REDIS_URL=redis://127.0.0.1:6379
run "redis-cli -u \"\$REDIS_URL\" HGETALL 'sums:{events:1}:sums'"
unset REDIS_URL

# ---- Upgrade; backup and restore.
run 'sudo cp /usr/local/bin/ethhook /usr/local/bin/ethhook.old'
run 'sudo install -m 755 target/release/ethhook /usr/local/bin/ethhook'
run 'sudo systemctl restart ethhook'
until_true "the head after the upgrade" is_ready
run 'redis-cli config set auto-aof-rewrite-percentage 0' '^OK$'
no_rewrite() { redis info persistence | grep -q aof_rewrite_in_progress:0; }
until_true "the rewrite to end" no_rewrite
run 'redis-cli info persistence | grep aof_rewrite_in_progress' '^aof_rewrite_in_progress:0'
run 'cp -a /var/lib/redis/appendonlydir /var/backups/ethhook-aof'
run 'redis-cli config set auto-aof-rewrite-percentage 100' '^OK$'
backed_up=$(cursor number)
advanced() { [ "$(cursor number)" -gt $((backed_up + 30)) ]; }
until_true "30 more blocks" advanced
run 'systemctl stop ethhook redis-server'
run 'mv /var/lib/redis/appendonlydir /var/lib/redis/appendonlydir.old'
run 'cp -a /var/backups/ethhook-aof /var/lib/redis/appendonlydir'
run 'redis-check-aof /var/lib/redis/appendonlydir/appendonly.aof.manifest' '^All AOF files and manifest are valid'
run 'systemctl start redis-server ethhook'
until_true "the head after the restore" is_ready
on_host verify --chain ethereum

# ---- Move to another Redis with REPLICAOF; the minimal permissions.
mkdir -p "$work/new"
(cd "$work/new" && exec redis-server --port 6380 --appendonly yes --save '' --maxmemory-policy noeviction >/dev/null) &
new() { redis-cli -p 6380 "$@"; }
until_true "the new Redis" new ping
run 'redis-cli -h NEW replicaof OLD 6379' '^OK$'
linked() { new info replication | grep -q master_link_status:up; }
until_true "the copy" linked
run 'redis-cli -h NEW info replication | grep master_link_status' 'master_link_status:up'
systemctl stop ethhook
run 'redis-cli -h NEW replicaof no one' '^OK$'
tip=$(cursor number)
[ "$(new hget 'cursor:{events:1}' number)" = "$tip" ] || fail "the copy has a different cursor"
new xinfo groups events:1 | grep -qx readers || fail "the group was not copied"
set_user ethhook new
sed -i '$a REDIS_URL=redis://ethhook:secret@127.0.0.1:6380' /etc/ethhook/env
systemctl start ethhook
until_true "the head with the new Redis" is_ready
[ "$(new hget 'cursor:{events:1}' number)" -gt "$tip" ] || fail "the cursor in the new Redis does not advance"
on_host verify --chain ethereum
run "redis-cli hget 'cursor:{events:1}' finalized_number" '^[0-9]+$'

# ---- Commands that were not run.
run 'cp .env.example .env'
run 'chmod 600 .env'
run 'nano .env'
run "echo 'vm.overcommit_memory = 1' | sudo tee /etc/sysctl.d/90-redis.conf" 1
run 'redis-cli config set maxmemory 768mb' '^OK$'
missing=$(sort -u "$work/commands" | grep -Ev "$ELSEWHERE" | grep -vxF -f "$work/done" || true)
[ -z "$missing" ] || fail "commands that were not run:"$'\n'"$missing"
elsewhere=$(sort -u "$work/commands" | grep -Ec "$ELSEWHERE")
printf '\nPassed: ran %s commands of the guides; %s others need Docker, a droplet or the kernel, or are run elsewhere.\n' \
  "$(sort -u "$work/done" | wc -l)" "$elsewhere"
