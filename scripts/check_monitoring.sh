#!/usr/bin/env bash
# Checks the monitoring: Prometheus' configuration and rules, with their tests, and Alertmanager's
# configuration and templates. That the metrics exist is tested with the service itself, in
# crates/app/tests/end_to_end/monitoring.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/install.sh
. scripts/install.sh

fail() {
  printf 'check_monitoring.sh: %s\n' "$*" >&2
  exit 1
}

need_unpacked promtool prometheus
need_unpacked amtool prometheus-alertmanager

promtool check config docker/prometheus/prometheus.yml
promtool test rules docker/prometheus/tests/*.yml

# Each alert has a runbook and two tests; each runbook has an alert.
alerts=$(sed -n 's/^      - alert: //p' docker/prometheus/rules/*.yml | sort)
for alert in $alerts; do
  page=docs/runbooks/$alert.md
  grep -qx "# $alert" "$page" || fail "$page is missing, or its title is wrong"
  grep -qF "[$alert]($alert.md)" docs/runbooks/README.md || fail "docs/runbooks/README.md lacks $alert"
  grep -qF "runbook: $page" docker/prometheus/rules/*.yml || fail "$alert does not name $page"
  for does in fires "is silent"; do
    grep -qF -- "- name: $alert $does " docker/prometheus/tests/*.yml || fail "no test named '$alert $does …'"
  done
done
pages=$(basename --suffix .md docs/runbooks/[A-Z]*[a-z].md | grep -vx README | sort)
[ "$alerts" = "$pages" ] || fail "docs/runbooks has a runbook without an alert"
echo "ok -- $(wc -w <<<"$alerts") alerts, each with a runbook and two tests"

amtool check-config docker/alertmanager/alertmanager.yml
route() { amtool config routes test --config.file docker/alertmanager/alertmanager.yml "$@" 2>/dev/null; }
[ "$(route severity=page chain=base)" = page ] || fail "a page is not routed to PagerDuty"
[ "$(route severity=warn chain=base)" = warn ] || fail "a warning is not routed to Slack only"

rendered() { # TEMPLATE STATUS
  amtool template render --template.glob='docker/alertmanager/templates/*.tmpl' \
    --template.text="{{ template \"ethhook.$1\" . }}" --template.data=<(cat <<JSON
{
  "status": "$2",
  "groupLabels": { "alertname": "ChainStalled", "chain": "base" },
  "commonLabels": { "severity": "page" },
  "alerts": [{
    "status": "$2",
    "annotations": { "summary": "S.", "description": "D.", "runbook": "R.md" },
    "startsAt": "2026-01-01T00:00:00Z",
    "endsAt": "2026-01-01T00:10:00Z"
  }]
}
JSON
    )
}
expect() { # TEMPLATE STATUS TEXT
  local text
  text=$(rendered "$1" "$2" | sed '/^$/d')
  [ "$text" = "$3" ] || fail "ethhook.$1 of a $2 alert is '$text', not '$3'"
}
expect title firing 'PAGE: ChainStalled (base)'
expect title resolved 'resolved: ChainStalled (base)'
expect text firing 'S. D. Since 2026-01-01 00:00:00 UTC. What to do: R.md'
expect text resolved 'Resolved at 2026-01-01 00:10:00 UTC: S.'
expect color firing danger
expect color resolved good
echo "ok -- alert routes and templates"
