#!/usr/bin/env bash
# A federation of five from nothing, by the commands of docs/join.md and docs/operations.md, and a power cut in mid-run.
# Prints a transcript: who types what, and what is answered. Some minutes; all of it lies in a new folder under /tmp.
#   examples/from_nothing.sh > transcript.txt          (sovfed[server] is installed; SOVFED names another command)
set -euo pipefail
sovfed=${SOVFED:-sovfed}
[[ $sovfed != */* ]] || sovfed=$(realpath "$sovfed")
folder=$(mktemp -d "${TMPDIR:-/tmp}/five-XXXX")
cd "$folder"
five=(hospital-1 hospital-2 hospital-3 hospital-4 hospital-5)
coming=()

types() { # types WHO COMMAND…: show it as somebody types it, and do it
    local who=$1
    shift
    printf '%s$ %s\n' "$who" "$*"
    "${@/#sovfed/$sovfed}" 2>&1
}

everything() { # the ids of all processes of this federation
    pgrep --full -- "$folder" | grep -vx $$ || true
}

end() {
    everything | xargs --no-run-if-empty kill -9 2>/dev/null || true
    rm -rf "$folder"
}
trap end EXIT

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in held))
PYTHON
}

read -r fleet enrolment lane control < <(free_ports 4)
ports=("server.fleet_port=$fleet" "server.enrolment_port=$enrolment" "server.lane_port=$lane" "server.control_port=$control")

echo "# The authority and the agency, from nothing"
types authority sovfed authority init authority --name health.example
types agency sovfed server init --home agency server.host=127.0.0.1 "server.crl_source=$folder/authority/crl.pem" "${ports[@]}"
types authority sovfed authority sign agency/identity/server.csr --server --out server.pem --home authority --yes
types agency sovfed server certificate server.pem authority/root.pem authority/crl.pem --home agency
types agency sovfed server up --detach --home agency

echo "# Five institutions: one command of the agency and one of theirs for each"
come_in() { # come_in NAME: both sides at the same time, each on a screen of its own
    types agency sovfed server admit "$1" --yes --home agency >"$1.agency" &
    until [[ -s $1.invitation ]]; do sleep 0.2; done
    types "$1" sovfed client join "$1.invitation" --data breast_cancer data.sites=5 "data.site=$((${1#hospital-} - 1))" \
        --without-privacy --yes --home "$1" >"$1.own"
    wait $!
}
for name in "${five[@]}"; do come_in "$name" & coming+=($!); done
for number in "${!five[@]}"; do
    wait "${coming[$number]}"
    cat "${five[$number]}.agency" "${five[$number]}.own"
done
types agency sovfed server status --home agency

echo "# A run"
types agency sovfed run start run_name=study task=breast_cancer rounds=40 task.local_epochs=20 \
    server.min_cohort=5 server.start_cohort=5 --no-follow --home agency
until [[ $(grep --count . agency/runs/study/rounds.jsonl 2>/dev/null || true) -ge 15 ]]; do sleep 0.2; done

echo "# The power fails: every process of everybody is killed at once"
everything | xargs kill -9 || true
sleep 1
types agency sovfed run show study --home agency

echo "# The machines start. Their init systems do this (\`install-service\`), and nobody types anything about the run"
types agency sovfed server up --detach --home agency
starting=()
for name in "${five[@]}"; do types "$name" sovfed client up --detach --home "$name" >"$name.up" & starting+=($!); done
wait "${starting[@]}"
cat hospital-?.up
until grep --quiet '"status": "\(finished\|failed\|stopped\)"' agency/runs/study/run.json; do sleep 0.5; done
types agency sovfed run show study --home agency

echo "# Each round once"
python3 -c 'import json; rounds = [json.loads(line)["round"] for line in open("agency/runs/study/rounds.jsonl")]
print(len(rounds), "rounds,", len(set(rounds)), "different, 1 to", max(rounds))'
