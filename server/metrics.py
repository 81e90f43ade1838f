"""What the agency's supervisor tells a monitor: processes, runs, institutions, certificates. See docs/monitoring.md.

Names of runs and institutions stand in it, and figures that `rounds.jsonl` has; nothing of records.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import GaugeMetricFamily

from sovfed import __version__
from sovfed.federation.errors import SovfedError
from sovfed.federation.host.processes import read_status
from sovfed.federation.host.watch import process_metrics
from sovfed.federation.identity import load_certificate, parse_certificate
from sovfed.federation.revocation import load_crl
from sovfed.server.home import load_settings
from sovfed.server.orders.purging import unpurged
from sovfed.server.registry.enrolment import members, waiting_requests
from sovfed.server.rounds.ledger_heads import behind
from sovfed.server.runs.attendance import missed_by
from sovfed.server.runs.awaiting import nodes_of, read_awaiting
from sovfed.server.runs.control import ControlClient
from sovfed.server.runs.curves import ROUNDS, read_rounds
from sovfed.server.runs.folders import ACTIVE, STATE, read_runs, run_folder

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sovfed.server.runs.control import NodeRecord

RUNS: Final = 20  # that are told of, the newest beside the active ones
STATUSES: Final = ("starting", "running", "interrupted", "stopping", "finished", "failed", "stopped", "damaged")


def agency_metrics(home: Path) -> Iterator[Metric]:
    """All that there is to tell of the agency in `home`; what cannot be read is left out."""
    yield from process_metrics(read_status(home), __version__)
    with ControlClient(home, load_settings(home).server.control_port) as control:
        nodes = nodes_of(control)
    runs = read_runs(home)
    yield from _certificates(home)
    yield from _institutions(home, nodes, runs)
    name, permits = "sovfed_permits_unpurged", len([*unpurged(home, time.time())])
    yield GaugeMetricFamily(name, "Permits that have ended and are not purged here.", permits)
    yield from _runs(home, [run for number, run in enumerate(runs) if number < RUNS or run["status"] in ACTIVE])


def _certificates(home: Path) -> Iterator[Metric]:
    ends = GaugeMetricFamily("sovfed_certificate_end_seconds", "When a certificate ends, Unix time.", labels=["holder"])
    with contextlib.suppress(SovfedError, OSError):
        ends.add_metric(["server"], _unix(load_certificate(home / "identity" / "cert.pem").not_valid_after_utc))
    for member in members(home):
        certificate = parse_certificate(member.certificate, member.institution)
        ends.add_metric([member.institution], _unix(certificate.not_valid_after_utc))
    yield ends
    with contextlib.suppress(SovfedError, OSError):
        until = load_crl(home / "identity" / "crl.pem").next_update_utc
        if until is not None:
            name = "sovfed_revocation_list_end_seconds"
            yield GaugeMetricFamily(name, "When the revocation list ends, and all trust with it.", _unix(until))


def _institutions(home: Path, nodes: list[NodeRecord] | None, runs: list[dict[str, Any]]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("sovfed_enrolment_requests", "Requests that wait for the authority.")
    waiting.add_metric([], len(waiting_requests(home)))
    yield waiting
    rolled_back = GaugeMetricFamily(
        "sovfed_institution_ledger_behind", "1: its privacy ledger lacks a head that it signed.", labels=["institution"]
    )
    for name in behind(home):
        rolled_back.add_metric([name], 1)
    yield rolled_back
    if nodes is None:
        return
    online = GaugeMetricFamily("sovfed_institution_online", "1: its SuperNode is connected.", labels=["institution"])
    missed = GaugeMetricFamily(
        "sovfed_institution_rounds_missed", "Rounds since it took part, of the running run.", labels=["institution"]
    )
    rounds = [read_rounds(run_folder(home, run["name"])) for run in runs if run["status"] == "running"]
    for node in (node for node in nodes if node.status != "unregistered"):
        online.add_metric([node.name], float(node.status == "online"))
        missed.add_metric([node.name], max((missed_by(lines, node.name) for lines in rounds), default=0))
    yield from (online, missed)


def _runs(home: Path, runs: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["run"]
    status = GaugeMetricFamily("sovfed_run_status", "1 for the status that it has.", labels=["run", "status"])
    done = GaugeMetricFamily("sovfed_run_rounds_done", "Rounds that are done.", labels=labels)
    planned = GaugeMetricFamily("sovfed_run_rounds", "Rounds that are asked for.", labels=labels)
    progress = GaugeMetricFamily("sovfed_run_progress_seconds", "Its last round, or start; Unix time.", labels=labels)
    deadline = GaugeMetricFamily("sovfed_run_round_deadline_seconds", "Longest wait for a round.", labels=labels)
    took_part = GaugeMetricFamily("sovfed_run_participants", "Institutions in its last round.", labels=labels)
    refused = GaugeMetricFamily("sovfed_run_refusals", "Refusals in its last round, or now.", labels=["run", "code"])
    awaited = GaugeMetricFamily("sovfed_run_awaited", "Institutions that it waits for now.", labels=labels)
    seconds = GaugeMetricFamily("sovfed_run_round_seconds", "Seconds of its last round.", labels=labels)
    epsilon = GaugeMetricFamily("sovfed_run_epsilon", "ε that a private run is planned for.", labels=labels)
    for run in runs:
        name, folder = run["name"], run_folder(home, run["name"])
        for each in STATUSES:
            status.add_metric([name, each], float(run["status"] == each))
        done.add_metric([name], run["rounds_done"])
        planned.add_metric([name], run["rounds"])
        progress.add_metric([name], _last_progress(folder, run))
        deadline.add_metric([name], run["round_deadline_s"])
        took_part.add_metric([name], run["institutions"])
        if run["epsilon"] is not None:
            epsilon.add_metric([name], run["epsilon"])
        awaiting = read_awaiting(folder) if run["status"] == "running" else None
        awaited.add_metric([name], len(awaiting.missing) if awaiting else 0)
        lines = read_rounds(folder)
        if lines:
            seconds.add_metric([name], lines[-1]["seconds"])
        codes = awaiting.refused if awaiting else lines[-1]["refused"] if lines else {}
        for code in sorted(set(codes.values())):
            refused.add_metric([name, code], sum(told == code for told in codes.values()))
    yield from (status, done, planned, progress, deadline, took_part, refused, awaited, seconds, epsilon)


def _last_progress(folder: Path, run: dict[str, Any]) -> float:
    times = [float(run["started"])]
    for name in (ROUNDS, STATE):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return min(max(times), time.time())


def _unix(moment: datetime) -> float:
    return moment.astimezone(UTC).timestamp()
