"""A federation whose agency has a finished run: real homes, keys, registry, logs and model; nothing was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509

from sovfed.clients.node.agency import mutual_channel
from sovfed.clients.node.heads import Exchange
from sovfed.federation.compose import compose
from sovfed.federation.config import stored
from sovfed.federation.evidence.store import record
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import load_roots
from sovfed.federation.tasks.registry import get_task
from sovfed.server.runs.logged import RunLog
from sovfed.server.runs.release import DIGEST, SUMMARY, publish
from tests.enrolment_fixture import Agency, make_agency

NAMES = ("hospital-1", "hospital-2")
RUN = "digits-1"
ROUNDS = 3


@dataclass
class Released:
    """The agency, its institutions' homes, and the run's folder."""

    agency: Agency
    homes: list[Path]
    folder: Path

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return load_roots(self.agency.authority / "root.pem")

    def cosign(self, *homes: Path) -> None:
        """Have the institutions in `homes` cosign the agency's log."""
        with self.agency.run() as where:
            for home in homes:
                with mutual_channel(home, where.lane, None) as channel:
                    Exchange(home).once(channel)


def finished_run(folder: Path, *overrides: str) -> Released:
    """The federation, in `folder`."""
    agency = make_agency(folder)
    homes = [folder / name for name in NAMES]
    with agency.run():
        for home, name in zip(homes, NAMES, strict=True):
            agency.enrol(home, name)
            record(home, "policy", policy="00")
    config = compose(["task=digits_linear", f"rounds={ROUNDS}", "server.min_cohort=3", *overrides]).config
    run = private_directory(private_directory(agency.home / "runs") / RUN)
    state = {"name": RUN, "flower_run_id": 1, "started": 1.0, "config": stored(config), "status": "finished"}
    write_private(run / "run.json", json.dumps({**state, "reason": "", "at": 2.0}).encode())
    log, lines = RunLog(agency.home, RUN, "1"), [_line(number) for number in range(1, ROUNDS + 1)]
    log.begin(config, resume=False)
    for line in lines:
        log.round(line)
    write_private(run / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    task = get_task("digits_linear")
    summary: dict[str, Any] = {
        "rounds": ROUNDS, "strategy": "fedavg", "institutions": list(NAMES), "transport": "stream", "epsilon": None,
        "metrics": {"accuracy": 0.875}, "metrics_by_institution": {}, "attendance": {}, "model_of_round": ROUNDS,
        "secure_aggregation": True, "secure_aggregation_details": "on, cohort 2 of 2, threshold 2",
        "config": stored(config), "delivered_to": list(NAMES),
    }  # fmt: skip
    vector = np.linspace(-1, 1, task.parameters, dtype=np.float32)
    summary[DIGEST] = publish(run, task, vector, task.transform.public_scale, summary)
    write_private(run / SUMMARY, json.dumps(summary).encode())
    log.model(summary)
    log.end("finished")
    return Released(agency, homes, run)


def _line(number: int) -> dict[str, Any]:
    return {
        "round": number, "participants": list(NAMES), "refused": {"hospital-3": "policy"}, "late": [], "left_out": [],
        "attempts": 1, "metrics": {"accuracy": 0.6875 + number / 16},
    }  # fmt: skip
