"""An agency's home with a past: institutions, runs, a request that waits. Made up, as a demonstration has it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from tests.server.agency import free_port

from sovfed.federation.certificates import InstitutionNames, create_csr, create_key, to_pem
from sovfed.federation.compose import compose
from sovfed.federation.config import stored
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import node_key_bytes, node_key_digest
from sovfed.server import home as agency
from sovfed.server.registry import authority, enrolment

NAMES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")


def make_seen_home(folder: Path, *overrides: str) -> Path:
    """The home, with its certificate and NAMES enrolled; `hospital-5` has sent its request."""
    ports = (f"server.{name}={free_port()}" for name in ("fleet_port", "enrolment_port", "lane_port", "control_port"))
    config = compose(["server.names=[localhost,127.0.0.1]", *ports, *overrides]).config
    home = folder / "agency"
    authority.init(folder / "authority", "Ministry of Health")
    request = agency.init(home, config)
    certificate = authority.sign(folder / "authority", request.read_bytes(), server=True)
    root, crl = ((folder / "authority" / name).read_bytes() for name in ("root.pem", "crl.pem"))
    agency.install_certificate(home, certificate, root, crl)
    for number, name in enumerate(NAMES):
        csr = apply(home, name)
        days = 10 if name == "hospital-4" else 300
        signed = authority.sign(folder / "authority", csr, days=days)
        enrolment.accept_certificate(home, signed, lambda _key, _name, number=number: number + 1)  # type: ignore[misc]
    apply(home, "hospital-5")
    return home


def apply(home: Path, name: str) -> bytes:
    """The certificate request of `name`, sent with an invitation's token."""
    key, node_key = create_key(), ec.generate_private_key(ec.SECP384R1())
    csr = to_pem(create_csr(key, InstitutionNames(name, node_key_digest(node_key.public_key()))))
    from cryptography.hazmat.primitives import hashes

    signature = node_key.sign(csr, ec.ECDSA(hashes.SHA256()))
    public_key = node_key_bytes(node_key.public_key())
    enrolment.submit(home, enrolment.invite(home, name).token, csr, public_key, signature)
    return csr


def add_run(home: Path, name: str, status: str, rounds: int, *overrides: str, reason: str = "", **changes: Any) -> Path:
    """A run of `rounds` rounds out of 20, which is `status`; `changes` are put into every line of its rounds."""
    small = ("server.min_cohort=3", "privacy.colluders=0")
    config = compose(["task=breast_cancer", "rounds=20", *small, *overrides]).config
    folder = private_directory(private_directory(home / "runs") / name)
    started = time.time() - 600.0
    state = {"name": name, "flower_run_id": 1, "started": started, "config": stored(config), "at": started}
    write_private(folder / "run.json", json.dumps({**state, "status": status, "reason": reason}).encode())
    lines = [{**line(number), **changes} for number in range(1, rounds + 1)]
    write_private(folder / "rounds.jsonl", "".join(json.dumps(each) + "\n" for each in lines).encode())
    if status == "finished":
        summary: dict[str, Any] = {
            "metrics": {"auc": 0.991, "accuracy": 0.962}, "epsilon": None, "model_sha256": "5f2c" * 16,
            "delivered_to": list(NAMES[:3]), "privacy": {},
        }  # fmt: skip
        if config.privacy.private:
            summary |= {"metrics": {}, "epsilon": config.privacy.epsilon, "delta": 1e-6}
        write_private(folder / "summary.json", json.dumps(summary).encode())
    return folder


def line(number: int) -> dict[str, Any]:
    """A round that three of four take part in."""
    decay, refused = math.exp(-number / 6), {"hospital-4": "privacy"} if number % 5 == 0 else {}
    return {
        "round": number, "participants": list(NAMES[:3]), "refused": refused,
        "spoilt": 0, "attempts": 1, "count": 400, "train_loss": 0.08 + 0.6 * decay,
        "metrics": {"auc": 0.99 - 0.3 * decay, "accuracy": 0.96 - 0.3 * decay, "loss": 0.1 + 0.6 * decay},
        "seconds": 0.4 + 0.1 * math.sin(number), "seconds_compute": 0.3, "seconds_aggregate": 0.02,
        "overhead_seconds": 0.1, "bytes_down": 10_000, "bytes_up": 10_000,
    }  # fmt: skip


def with_refusal(home: Path, folder: Path, text: str) -> None:
    """Have the run in `folder` tell `text` as its reason and as an institution's code: what a page must escape."""
    state = json.loads((folder / "run.json").read_text())
    write_private(folder / "run.json", json.dumps({**state, "reason": text}).encode())
    hostile = {**line(99), "participants": [text], "refused": {text: text}}
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(hostile) + "\n")


def changed_settings(home: Path, **changes: Any) -> None:
    """Write `changes` into the server's settings of `home`."""
    settings = agency.load_settings(home)
    changed = dataclasses.replace(settings, server=dataclasses.replace(settings.server, **changes))
    write_private(home / agency.SETTINGS, json.dumps(dataclasses.asdict(changed)).encode())
