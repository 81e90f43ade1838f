"""What a permit's runs left is erased, and the receipt of it can be checked."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.clients.orders.house import CONFIG, TASK, House, whole
from tests.clients.orders.test_evaluation import message, models, scoring
from tests.federation.evidence.test_retention import cosign

from sovfed.clients.cli.institution import cli
from sovfed.clients.home.policy import Policy
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.node.metrics import institution_metrics
from sovfed.clients.node.up import purge_what_ended
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.purge import AWAY_S, purge, purge_ended, unpurged
from sovfed.clients.orders.rules import DataPermit, OrderRules
from sovfed.clients.statistics.scores import keep_score, scores_of
from sovfed.clients.training.halfway import FILE as HALFWAY
from sovfed.federation.errors import BoundError, EvidenceError, OrderError, ServiceError
from sovfed.federation.evidence.retention import cosigned
from sovfed.federation.evidence.store import LogReader, record
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.host.status import supervising
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.receipts import Receipt, read_receipt
from sovfed.federation.release.cli import verify
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.secagg.request import run_bytes
from sovfed.server.rounds.loop import whole_run


def test_keys_and_personal_models_of_a_permit_go_and_nothing_under_it_is_answered_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    rules, permits = OrderRules(), {"p-1": DataPermit(without_privacy=True)}
    gate, home = house.gate("h1", rules, permits), house.home("h1")
    under = house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1"))
    gate.consider(under)
    gate.consider(house.show(whole(CONFIG, "8"), house.proposal(whole(CONFIG, "8"), CONFIG, purpose="another")))
    folder = private_directory(home / "secagg")
    own, other = (folder / f"{run_bytes(run).hex()}.session" for run in ("7.2", "8"))
    for path in (own, other):
        write_private(path, b"keys")
    removed: list[str] = []
    identity = load_identity(home / "identity")
    receipt = purge(home, OrderBook(home), "p-1", identity, lambda run: removed.append(run) or 2, house.now)  # type: ignore[func-returns-value]
    assert not own.exists() and other.exists() and removed == ["study"]
    assert f"secagg/{own.name}" in receipt.erased and "personal/ of run study: 2 files" in receipt.erased
    assert any("ledger" in line for line in receipt.remains)
    path = home / "orders" / "receipts" / "p-1.json"
    roots = load_roots(home / "identity" / "root.pem")
    assert read_receipt(path.read_bytes(), roots) == receipt
    told = CliRunner().invoke(verify, [str(path), "--root", str(home / "identity" / "root.pem")])
    assert "signed by h1" in told.output and f"erased   secagg/{own.name}" in told.output
    values = json.loads(path.read_bytes())
    with pytest.raises(EvidenceError, match="signature"):
        read_receipt(json.dumps({**values, "erased": []}).encode(), roots)
    for again in (gate, house.gate("h1", rules, permits)):
        with pytest.raises(BoundError, match="has been erased"):
            again.consider(under)
    with pytest.raises(OrderError, match="no run was ever answered"):
        purge(home, OrderBook(home), "p-2", identity, lambda _run: 0, house.now)


def test_a_receipt_of_a_stranger_or_of_another_institution_does_not_hold(tmp_path: Path) -> None:
    """Seen: a receipt was checked by the certificate in it, whoever had made that."""
    house, other = House(tmp_path / "a"), House(tmp_path / "b")
    own, stranger = (load_identity(each.home("h1") / "identity") for each in (house, other))
    roots = load_roots(house.home("h1") / "identity" / "root.pem")
    receipt = Receipt("p-1", "h1", 1, ("study",), ("secagg/x.session",))
    assert read_receipt(as_json(receipt.signed(own)), roots).permit == "p-1"
    neighbour = load_identity(house.home("h2") / "identity")
    for forged in (receipt.signed(stranger), receipt.signed(neighbour), receipt.signed(house.agency)):
        with pytest.raises(EvidenceError):
            read_receipt(as_json(forged), roots)
    for odd in (b"{}", b"[]", b"[" * 100_000, b'{"permit": 1}', b"\xff", as_json(receipt)):
        with pytest.raises(EvidenceError):
            read_receipt(odd, roots)


def as_json(receipt: Receipt) -> bytes:
    return json.dumps(dataclasses.asdict(receipt)).encode()


def test_the_keys_of_a_run_that_was_taken_up_again_go_with_it(tmp_path: Path) -> None:
    """A resumed run is another of Flower's, and so is its session: that of the one before was left."""
    house = House(tmp_path)
    gate, home = house.gate("h1", OrderRules(), {"p-1": DataPermit(without_privacy=True)}), house.home("h1")
    under = house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1"))
    folder = private_directory(home / "secagg")
    paths = [folder / f"{run_bytes(run).hex()}.session" for run in ("7", "7.64", "8", "9")]
    for path in paths:
        write_private(path, b"keys")
    for run in ("7", "8", "9"):
        gate.consider(dataclasses.replace(under, run=run))
    purge(home, OrderBook(home), "p-1", load_identity(home / "identity"), lambda _run: 0, house.now)
    assert not [path for path in paths if path.exists()]


def test_the_own_scores_of_a_permit_s_evaluations_go_with_it(tmp_path: Path) -> None:
    """They are exact figures of this house's held-out records, which a receipt may not pass over."""
    house, config = House(tmp_path), scoring(models(tmp_path))
    gate, home = house.gate("h1", OrderRules(), {"p-1": DataPermit(without_privacy=True)}), house.home("h1")
    request = whole_run(config, TASK, "7", "study", None)
    gate.consider(house.show(request, house.proposal(request, config, permit="p-1")))
    received = ReceivedModels(home / "received")
    for run in ("7", "8"):
        scored = message(config, 1, run=run)
        keep_score(received, scored, TASK, np.ones(TASK.evaluation_size))
    own, other = (scores_of(received.folder, "study", run) for run in ("7", "8"))
    assert own.exists() and other.exists()
    begun = private_directory((home / HALFWAY).parent) / (home / HALFWAY).name
    half = begun.with_name(f".{begun.name}.x8_k2ab7")
    for path in (begun, half):
        path.write_bytes(b"what a trainer had learnt in a round that it did not end")
    receipt = purge(home, OrderBook(home), "p-1", load_identity(home / "identity"), lambda _run: 0, house.now)
    assert not own.exists() and other.exists() and f"received/{own.name}" in receipt.erased
    assert not begun.exists() and not half.exists() and HALFWAY in receipt.erased and len(receipt.erased) == 3


def test_nothing_is_purged_while_the_node_comes_up_or_goes_down_and_it_comes_up_after(tmp_path: Path) -> None:
    """It has the lock and no status yet: its trainer had read the keys, and wrote after the receipt what it learnt."""
    house = House(tmp_path)
    gate, home = house.gate("h1", OrderRules(), {"p-1": DataPermit(without_privacy=True)}), house.home("h1")
    gate.consider(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1")))
    arguments = home, OrderBook(home), "p-1", load_identity(home / "identity")
    with supervising(home), pytest.raises(ServiceError, match="client down"):
        purge(*arguments, lambda _run: 0, house.now)

    def starting(_run: str) -> int:
        with pytest.raises(ServiceError, match="in use"), supervising(home, 0.0):
            pass
        return 0

    assert purge(*arguments, starting, house.now).permit == "p-1"
    with supervising(home):
        pass


def test_a_permit_that_has_ended_is_told_until_it_is_purged(tmp_path: Path) -> None:
    house, permits = House(tmp_path), {"p-1": DataPermit(without_privacy=True, expires="2999-12-31")}
    gate, home = house.gate("h1", OrderRules(), permits), house.home("h1")
    gate.consider(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1")))
    book, after = OrderBook(home), permits["p-1"].ends + 1
    assert [*unpurged(book, permits, house.now)] == [] and [*unpurged(book, {}, after)] == []
    (said,) = unpurged(book, permits, after)
    assert said == "permit p-1 ended on 2999-12-31: `sovfed client purge p-1` erases what it left"
    purge(home, book, "p-1", load_identity(home / "identity"), lambda _run: 0, house.now)
    assert [*unpurged(book, permits, after)] == []


def test_status_and_metrics_remind_of_a_permit_that_has_ended(tmp_path: Path) -> None:
    house, permits = House(tmp_path), {"p-1": DataPermit(without_privacy=True)}
    gate, home = house.gate("h1", OrderRules(), permits), house.home("h1")
    gate.consider(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1")))
    (home / "policy.yaml").write_text("permits:\n  p-1: {without_privacy: true, expires: '2020-12-31'}\n")

    def counted() -> float:
        metrics = {metric.name: metric.samples[0].value for metric in institution_metrics(home) if metric.samples}
        return metrics["sovfed_permits_unpurged"]

    assert "`sovfed client purge p-1`" in CliRunner().invoke(cli, ["status", "--home", str(home)]).output
    assert "purge p-1" in CliRunner().invoke(cli, ["status", "--home", str(home), "--json"]).output
    assert counted() == 1
    purge(home, OrderBook(home), "p-1", load_identity(home / "identity"), lambda _run: 0, house.now)
    assert "purge p-1" not in CliRunner().invoke(cli, ["status", "--home", str(home)]).output
    assert counted() == 0


def test_what_a_permit_left_goes_by_itself_where_the_policy_says_so_and_the_clock_is_believed(tmp_path: Path) -> None:
    """After its last day, as by the command; not by a node that was off for long, whose clock went back, or is up."""
    house, yesterday = House(tmp_path), datetime.now(UTC).date() - timedelta(days=1)
    permits = {"p-1": DataPermit(without_privacy=True, expires=f"{yesterday}"), "p-2": DataPermit(expires="2999-01-01")}
    house.now = permits["p-1"].ends - 3600
    gate, home = house.gate("h1", OrderRules(), permits), house.home("h1")
    gate.consider(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1")))
    key = private_directory(home / "secagg") / f"{run_bytes('7').hex()}.session"
    write_private(key, b"keys")
    policy = Policy(permits=permits, purge_ended_permits=True)
    record(home, "policy", policy="00")
    purge_what_ended(home, dataclasses.replace(policy, purge_ended_permits=False))
    with supervising(home):
        purge_what_ended(home, policy)
    for now in (time.time() + AWAY_S + 60, time.time() - 3600):
        assert purge_ended(home, permits, now) == []
    purge_what_ended(home, policy)  # nobody has cosigned: by no clock but the own one
    assert key.exists() and not OrderBook(home).is_purged("p-1")
    record(house.folder / "agency", "login", role="viewer")
    cosign(home, house.folder / "agency")
    assert purge_ended(home, permits, time.time() + AWAY_S + 60) == [] and key.exists()  # nor after that
    purge_what_ended(home, policy)
    assert not key.exists() and OrderBook(home).is_purged("p-1")
    assert next(LogReader(home).newest())["event"] == "purged"
    purge_what_ended(home, policy)  # once
    assert len([entry for entry in LogReader(home).newest() if entry.get("event") == "purged"]) == 1


@pytest.mark.parametrize("content", [b"{", b"[" * 200_000, b'{"1": {"name": "\\ud800"}}'])
def test_what_cannot_be_purged_at_a_start_stops_no_node(tmp_path: Path, content: bytes) -> None:
    house, yesterday = House(tmp_path), datetime.now(UTC).date() - timedelta(days=1)
    permits, home = {"p-1": DataPermit(expires=f"{yesterday}")}, house.home("h1")
    record(home, "policy", policy="00")
    record(house.folder / "agency", "login", role="viewer")
    cosign(home, house.folder / "agency")
    (home / "orders" / "state").mkdir(parents=True, exist_ok=True)
    (home / "orders" / "state" / "runs.json").write_bytes(content)
    purge_what_ended(home, Policy(permits=permits, purge_ended_permits=True))
    assert not OrderBook(home).is_purged("p-1")


def test_a_clock_that_is_ahead_of_whoever_cosigned_the_log_purges_nothing(tmp_path: Path) -> None:
    house, tomorrow = House(tmp_path), datetime.now(UTC).date() + timedelta(days=1)
    permits = {"p-1": DataPermit(without_privacy=True, expires=f"{tomorrow}")}
    gate, home, ahead = house.gate("h1", OrderRules(), permits), house.home("h1"), permits["p-1"].ends + 60
    gate.consider(house.show(whole(CONFIG), house.proposal(whole(CONFIG), CONFIG, permit="p-1")))
    record(home, "policy", policy="00")
    record(house.folder / "agency", "login", role="viewer")
    cosign(home, house.folder / "agency")
    assert cosigned(home)[1] > 0
    assert purge_ended(home, permits, ahead) == [] and not OrderBook(home).is_purged("p-1")
    ended = {"p-1": dataclasses.replace(permits["p-1"], expires=f"{tomorrow - timedelta(days=2)}")}
    assert [receipt.permit for receipt in purge_ended(home, ended, time.time())] == ["p-1"]
