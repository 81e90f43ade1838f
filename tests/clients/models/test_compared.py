"""An institution holds a release to its own books, and signs none that tells otherwise of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.release_fixture import NAMES, RUN, Released, finished_run, word_of

from sovfed.clients.cli.institution import cli
from sovfed.clients.models.compared import differences
from sovfed.clients.models.received import FOLDER, ReceivedModels
from sovfed.clients.models.released import signed_release
from sovfed.clients.orders.book import OrderBook
from sovfed.federation.errors import EvidenceError
from sovfed.federation.models.facts import RunFacts, facts_of
from sovfed.federation.orders.answers import REFUSED, read_answer
from sovfed.federation.orders.order import read_proposal
from sovfed.federation.release.checking import check_release
from sovfed.federation.tasks.registry import get_task
from sovfed.server.orders.making import write_answers
from sovfed.server.runs.certificate import release
from sovfed.server.runs.logged import RunLog


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def federation(finished: Released, tmp_path: Path) -> Released:
    return finished.copied(tmp_path / "copy")


def refused(federation: Released, home: Path) -> bytes:
    """The institution in `home` refuses the run's order, by its own books."""
    digest = read_proposal((federation.folder / "order.json").read_bytes()).order.digest
    said = word_of(home, digest, home.name, REFUSED, officer=True)
    OrderBook(home).make().write_answer(read_answer(said, "word"))
    return said


def test_a_release_that_tells_what_the_books_say_is_signed(federation: Released) -> None:
    home = federation.homes[0]
    bundle = release(federation.agency.home, RUN, wait_s=0.0)

    assert differences(home, check_release(bundle, federation.roots)) == []
    assert signed_release(home, bundle) != bundle


def test_an_agency_that_leaves_a_refusal_out_of_its_log_is_told(federation: Released) -> None:
    home = federation.homes[1]
    refused(federation, home)
    file = federation.folder / "x.release"
    file.write_bytes(release(federation.agency.home, RUN, wait_s=0.0))

    told = CliRunner().invoke(cli, ["release", "compare", str(file), "--home", str(home)])

    assert isinstance(told.exception, EvidenceError)
    assert "hospital-2 has 'refused' to order" in str(told.exception)
    assert "the agency's log says 'standing'" in str(told.exception)
    with pytest.raises(EvidenceError, match="has 'refused'"):
        signed_release(home, file.read_bytes())


def test_an_agency_that_leaves_every_word_or_the_order_out_is_told(federation: Released) -> None:
    """Nothing in its log, or no order at all: what the institution said is then in the institution's books alone."""
    home = federation.homes[1]
    refused(federation, home)
    bundle = release(federation.agency.home, RUN, wait_s=0.0)
    OrderBook(home).file(read_proposal((federation.folder / "order.json").read_bytes()), 0.0)
    verdict = check_release(bundle, federation.roots)
    silent = tuple(entry for entry in verdict.log.entries if entry.get("event") != "answered")
    nothing = replace(verdict, log=replace(verdict.log, entries=silent))
    unordered = replace(verdict, predicate={**verdict.predicate, "orders": []})

    assert "log says nothing" in differences(home, nothing)[0]
    assert "the release has no order" in differences(home, unordered)[0]


def test_a_word_that_does_not_hold_is_left_out_and_keeps_no_model_from_release(federation: Released) -> None:
    """Seen: an institution that took part sent another's word, or none that can be read, and no release was made."""
    kept = json.loads((federation.folder / "answers.json").read_bytes())
    for bad in ({}, {"order": "x"}, kept[NAMES[0]], {**kept[NAMES[1]], "key": "AAAA"}, {**kept[NAMES[1]], "at": 1}):
        answers = {name: json.dumps(value).encode() for name, value in {**kept, NAMES[1]: bad}.items()}
        digest = read_proposal((federation.folder / "order.json").read_bytes()).order.digest
        RunLog(federation.agency.home, RUN, "1").answers(digest, write_answers(federation.folder, answers))

        verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)

        assert any("consent to order" in line and NAMES[1] in line for line in verdict.missing)


def test_a_refusal_that_is_in_the_agencys_log_is_no_difference(federation: Released) -> None:
    home = federation.homes[1]
    said = refused(federation, home)
    kept = json.loads((federation.folder / "answers.json").read_bytes())
    answers = {name: json.dumps(value).encode() for name, value in kept.items()} | {NAMES[1]: said}
    digest = read_proposal((federation.folder / "order.json").read_bytes()).order.digest
    RunLog(federation.agency.home, RUN, "1").answers(digest, write_answers(federation.folder, answers))

    verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)

    assert differences(home, verdict) == []
    assert any("consent to order" in line and NAMES[1] in line for line in verdict.missing)


def test_an_agency_that_writes_an_institution_into_a_round_is_told(federation: Released) -> None:
    log = RunLog(federation.agency.home, RUN, "2")  # another of Flower's runs, which this institution never answered
    line = {"round": 1, "participants": list(NAMES), "refused": {}, "late": [], "left_out": [], "attempts": 1}
    log.round(line)
    log.end("finished")
    verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)

    assert differences(federation.homes[0], verdict) == [
        "the agency's log has hospital-1 in round 1, and this institution's own log has not"
    ]


def test_an_agency_that_releases_another_model_than_it_sent_is_told(federation: Released) -> None:
    """What came back here when the run ended, by Flower's number of the run, was another file."""
    home, task = federation.homes[0], get_task("digits_linear")
    vector, scale = np.zeros(task.parameters, np.float32), task.transform.public_scale
    verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)
    facts = facts_of(task, scale, RunFacts(RUN))
    for owner, published in (("2", "a" * 64), ("1", verdict.predicate["model"]["sha256"])):
        ReceivedModels(home / FOLDER).keep(task, vector, facts, owner=owner, published=published, plan={})
    assert differences(home, verdict) == []
    ReceivedModels(home / FOLDER).keep(task, vector, facts, owner="1", published="b" * 64, plan={})
    (said,) = differences(home, verdict)
    assert said.startswith(f"run {RUN} has sent the model bbbbbbbbbbbb here")
