#!/usr/bin/env bash
# From nothing to a federation of five, a run, and every process killed in the middle of it: docs/from-nothing.md.
#   examples/from_nothing.sh > transcript.txt     sovfed[server] is installed; some minutes, all in a new folder
# SOVFED names another command, FOLDER another place: not in /tmp, which a service does not see.
set -euo pipefail
sovfed=$(realpath "$(command -v "${SOVFED:-sovfed}")")
folder=$(mktemp -d "${FOLDER:-$HOME}/five-XXXX")
cd "$folder"
mkdir bin units
export PATH="$folder/bin:$(dirname "$sovfed"):$PATH" UNITS="$folder/units" COLUMNS=100
five=(hospital-1 hospital-2 hospital-3 hospital-4 hospital-5)

# Stands for systemd: keeps which units are enabled, starts what they say, returns once it runs.
cat >bin/systemctl <<'SYSTEMCTL'
#!/usr/bin/env bash
unit="$UNITS/${2:-}"
case $1 in
    enable) touch "$unit.enabled" ;;
    restart)
        home=$(sed -n 's/^WorkingDirectory=//p' "$unit")
        setsid $(sed -n 's/^ExecStart=//p' "$unit") </dev/null >>"$unit.log" 2>&1 &
        until grep -qs '"ready"' "$home/status.json" && ! grep -q '"starting"' "$home/status.json"; do sleep 0.2; done ;;
esac
SYSTEMCTL
chmod +x bin/systemctl

says() { sed -u "s|$folder|/srv/five|g; s|$(dirname "$sovfed")/||g"; }

types() { # types WHO COMMAND…: show it as somebody types it, and do it
    local shown=("${@:2}")
    for word in "${!shown[@]}"; do [[ ${shown[word]} != *" "* ]] || shown[word]="\"${shown[word]}\""; done
    printf '%s$ %s\n' "$1" "${shown[*]}" | says | fold -sw 108 | sed '$!s/ $/ \\/; 2,$s/^/    /'
    "${@:2}" 2>&1 | says
}

step() { # step TEXT: a heading, with the seconds since the beginning
    printf '\n# %s (%d s)\n' "$1" "$SECONDS"
}

everything() { # the ids of all processes of this federation, those of coordinators too
    local ids
    ids=$(grep -hos '"pid": [0-9]*' ./*/status.json | grep -o '[0-9]*$' || true)
    while [[ -n $ids ]]; do
        echo "$ids"
        ids=$(ps -o pid= --ppid "$(tr -d ' ' <<<"$ids" | paste -sd,)" || true)
    done
}

end() {
    everything | sort -u | xargs --no-run-if-empty kill -9 2>/dev/null || true
    rm -rf "$folder"
}
trap end EXIT

ports=$(python3 - <<'PYTHON'
import socket
names = ("fleet", "enrolment", "lane", "control")
held = [socket.create_server(("127.0.0.1", 0)) for _ in names]
print(*(f"server.{name}_port={each.getsockname()[1]}" for name, each in zip(names, held)))
PYTHON
)

step "The authority and the agency"
types authority sovfed authority init authority --name "Health Authority"
types agency sovfed server init --home agency server.host=127.0.0.1 $ports
types authority sovfed authority sign agency/identity/server.csr --server --out server.pem --home authority --yes
types agency sovfed server certificate server.pem authority/root.pem authority/crl.pem --home agency
types agency sovfed server install-service --home agency --folder units
root=$(sovfed server fingerprint --home agency | grep -o '[0-9a-f]\{64\}' | tail -1)

step "Each institution: one command of the agency, one of its own"
come_in() { # come_in NAME NUMBER: both at the same time, each on a screen of its own
    types agency sovfed server admit "$1" --authority authority --yes --home agency >"$1.agency" &
    until [[ -s $1.invitation ]]; do sleep 0.2; done
    types "$1" sovfed client join "$1.invitation" --data breast_cancer data.sites=5 "data.site=$2" --without-privacy \
        --authority "$root" --service --service-folder units --home "$1" >"$1.own"
    wait $!
}
for number in "${!five[@]}"; do come_in "${five[$number]}" "$number"; done
cat hospital-1.agency hospital-1.own
for name in "${five[@]:1}"; do grep --no-filename '\$ ' "$name.agency" "$name.own"; tail -1 "$name.own"; done
types agency sovfed server status --home agency

step "A run"
types agency sovfed run start run_name=study task=breast_cancer rounds=60 task.local_epochs=20 \
    server.start_cohort=5 --no-follow --home agency
until [[ $(grep --count . agency/runs/study/rounds.jsonl 2>/dev/null || true) -ge 15 ]]; do sleep 0.1; done

step "The power fails: every process of everybody is killed at once"
everything | sort -u >killed
xargs kill -9 <killed 2>/dev/null || true
echo "$(wc -l <killed) processes killed"
types agency sovfed run show study --home agency || true
rm -f ./*/status.json

step "The machines start, and with them what systemd has enabled. Nobody types anything until the run is over"
for unit in units/*.enabled; do
    unit=$(basename "$unit" .enabled)
    echo "systemd: starts $unit"
    systemctl restart "$unit" &
done
wait
until grep --quiet '"status": "\(finished\|failed\|stopped\)"' agency/runs/study/run.json; do sleep 0.5; done
step "The run has come to its end by itself"
types agency sovfed run show study --home agency
types agency sovfed run check study --home agency
python3 - <<'PYTHON'
import json
rounds = [json.loads(line)["round"] for line in open("agency/runs/study/rounds.jsonl")]
print(len(rounds), "rounds,", len(set(rounds)), "different, 1 to", max(rounds))
PYTHON
