"""What an order or a permit still needs stays in an institution's log, however old it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.clients.orders.house import CONFIG, House, whole

from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.places import RUNS
from sovfed.clients.orders.purge import purge
from sovfed.clients.orders.retained import HOLDS, needed
from sovfed.clients.orders.rules import DataPermit, OrderRules
from sovfed.federation.errors import OrderError
from sovfed.federation.secagg.files import load_identity


def test_entries_of_an_order_stay_while_it_holds_and_of_a_permit_until_it_is_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, permits = House(tmp_path), {"p-1": DataPermit(without_privacy=True)}
    gate, home = house.gate("h1", OrderRules(), permits), house.home("h1")
    under = house.proposal(whole(CONFIG), CONFIG, permit="p-1")
    other = house.proposal(whole(CONFIG, "8"), CONFIG, purpose="another")
    gate.consider(house.show(whole(CONFIG), under))
    gate.consider(house.show(whole(CONFIG, "8"), other))
    entries: tuple[dict[str, Any], ...] = (
        {"kind": "round", "run": "7.2"}, {"kind": "order", "order": under.order.digest, "name": ""},
        {"kind": "round", "run": "8"}, {"kind": "order", "order": other.order.digest},
        {"kind": "refusal", "code": "policy"}, {"kind": "round", "run": "9", "name": {}},
    )  # fmt: skip
    assert [*map(needed(home), entries)] == ["permit p-1 is not purged"] * 2 + [HOLDS] * 2 + [""] * 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10**8)
    assert [*map(needed(home), entries)] == ["permit p-1 is not purged"] * 2 + [""] * 4
    purge(home, OrderBook(home), "p-1", load_identity(home / "identity"), lambda _run: 0, house.now)
    assert [*map(needed(home), entries)] == [""] * 6
    (home / RUNS).write_bytes(b"{")
    with pytest.raises(OrderError):
        needed(home)
