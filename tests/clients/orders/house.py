"""An agency, its people, and institutions with real certificates, whose trainers hold messages to orders."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.server.agency import Authority, make_home, make_institution

from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.gate import OrderGate
from sovfed.clients.orders.rules import DataPermit, OrderRules
from sovfed.federation.archive.signer import SigningKey, create_signer, install_signer, load_signer
from sovfed.federation.certificates import sign_csr, to_pem
from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.files import private_directory, write_atomic
from sovfed.federation.identity import Trust
from sovfed.federation.messages import RunRequest, TrainRequest
from sovfed.federation.orders.answers import SIGNED, Answer, create_officer, load_officer
from sovfed.federation.orders.order import Proposal
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.secagg.keys import Identity
from sovfed.federation.sums import FORMS
from sovfed.federation.tasks.registry import get_task
from sovfed.server.orders.making import make_order
from sovfed.server.rounds.agreement import run_request
from sovfed.server.rounds.loop import NOTHING

TASK = get_task("breast_cancer")
MODEL = np.zeros(TASK.parameters, np.float32)
SCALE = np.repeat([-0.5, 0.5], TASK.transform.size)


class House:
    """One authority and what it certified, in `folder`; `now` is everybody's clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority, self.now = folder, Authority(), time.time()
        self.agency: Identity = load_identity(make_home(self.authority, folder / "agency") / "identity")

    def home(self, name: str) -> Path:
        """The home of institution `name`."""
        home = private_directory(self.folder / name)
        if not (home / "identity" / "cert.pem").exists():
            make_institution(self.authority, home / "identity", name)
            write_atomic(home / "identity" / "crl.pem", self.authority.crl())
        return home

    def officer(self, name: str, officer: str = "ito") -> tuple[str, Callable[[bytes], bytes]]:
        """An officer's public key and signer."""
        path = self.home(name) / f"{officer}.pem"
        if not path.exists():
            create_officer(path)
        return load_officer(path, bytes)

    def gate(
        self, name: str, rules: OrderRules, permits: dict[str, DataPermit] | None = None,
        forms: Mapping[str, int] = FORMS,
    ) -> OrderGate:  # fmt: skip
        """The gate of institution `name` as its trainer starts it, of a version that adds up in these `forms`."""
        identity = self.home(name) / "identity"
        return OrderGate(
            OrderBook(self.home(name)).make(), rules, permits or {}, lambda: load_identity(identity),
            lambda: Trust(identity), lambda: self.now, forms,
        )  # fmt: skip

    def required(self, name: str, **more: Any) -> OrderRules:
        """The rules of an institution whose officer signs each order."""
        return OrderRules(mode="required", officers=(f"ito={self.officer(name)[0]}",), **more)

    def answer(self, name: str, digest: str, decision: str = SIGNED, **changes: Any) -> Answer:
        """The officer's word, as the command writes it."""
        public, sign = self.officer(name)
        answer = Answer(digest, name, decision, "ito", "", int(self.now), public)
        signed = dataclasses.replace(answer, **changes).signed(sign)
        OrderBook(self.home(name)).make().write_answer(dataclasses.replace(signed, order=digest))
        return signed

    def person(self, name: str, organisation: str = "agency", key_of: str = "") -> SigningKey:
        """A person's certified key to approve orders with."""
        home = self.folder / "people" / name
        home.parent.mkdir(exist_ok=True)
        request, _ = create_signer(home, name, organisation)
        certificate = sign_csr(self.authority.key, self.authority.root, request.read_bytes(), self.authority.now, 30)
        install_signer(home, to_pem(certificate), to_pem(self.authority.root), self.authority.crl(), self.authority.now)
        return load_signer(home)

    def proposal(self, request: RunRequest, config: Config, name: str = "study", **changes: Any) -> Proposal:
        """The order of `request` as the agency proposes it, unsigned."""
        order = make_order(config, name, request, self.now)
        return Proposal(dataclasses.replace(order, **changes))

    def show(self, request: RunRequest, proposal: Proposal, identity: Identity | None = None) -> RunRequest:
        """`request` with the proposal, signed by the agency's server."""
        by = identity or self.agency
        signed = proposal.signed(by.certificate, by.sign(proposal.order.proposal_message))
        return dataclasses.replace(request, order=np.frombuffer(signed.to_bytes(), np.uint8))


def planned(*overrides: str) -> Config:
    return compose(["server.min_cohort=3", "privacy.colluders=0", "rounds=10", *overrides]).config


CONFIG = planned()


def training(config: Config, run: str = "7", number: int = 1, **changes: Any) -> TrainRequest:
    """The request of round `number`, as the round loop makes it."""
    task, strategy = config.task, config.strategy
    request = TrainRequest(
        run=run, round=number, task=task.name, seed=config.seed, control=NOTHING, model=MODEL, scale=SCALE,
        begin=np.ones(1, np.uint8), algorithm=strategy.algorithm.local, keep="study", digest=TASK.digest,
        normalisation=task.normalisation, **strategy.sent, **config.local_fields(),
    )  # fmt: skip
    return dataclasses.replace(request, **changes)


def whole(config: Config, run: str = "7") -> RunRequest:
    """The question about the whole run."""
    last = training(config, run, config.rounds, model=NOTHING, scale=np.zeros(0), begin=np.zeros(0, np.uint8))
    return run_request(config, last, TASK.parameters)
