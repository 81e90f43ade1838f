"""A run proposed, approved by two people, and explained before and after."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, STDOUT

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.clients.orders.house import SCALE, TASK, House

from sovfed.clients.orders.rules import OrderRules
from sovfed.federation.errors import ConfigError, IdentityError, ProtocolError
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.saved import save_model
from sovfed.federation.orders.answers import Answer
from sovfed.federation.orders.beginning import start_digest
from sovfed.server.cli.run import cli
from sovfed.server.home import init
from sovfed.server.orders.beginning import beginning
from sovfed.server.orders.making import read_order, write_answers, write_order
from sovfed.server.orders.proposing import approve, configured, proposed_overrides
from sovfed.server.orders.withdrawn import Withdrawal, add_withdrawal, withdrawn_from
from sovfed.server.runs.curves import ROUNDS
from sovfed.server.runs.folders import _with_own_start

WORDS = ("task=breast_cancer", "rounds=3", "run_name=study", "order.purpose=malignant or benign, study 12")


@pytest.fixture
def house(tmp_path: Path) -> House:
    from sovfed.federation.compose import compose

    house = House(tmp_path)
    init(tmp_path / "server", compose([]).config)
    return house


def run(house: House, *words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, [*words])
    assert (done.exit_code == 0) == (code == 0), f"{done.output} {done.exception!r}"
    return done


def test_a_run_is_proposed_approved_and_explained(house: House) -> None:
    home = str(house.folder / "server")
    folder = house.folder / "server" / "runs" / "study"
    told = run(house, "propose", *WORDS, "--home", home).output
    assert "would leave: up to 6 masked contributions" in told and "malignant or benign, study 12" in told
    assert proposed_overrides(house.folder / "server", "study") == WORDS
    for person in ("ann", "bob", "ann"):  # who approves again is there once
        signer = house.folder / "people" / person
        if not signer.exists():
            house.person(person)
        run(house, "approve", str(folder / "order.json"), "--yes", "--signer", str(signer))
    proposal = read_order(folder)
    assert proposal is not None and len(proposal.approvals) == 2
    told = run(house, "explain", "study", "--home", home).output
    assert "approved by ann of agency" in told and "has left: nothing yet" in told
    answer = Answer(proposal.order.digest, "h1", "refused", "ito", "not for this", int(house.now), "", "")
    odd = b'{"order": 1}'
    write_answers(folder, {"h1": answer.to_bytes(), "h2": odd, "h3": b"[]", "h4": b"\xff"})
    (folder / ROUNDS).write_text(json.dumps({"round": 1, "participants": ["h5"]}) + "\n")
    told = run(house, "explain", "study", "--home", home).output
    assert "h1: refused by ito" in told and "not for this" in told
    assert "h2: its answer cannot be read" in told and "h3" not in told
    assert "has left: a contribution to 1 rounds from h5" in told
    values = json.loads(run(house, "explain", "study", "--json", "--home", home).output)
    assert values["digest"] == proposal.order.digest and values["order"]["rounds"] == 3


def test_what_was_approved_is_what_is_started(house: House) -> None:
    """The task or the agency's settings may have changed since; then the order is another run's."""
    home = house.folder / "server"
    run(house, "propose", *WORDS, "--home", str(home))
    with pytest.raises(ConfigError, match="is there already"):
        raise run(house, "propose", *WORDS, "--home", str(home), code=2).exception  # type: ignore[misc]
    with pytest.raises(ConfigError, match="was not proposed"):
        proposed_overrides(home, "another")
    assert configured(home, proposed_overrides(home, "study")).order.purpose == "malignant or benign, study 12"
    assert run(house, "start", "--proposed", "study", "rounds=5", "--home", str(home), code=2).exit_code == 2


def test_an_order_that_is_exchanged_while_it_is_read_is_not_approved(house: House) -> None:
    """Whoever may write the run's folder put another order there before the answer was typed."""
    runs = house.folder / "server" / "runs"
    for name in ("study", "other"):
        run(house, "propose", *WORDS[:2], WORDS[3], f"run_name={name}", "--home", str(house.folder / "server"))
    path, command = runs / "study" / "order.json", "from sovfed.server.cli.run import cli; cli()"
    house.person("ann")
    words = [sys.executable, "-c", command, "approve", str(path), "--signer", str(house.folder / "people" / "ann")]
    with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, stderr=STDOUT, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        told = ""
        while "Have you read it" not in told and (letter := process.stdout.read(1)):
            told += letter
        path.write_bytes((runs / "other" / "order.json").read_bytes())
        process.stdin.write("y\n")
        process.stdin.close()
        told += process.stdout.read()
    assert process.returncode != 0 and "another order than the one that was read" in told, told
    assert not json.loads(path.read_bytes())["approvals"]


def test_an_order_that_was_changed_is_not_approved(house: House) -> None:
    home, person = house.folder / "server", house.person("ann")
    run(house, "propose", *WORDS, "--home", str(home))
    folder = home / "runs" / "study"
    path, signer = folder / "order.json", str(house.folder / "people" / "ann")
    assert person.identity.person == "ann"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"rounds":3', b'"rounds": 3'))
    assert isinstance(run(house, "approve", str(path), "--yes", "--signer", signer, code=2).exception, ProtocolError)
    path.write_bytes(whole)
    nobody = str(house.folder / "nobody")
    assert isinstance(run(house, "approve", str(path), "--yes", "--signer", nobody, code=3).exception, IdentityError)
    run(house, "approve", str(path), "--yes", "--signer", signer)
    proposal = read_order(folder)
    assert proposal is not None
    write_order(folder, dataclasses.replace(proposal, order=dataclasses.replace(proposal.order, rounds=4)))
    gate = house.gate("h1", OrderRules())
    changed = read_order(folder)
    assert changed is not None
    with pytest.raises(IdentityError):
        list(gate._approvers(changed))


def test_of_many_who_approve_or_withdraw_at_once_nobody_is_lost(house: House) -> None:
    """Each read the file, and wrote it without the others; who had withdrawn was asked again."""
    home = house.folder / "server"
    run(house, "propose", *WORDS, "--home", str(home))
    folder = home / "runs" / "study"
    proposal, people = read_order(folder), [house.person(f"p{number}") for number in range(6)]
    assert proposal is not None
    gone = [Withdrawal(f"h{number}", 1, "0" * 64) for number in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda person: approve(folder / "order.json", proposal.order, person), people))
        list(pool.map(lambda withdrawal: add_withdrawal(folder, withdrawal), gone))
    approved = read_order(folder)
    assert approved is not None and len(approved.approvals) == 6
    assert withdrawn_from(folder) == {withdrawal.institution for withdrawal in gone}


def test_an_order_names_the_model_that_its_run_trains_further(house: House) -> None:
    """By the run, or the file, that it is from, and by the digest of its parameters; the file may be gone later."""
    home = house.folder / "server"
    vector, scale = np.ones(TASK.parameters, np.float32), SCALE
    for folder in (home / "runs" / "first", house.folder / "theirs"):
        folder.mkdir(parents=True)
        save_model(folder, TASK, vector, scale, RunFacts("first"))
    for name, start, words in (
        ("again", "first", "the model of run first"),
        ("bought", str(house.folder / "theirs"), "the model in theirs"),
    ):
        told = run(house, "propose", WORDS[0], f"run_name={name}", f"start={start}", "--home", str(home)).output
        proposal = read_order(home / "runs" / name)
        assert proposal is not None and proposal.order.start == start_digest(vector)
        content = (house.folder / "theirs" / "model.safetensors").read_bytes()  # both are the same model
        assert (proposal.order.start_from, proposal.order.start_file) == (words, hashlib.sha256(content).hexdigest())
        assert f"{words}, file SHA-256 {proposal.order.start_file}" in told
        config = _with_own_start(home, home / "runs" / name, configured(home, proposed_overrides(home, name)))
        assert beginning(config) == proposal.order.begins  # as the run has it
    missing = run(house, "propose", WORDS[0], "run_name=no", "start=nowhere", "--home", str(home), code=2)
    assert "neither a model's file" in str(missing.exception)
