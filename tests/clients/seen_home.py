"""An institution's home with a past: a ledger that paid, refused and was shown, and a run without privacy."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger, plan, release
from tests.clients.orders.house import CONFIG, whole

from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.ledger.file import create_ledger
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.trainer.allowance import Allowance
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import PrivacyError
from sovfed.federation.messages import ProfileRequest
from sovfed.federation.orders.order import Proposal
from sovfed.server.orders.making import make_order

HOSTILE = "<script>alert(1)</script>\u202e"


def make_seen_house(home: Path) -> Path:
    """The home; runs `heart-private` (two of five releases), `heart-open`, and one that was refused."""
    policy = Policy(allowed_tasks=("breast_cancer",), require_privacy=False, privacy=BUDGET)
    create(home, ClientConfig(data=DataConfig(source="breast_cancer")), policy)
    create_ledger(home, POPULATION, time.time() - 3600)
    ledger = WitnessedLedger(home, BUDGET)
    grant = ledger.authorise("heart-private", plan(5))
    for step in range(2):
        ledger.spend(grant, release(grant.plan, step))
    with pytest.raises(PrivacyError):
        ledger.authorise("heart-greedy", plan(500))
    ledger.countersign_head()
    ledger.unlock()
    order = dataclasses.replace(make_order(CONFIG, "study", whole(CONFIG), time.time()), purpose=HOSTILE[:-1])
    OrderBook(home).make().file(Proposal(order), order.proposed)
    allowance = Allowance(home, policy)
    allowance.take(ProfileRequest(run="heart-open", task="breast_cancer", normalisation="own", digest="0" * 64))
    allowance.failed(HOSTILE, "data")
    return home
