"""Orders between real processes: proposed, approved, signed at some institutions, refused at others."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.deploy.conftest import finished, make_config, make_federation, wait_for
from tests.packages import make_signer

from sovfed.clients.cli.institution import cli as client
from sovfed.clients.home.policy import POLICY
from sovfed.clients.orders.book import OrderBook
from sovfed.server.cli.run import cli as run
from sovfed.server.runs import folders
from sovfed.server.runs.awaiting import read_awaiting
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Four hospitals whose officers sign each run, after two people of the agency."""
    from sovfed.clients.orders.rules import OrderRules

    rules = OrderRules(mode="required", min_approvers=2, approvers=("agency",))
    config = make_config("server.start_cohort=4")
    federation = make_federation(tmp_path_factory.mktemp("orders"), config, orders=rules)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
        for member in federation.institutions:
            home = federation.client_home(member.name)
            key = str(key_of(federation, member.name))
            words = ("officer", "ito", "--no-passphrase", "--key", key, "--home", str(home))
            sovfed("client", "orders", *words)
            assert "ito=" in (home / POLICY).read_text()
        federation.start_institutions()
        yield federation
    finally:
        federation.stop()


def key_of(federation: LocalFederation, name: str) -> Path:
    return federation.folder / f"{name}.pem"


def sovfed(*words: str) -> str:
    """What the command prints, which ends well."""
    if words[0] == "run" and words[1] in ("start", "show"):  # whose connection to the superlink ends with the process
        argv = [sys.executable, "-m", "sovfed", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
    done = CliRunner().invoke({"run": run, "client": client}[words[0]], words[1:])
    assert done.exit_code == 0, f"{words}: {done.output} {done.exception!r}"
    return done.output


def test_a_run_waits_for_officers_and_takes_those_alone_who_signed(ordered: LocalFederation) -> None:
    """The agency sends its run to all four; who has not signed, or refuses, answers no message of it."""
    agency, names = str(ordered.home), [member.name for member in ordered.institutions]
    file = ordered.home / "runs" / "study" / "order.json"
    told = sovfed("run", "propose", "task=breast_cancer", "rounds=3", "run_name=study", "server.min_cohort=3",
                  "order.purpose=malignant or benign, study 12", "--home", agency)  # fmt: skip
    assert "would leave: up to 6 masked contributions" in told
    assert "malignant or benign, study 12" in told
    for person in ("ann", "bob"):
        make_signer(ordered.folder, ordered.authority_home, person, "agency")
        sovfed("run", "approve", str(file), "--yes", "--signer", str(ordered.folder / f"signer-{person}-agency"))
    sovfed("run", "start", "--proposed", "study", "--no-follow", "--home", agency)
    books = {name: OrderBook(ordered.client_home(name)) for name in names}
    wait_for(lambda: all(book.proposals() for book in books.values()), "the order to arrive")

    def awaited() -> tuple[str, ...]:
        awaiting = read_awaiting(file.parent)
        return () if awaiting is None else awaiting.missing

    wait_for(lambda: awaited() == tuple(sorted(names)), "run show to name the officers")
    assert "data officers" in sovfed("run", "show", "study", "--home", agency)
    word = dict.fromkeys(names[:3], "sign") | {names[3]: "refuse"}
    for name, verb in word.items():
        home = str(ordered.client_home(name))
        yes = ["--yes"] if verb == "sign" else ["--reason", "not for this"]
        sovfed("client", "orders", verb, "study", *yes, "--key", str(key_of(ordered, name)), "--home", home)
    lines = finished(ordered, "study")
    assert [sorted(line["participants"]) for line in lines] == [sorted(names[:3])] * 3
    assert not (ordered.client_home(names[3]) / "received").joinpath("study").exists()
    explained = sovfed("run", "explain", "study", "--home", agency)
    assert f"{names[3]}: refused by ito" in explained and f"{names[0]}: signed by ito" in explained
    assert f"a contribution to 3 rounds from {names[0]}" in explained and f"from {names[3]}" not in explained
    shown = sovfed("client", "orders", "show", "study", "--home", str(ordered.client_home(names[0])))
    assert "has left: at most" in shown and "signed by ito" in shown
    assert "nothing yet" not in shown


def test_an_agency_that_dispatches_to_all_without_a_signature_gets_nothing(ordered: LocalFederation) -> None:
    """Neither with an order that nobody approved, nor with the one that was signed for another run."""
    config = dataclasses.replace(ordered.config, rounds=2, order=dataclasses.replace(ordered.config.order, wait_s=0.0))
    folders.start_run(ordered.control, ordered.home, "unapproved", config, resume=False)
    ended(ordered, "unapproved", "orders.min_approvers")
    replayed = ordered.home / "runs" / "replayed"
    replayed.mkdir(mode=0o700)
    signed = (ordered.home / "runs" / "study" / "order.json").read_bytes()
    (replayed / "order.json").write_bytes(signed)  # of another run, with all its signatures
    folders.start_run(ordered.control, ordered.home, "replayed", config, resume=False)
    ended(ordered, "replayed", "propose the run anew")
    for member in ordered.institutions:
        answered = [bound.answered for bound in OrderBook(ordered.client_home(member.name)).runs().values()]
        assert len(answered) <= 1  # the study's


def ended(federation: LocalFederation, name: str, why: str) -> dict[str, Any]:
    """Wait until run `name` has ended badly, for the reason that `why` is part of."""
    wait_for(
        lambda: folders.read_run(federation.home, name, federation.control)["status"] not in folders.ACTIVE,
        f"run {name} to end",
    )
    run = folders.read_run(federation.home, name, federation.control)
    assert run["status"] == "failed" and why in run["reason"], json.dumps(run)
    return run
