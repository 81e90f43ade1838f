"""Signed tables as the trainer takes them: of the run's own order and by the root, or refused; then anybody's files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.clients.orders.house import TASK, House
from tests.clients.orders.test_evaluation import SCALE, TERMS, models, scoring, whole

from sovfed.clients.cli.institution import cli
from sovfed.clients.models.received import FOLDER, ReceivedModels
from sovfed.clients.orders.rules import OrderRules
from sovfed.clients.statistics import sheets as kept
from sovfed.clients.statistics.sheets import KeptSheets
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError, DataError, EvidenceError
from sovfed.federation.messages import Refusal, ReleaseReply, ReleaseRequest, Reply
from sovfed.federation.models.facts import RunFacts, facts_of, told
from sovfed.federation.orders.order import Proposal
from sovfed.federation.release.cli import verify
from sovfed.federation.release.sheet import make_sheet
from sovfed.federation.secagg.files import MemoryStore, load_identity

MODEL = {"name": "ours", "sha256": "0" * 64, "digest": "1" * 64}
LINE = {"model": MODEL, "records": 120, "metrics": {"auc": 0.9}, "intervals": {"auc": [0.85, 0.95]}}
FACTS = np.frombuffer(told(facts_of(TASK, SCALE, RunFacts("study"))), np.uint8)


class Site:
    """An institution that has agreed to an order to score; `answer` is what its trainer says to a delivered table."""

    def __init__(self, folder: Path) -> None:
        self.house = house = House(folder)
        self.home, gate = house.home("h1"), house.gate("h1", OrderRules())
        identity, store = load_identity(self.home / "identity"), MemoryStore()
        self.trainer: TrainerService = make_trainer(
            ClientConfig(device="cpu", data=DataConfig(site="1")),
            books=Books(
                orders=gate, received=ReceivedModels(self.home / FOLDER),
                sheets=KeptSheets(self.home / FOLDER, self.home / "identity" / "root.pem"),
            ),
            masking=Masking(lambda: identity, lambda: store, TERMS, narrowed=gate.narrowed),
        )  # fmt: skip
        config = scoring(models(folder))
        request = whole(config)
        self.proposal: Proposal = house.proposal(request, config)
        self.trainer.answer(house.show(request, self.proposal))

    def signed(self, signer: Path | None = None, **changes: Any) -> bytes:
        run = {"name": "study", "date": "2027-01-01", "task": {"name": TASK.name, "digest": TASK.digest}, "config": ""}
        predicate = {
            "run": run, "order": self.proposal.order.digest, "question": "", "institutions": ["h1", "h2", "h3"],
            "privacy": None, "table": {"models": [LINE], "headline": "auc", "smaller": []},
            "revoked": self.house.authority.crl().decode(), **changes,
        }  # fmt: skip
        return make_sheet(predicate, {"table.json": "0" * 64}, signer or self.house.folder / "agency")

    def answer(self, table: bytes, **changes: Any) -> Reply:
        request = ReleaseRequest(
            "7", 2, TASK.name, np.zeros(0, np.float32), np.zeros(0), FACTS, "0" * 64, digest=TASK.digest,
            table=np.frombuffer(table, np.uint8),
        )  # fmt: skip
        return self.trainer.answer(dataclasses.replace(request, **changes))

    def client(self, *words: str) -> str:
        result = CliRunner().invoke(cli, [*words, "--home", str(self.home)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_table_of_scores_is_kept_as_it_was_signed_and_anybody_can_check_it(site: Site, tmp_path: Path) -> None:
    sheet = site.signed()
    assert site.answer(sheet) == ReleaseReply()
    (row,) = json.loads(site.client("table", "list", "--json"))
    assert row == {"run": "study", "date": "2027-01-01", "task": TASK.name, "of": "models", "privacy": "–"}
    out = tmp_path / "study.table"
    assert "ours  000000000000…  120 held-out records" in site.client("table", "get", "study", str(out))
    assert out.read_bytes() == sheet
    again = CliRunner().invoke(cli, ["table", "get", "study", str(out), "--home", str(site.home)])
    assert isinstance(again.exception, ConfigError) and "exists; choose another name" in str(again.exception)
    checked = CliRunner().invoke(verify, [str(out), "--root", str(site.home / "identity" / "root.pem")])
    assert checked.exit_code == 0 and "signed by the agency" in checked.output


def test_a_table_of_another_order_or_run_or_by_another_authority_or_changed_is_not_kept(
    site: Site, tmp_path: Path
) -> None:
    other = House(tmp_path / "elsewhere")
    run = {"name": "other", "date": "2027-01-01", "task": {"name": TASK.name, "digest": TASK.digest}, "config": ""}
    changed = bytearray(site.signed())
    changed[len(changed) // 2] ^= 1
    assert site.answer(site.signed(order="0" * 64)) == Refusal("order")
    assert site.answer(site.signed(run=run)) == Refusal("order")
    foreign = site.signed(other.folder / "agency", revoked=other.authority.crl().decode())
    assert site.answer(foreign) == Refusal("identity")
    assert site.answer(bytes(changed)) == Refusal("identity")
    assert site.answer(site.signed(site.house.home("h2"))) == Refusal("identity")  # an institution's certificate
    assert not list((site.home / FOLDER).glob("*.table"))


@pytest.mark.parametrize("changes", [{"model": np.zeros(3, np.float32)}, {"scale": np.zeros(1)}])
def test_a_table_of_scores_brings_no_model(site: Site, changes: dict[str, Any]) -> None:
    assert site.answer(site.signed(), **changes) == Refusal("protocol")


def test_a_table_that_is_too_long_or_one_too_many_is_not_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = site.signed()
    monkeypatch.setattr(kept, "MAX_BYTES", len(sheet) - 1)
    assert site.answer(sheet) == Refusal("protocol")
    monkeypatch.undo()
    monkeypatch.setattr(kept, "MAX_TABLES", 0)
    assert site.answer(sheet) == ReleaseReply()  # whether it is kept, nobody is told
    assert (
        site.client("table", "list") == "Nothing yet: tables come with the runs that this institution takes part in.\n"
    )
    monkeypatch.undo()
    assert site.answer(site.signed(question="")) == ReleaseReply()


def test_a_kept_table_that_was_damaged_is_named_and_one_that_is_not_there_is_told(site: Site) -> None:
    assert site.answer(site.signed()) == ReleaseReply()
    sheets = KeptSheets(site.home / FOLDER, site.home / "identity" / "root.pem")
    with pytest.raises(DataError, match=r"no signed table of run 'stud' was received here.*study"):
        sheets.find("stud")
    (path,) = (site.home / FOLDER).glob("*.table")
    damaged = path.with_name("damaged.table")
    damaged.write_bytes(path.read_bytes().replace(b"signatures", b"signatureS"))
    kept, (wrong,) = sheets.list()
    assert [sheet.run for sheet in kept] == ["study"] and str(damaged) in wrong
    assert sheets.find("study").path == path  # one that is damaged, or of a root that was given up, hides no other
    told = CliRunner().invoke(cli, ["table", "list", "--home", str(site.home)])
    assert "study" in told.output and isinstance(told.exception, EvidenceError)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"privacy": {"epsilon": 0.1, "delta": 1e-6}}, "privacy"),
        ({"question": "mean radius"}, "question"),
        ({"institutions": ["h1", "h2"]}, "smallest cohort"),
        ({"institutions": ["h1", "h2", "h2"]}, "smallest cohort"),
    ],
)
def test_a_table_that_says_otherwise_than_its_order_is_not_kept(
    site: Site, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], what: str
) -> None:
    """As one that promises differential privacy to whoever is shown it, where exact sums were opened."""
    assert site.answer(site.signed(**changes)) == Refusal("order")
    assert f"in: {what}" in caplog.text
    assert not list((site.home / FOLDER).glob("*.table"))
