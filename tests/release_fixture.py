"""A federation whose agency has a finished run: real homes, keys, registry, logs and model; nothing was trained."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509

from sovfed.clients.node.agency import mutual_channel
from sovfed.clients.node.heads import Exchange
from sovfed.federation.archive import zipped
from sovfed.federation.compose import compose
from sovfed.federation.config import Config, stored
from sovfed.federation.evidence.store import record
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.answers import CONSENTED, SIGNED, Answer, create_officer, load_officer
from sovfed.federation.orders.beginning import Beginning
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.order import Proposal
from sovfed.federation.release import sealed
from sovfed.federation.release.checking import ENVELOPE, MAX_BYTES, read_release
from sovfed.federation.release.standalone import write_verifier
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.tasks.registry import get_task
from sovfed.server.orders.making import NEW, make_order, write_answers, write_order
from sovfed.server.rounds.loop import whole_run
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

    def copied(self, folder: Path) -> Released:
        """The same federation in another `folder`."""
        shutil.copytree(self.agency.home.parent, folder)
        agency = Agency(folder / self.agency.authority.name, folder / self.agency.home.name)
        return Released(agency, [folder / home.name for home in self.homes], agency.home / "runs" / RUN)

    def cosign(self, *homes: Path) -> None:
        """Have the institutions in `homes` cosign the agency's log."""
        with self.agency.run() as where:
            for home in homes:
                with mutual_channel(home, where.lane, None) as channel:
                    Exchange(home).once(channel)


def finished_run(folder: Path, *overrides: str, names: tuple[str, ...] = NAMES, begins: Beginning = NEW) -> Released:
    """The federation, in `folder`; the run `begins` with that model."""
    agency = make_agency(folder)
    homes = [folder / name for name in names]
    with agency.run():
        for home, name in zip(homes, names, strict=True):
            agency.enrol(home, name)
            record(home, "policy", policy="00")
    config = compose(["task=digits_linear", f"rounds={ROUNDS}", "server.min_cohort=3", *overrides]).config
    run = private_directory(private_directory(agency.home / "runs") / RUN)
    state = {"name": RUN, "flower_run_id": 1, "started": 1.0, "config": stored(config), "status": "finished"}
    write_private(run / "run.json", json.dumps({**state, "reason": "", "at": 2.0}).encode())
    log, lines = RunLog(agency.home, RUN, "1"), [_line(number, names) for number in range(1, ROUNDS + 1)]
    log.begin(config, resume=False)
    _ordered(agency.home, run, config, homes, log, begins)
    for line in lines:
        log.round(line)
        for home in homes:
            record(home, "round", run="1", request="train", round=line["round"])
    write_private(run / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    task = get_task("digits_linear")
    summary: dict[str, Any] = {
        "rounds": ROUNDS, "strategy": "fedavg", "institutions": list(names), "transport": "stream", "epsilon": None,
        "metrics": {"accuracy": 0.875}, "metrics_by_institution": {}, "attendance": {}, "model_of_round": ROUNDS,
        "secure_aggregation": True, "secure_aggregation_details": "on, cohort 2 of 2, threshold 2",
        "secure_aggregation_terms": {
            "cohort": 3, "roster": 3, "threshold": 2, "bits": config.secagg.bits, "clip": config.secagg.clip,
            "max_weight": config.secagg.max_weight,
        },
        "config": stored(config), "delivered_to": list(names),
        **({"started_from_sha256": file} if (file := begins.file) else {}),
    }  # fmt: skip
    vector = np.linspace(-1, 1, task.parameters, dtype=np.float32)
    summary[DIGEST] = publish(run, task, vector, task.transform.public_scale, summary)
    write_private(run / SUMMARY, json.dumps(summary).encode())
    log.model(summary)
    log.end("finished")
    return Released(agency, homes, run)


def _ordered(agency: Path, run: Path, config: Config, homes: list[Path], log: RunLog, begins: Beginning) -> None:
    """The run's order: an officer of the first institution has signed it, the second consented in advance."""
    task, identity = get_task("digits_linear"), load_identity(agency / "identity")
    order = make_order(config, RUN, whole_run(config, task, "1", RUN, None), time.time(), begins=begins)
    write_order(run, Proposal(order).signed(identity.certificate, identity.sign(order.proposal_message)))
    tell(agency, OrderEvent("proposed", order.digest, RUN))
    answers = {home.name: word_of(home, order.digest, home.name, officer=home == homes[0]) for home in homes}
    log.answers(order.digest, write_answers(run, answers))


def word_of(home: Path, digest: str, name: str, decision: str = "", *, officer: bool) -> bytes:
    """What institution `name` says to the order of `digest`, as its node passes it on."""
    node = load_identity(home / "identity")
    if not officer:
        return Answer(digest, name, decision or CONSENTED).by_node(node).to_bytes()
    if not (home / "ito.pem").exists():
        create_officer(home / "ito.pem")
    public, sign = load_officer(home / "ito.pem", bytes)
    signed = Answer(digest, name, decision or SIGNED, "ito", key=public).signed(sign)
    return signed.vouched_by(node).to_bytes()


def _line(number: int, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "round": number, "participants": list(names), "refused": {"hospital-3": "policy"}, "late": [], "left_out": [],
        "attempts": 1, "metrics": {"accuracy": 0.6875 + number / 16},
    }  # fmt: skip


def resealed(federation: Released, bundle: bytes, files: Mapping[str, bytes] | None = None, **changes: object) -> bytes:
    """The release with another statement and other files, which the agency itself has signed."""
    _, _, statement = read_release(bundle)
    whole = {**zipped.read(bundle, most=MAX_BYTES), **(files or {})}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in whole.items() if name != ENVELOPE}
    payload = sealed.statement(digests, {**statement["predicate"], **changes})
    return sealed_by_the_agency(federation, whole, payload)


def sealed_by_the_agency(federation: Released, files: Mapping[str, bytes], payload: bytes) -> bytes:
    envelope = sealed.Envelope(payload, (sealed.sign(payload, federation.agency.home),))
    return zipped.write({**files, ENVELOPE: envelope.to_bytes()}, most=MAX_BYTES)


def verified_bare(bundle: bytes, root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`sovfed verify`, as `sovfed verifier` wrote it into `folder`, by a Python that has `cryptography` alone.

    Beside it are what `cryptography` itself needs.
    """
    packages, verifier = folder / "packages", folder / "verify.pyz"
    packages.mkdir()
    for name in ("cryptography", "cffi", "pycparser"):
        (packages / name).symlink_to(Path(str(importlib.import_module(name).__file__)).parent)
    for backend in (packages / "cffi").resolve().parent.glob("_cffi_backend*.so"):
        (packages / backend.name).symlink_to(backend)
    write_verifier(verifier)
    (folder / "x.release").write_bytes(bundle)
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(packages)!r}); runpy.run_path({str(verifier)!r}, None, '__main__')"
    )
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    words = [str(folder / "x.release"), "--root", str(root)]
    return subprocess.run([str(python), "-I", "-S", "-c", code, *words], capture_output=True, text=True, check=False)


def verified_foreign(bundle: bytes, folder: Path) -> int | None:
    """The exit code of OpenSSF model-signing over the model in `bundle`; None where it is not installed.

    SOVFED_MODEL_SIGNING names a Python that has it: its dependencies need not be ours.
    """
    program = os.environ.get("SOVFED_MODEL_SIGNING", "")
    if not program and importlib.util.find_spec("model_signing") is None:
        return None
    for name, content in zipped.read(bundle, most=MAX_BYTES).items():
        path = folder / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = [program or sys.executable, "-m", "model_signing", "verify", "key", str(folder / "x" / "model")]
    command += ["--signature", str(folder / "x" / "model.sig"), "--public_key", str(folder / "x" / "agency.pub")]
    return subprocess.run(command, check=False, capture_output=True).returncode
