"""One run from proposal to release, and on to the one without an institution that withdrew, between real processes."""

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
from tests.clients.console.test_signing import WORDS, browser, form, let_sign, served
from tests.deploy.conftest import finished, make_config, make_federation, wait_for
from tests.packages import make_signer
from tests.release_fixture import verified_bare, verified_foreign

from sovfed.clients.cli.institution import cli as client
from sovfed.clients.home.policy import POLICY
from sovfed.clients.orders.book import OrderBook
from sovfed.federation.files import private_directory
from sovfed.federation.identity import load_roots
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.saved import save_model
from sovfed.federation.release.checking import check_release
from sovfed.federation.release.cli import verify
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.cli.evaluate import evaluate
from sovfed.server.cli.run import cli as run
from sovfed.server.runs import folders
from sovfed.server.runs.awaiting import read_awaiting
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
COMMANDS = {"run": run, "client": client, "evaluate": evaluate}


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Six hospitals whose officers sign each run, after two people of the agency."""
    from sovfed.clients.orders.rules import OrderRules

    rules = OrderRules(mode="required", min_approvers=2, approvers=("agency",))
    config = make_config("server.start_cohort=6", "simulation.institutions=6", "client.heads_every_s=1")
    federation = make_federation(tmp_path_factory.mktemp("orders"), config, orders=rules)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
        for member in federation.institutions:
            home = federation.client_home(member.name)
            key = key_of(federation, member.name)
            first = member is federation.institutions[0]  # its officer may sign on its page, with a sealed key
            seal = "--passphrase" if first else "--no-passphrase"
            sovfed("client", "orders", "officer", "ito", seal, "--key", str(key), "--home", str(home))
            assert "ito=" in (home / POLICY).read_text()
            if first:
                let_sign(home, {"ito": key})
        federation.start_institutions()
        yield federation
    finally:
        federation.stop()


def key_of(federation: LocalFederation, name: str) -> Path:
    return federation.folder / f"{name}.pem"


def sovfed(*words: str) -> str:
    """What the command prints, which ends well."""
    if words[0] == "release" or words[1] in ("start", "show"):  # MLflow, and a connection to the superlink, end with it
        argv = [sys.executable, "-m", "sovfed", *words]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=180)
        assert ran.returncode == 0, f"{words}: {ran.stdout} {ran.stderr}"
        return ran.stdout
    done = CliRunner().invoke(COMMANDS[words[0]], words[1:], input=f"{WORDS}\n" * 2)  # for a key that is sealed
    assert done.exit_code == 0, f"{words}: {done.output} {done.exception!r}"
    return done.output


def approved(federation: LocalFederation, name: str) -> None:
    """Two people of the agency approve the run's order."""
    for person in ("ann", "bob"):
        signer = federation.folder / f"signer-{person}-agency"
        if not signer.exists():
            make_signer(federation.folder, federation.authority_home, person, "agency")
        sovfed("run", "approve", str(federation.home / "runs" / name / "order.json"), "--yes", "--signer", str(signer))


def answered(federation: LocalFederation, name: str, words: dict[str, str]) -> None:
    """Each institution's officer says its word to the order of run `name`, once it is there."""
    books = {member: OrderBook(federation.client_home(member)) for member in words}
    arrived = lambda book: any(proposal.order.run == name for proposal in book.proposals())  # noqa: E731
    wait_for(lambda: all(map(arrived, books.values())), "the order to arrive")
    for member, verb in words.items():
        if verb == "sign on the page":
            signed_on_the_page(books[member].home, books[member].named(name).order.digest)
            continue
        more = ["--yes"] if verb == "sign" else ["--reason", "not for this"]
        at = ("--key", str(key_of(federation, member)), "--home", str(federation.client_home(member)))
        sovfed("client", "orders", verb, name, *more, *at)


def signed_on_the_page(home: Path, digest: str) -> None:
    with served(home) as console, browser(home, console.address) as page:
        answer = page.post("/orders", data=form(page, digest))
        assert answer.status_code == 303, answer.text


def released(federation: LocalFederation, name: str, members: list[str], *more: str) -> bytes:
    """The release of run `name`, signed by `members` too."""
    file = federation.folder / f"{name}.release"
    sovfed("release", name, "--out", str(file), "--wait", "60", "--home", str(federation.home), *more)
    for member in members:
        sovfed("client", "release", "sign", str(file), "--home", str(federation.client_home(member)))
    return file.read_bytes()


def test_a_run_from_its_proposal_to_its_release_and_to_the_one_without_who_withdrew(
    ordered: LocalFederation, tmp_path: Path
) -> None:
    """Five of six sign; who has not signed, or refuses, answers nothing. Whoever withdraws is not in the next model."""
    agency, names = str(ordered.home), [member.name for member in ordered.institutions]
    folder = ordered.home / "runs" / "study"
    told = sovfed("run", "propose", "task=breast_cancer", "rounds=3", "run_name=study", "server.min_cohort=3",
                  "privacy=distributed", "privacy.epsilon=1.2", "privacy.population=400", "privacy.colluders=0",
                  "order.purpose=malignant or benign, study 12", "--home", agency)  # fmt: skip
    assert "one masked contribution" in told and "malignant or benign, study 12" in told
    approved(ordered, "study")
    sovfed("run", "start", "--proposed", "study", "--no-follow", "--home", agency)

    def awaited() -> tuple[str, ...]:
        awaiting = read_awaiting(folder)
        return () if awaiting is None else awaiting.missing

    def named() -> bool:  # they are asked again every few seconds, and it is their word that is awaited then
        return awaited() == tuple(sorted(names)) and "data officers" in sovfed("run", "show", "study", "--home", agency)

    wait_for(named, "run show to name the officers")
    answered(
        ordered, "study", {names[0]: "sign on the page", **dict.fromkeys(names[1:5], "sign"), names[5]: "refuse"}
    )  # fmt: skip
    lines = finished(ordered, "study")
    assert [sorted(line["participants"]) for line in lines] == [sorted(names[:5])] * 3
    explained = sovfed("run", "explain", "study", "--home", agency)
    assert f"{names[5]}: refused by ito" in explained and f"{names[0]}: signed by ito" in explained
    assert f"a contribution to 3 rounds from {names[0]}" in explained and f"from {names[5]}" not in explained
    shown = sovfed("client", "orders", "show", "study", "--home", str(ordered.client_home(names[0])))
    assert "has left: at most" in shown and "signed by ito" in shown

    bundle, root = released(ordered, "study", names[:5]), ordered.authority_home / "root.pem"
    verified = verified_bare(bundle, root, private_directory(tmp_path / "bare"))
    assert verified.returncode == 0, verified.stderr
    assert f"the order is signed by an officer of {', '.join(sorted(names[:5]))}" in verified.stdout
    assert "approved by ann of agency, bob of agency" in verified.stdout
    assert "differential privacy for each" in verified.stdout
    assert verified_foreign(bundle, tmp_path) in (0, None)
    verdict = check_release(bundle, load_roots(root))
    assert verdict.signed_by_all and set(names[:5]) <= set(verdict.log.whole)

    gone, left = names[4], names[:4]
    statement = tmp_path / "withdrawal"
    at = ("--key", str(key_of(ordered, gone)), "--home", str(ordered.client_home(gone)))
    sovfed("client", "orders", "withdraw", "study", "--out", str(statement), *at)
    told = sovfed("run", "withdraw", "study", gone, "--statement", str(statement), "--home", agency)
    assert f"{gone}: took part in 3 rounds" in told and verdict.predicate["model"]["sha256"] in told
    assert "made anew from the beginning" in sovfed("run", "unlearn", "study", "--name", "anew", "--home", agency)
    approved(ordered, "anew")
    sovfed("run", "start", "--proposed", "anew", "--no-follow", "--home", agency)
    answered(ordered, "anew", dict.fromkeys(left, "sign"))
    assert [sorted(line["participants"]) for line in finished(ordered, "anew")] == [sorted(left)] * 3
    again = check_release(released(ordered, "anew", left), load_roots(root))
    assert again.signed_by_all and again.predicate["institutions"] == sorted(left)
    assert again.predicate["unlearning"]["withdrawn"] == [gone]
    assert any(f"made anew without {gone}, which withdrew from run study" in line for line in again.holds)


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
        counts = [bound.answered for bound in OrderBook(ordered.client_home(member.name)).runs().values()]
        assert len(counts) <= 2  # the study's, and the one made anew


def ended(federation: LocalFederation, name: str, why: str) -> dict[str, Any]:
    """Wait until run `name` has ended badly, for the reason that `why` is part of."""
    wait_for(
        lambda: folders.read_run(federation.home, name, federation.control)["status"] not in folders.ACTIVE,
        f"run {name} to end",
    )
    run = folders.read_run(federation.home, name, federation.control)
    assert run["status"] == "failed" and why in run["reason"], json.dumps(run)
    return run


def test_models_are_scored_under_a_signed_order_that_names_them(ordered: LocalFederation) -> None:
    """`sovfed evaluate`, officers, masked sums, the signed table; own figures at each site, and nowhere else."""
    agency, names = str(ordered.home), [member.name for member in ordered.institutions]
    task, paths = get_task("breast_cancer"), []
    for number in (1, 2):
        path = ordered.folder / f"model-{number}"
        path.mkdir()
        vector, scale = initial_vector(task, number), task.transform.public_scale
        save_model(path, task, vector, scale, RunFacts(f"model-{number}"))
        paths.append(str(path))
    settings = ("run_name=choice", "server.min_cohort=3", "privacy.colluders=0", "order.wait_s=60")
    asked = [word for setting in settings for word in ("--set", setting)]
    told = sovfed("evaluate", *paths, "--task", "breast_cancer", "--home", agency, "--propose", *asked)
    assert "evaluation of 2 models" in told and told.count("model      ") == 2
    approved(ordered, "choice")
    sovfed("run", "start", "--proposed", "choice", "--no-follow", "--home", agency)
    answered(ordered, "choice", dict.fromkeys(names, "sign"))
    lines = finished(ordered, "choice")
    assert [line["model"]["name"] for line in lines] == ["model-1", "model-2"]
    homes = {name: str(ordered.client_home(name)) for name in lines[0]["participants"]}
    own = [json.loads(sovfed("client", "evaluations", "--json", "--home", home)) for home in homes.values()]
    for line in lines:
        scores = [runs[0]["models"][line["model"]["digest"]] for runs in own]
        assert sum(score["records"] for score in scores) == line["records"]
    sheet, root = ordered.folder / "choice.table", ordered.authority_home / "root.pem"
    sovfed("run", "table", "choice", "--out", str(sheet), "--home", agency)
    checked = CliRunner().invoke(verify, [str(sheet), "--root", str(root)])
    assert checked.exit_code == 0 and "no differential privacy" in checked.output, checked.output
    assert f"model-1  {lines[0]['model']['sha256'][:12]}…  {lines[0]['records']} held-out records" in checked.output
    received = ordered.folder / "received.table"
    told = sovfed("client", "table", "get", "choice", str(received), "--home", next(iter(homes.values())))
    assert f"{lines[0]['records']} held-out records" in told
    assert CliRunner().invoke(verify, [str(received), "--root", str(root)]).exit_code == 0
    scored_privately(ordered, paths, root)


def scored_privately(ordered: LocalFederation, paths: list[str], root: Path) -> None:
    """The same models under differential privacy: charged, noised, and delivered signed."""
    agency, names = str(ordered.home), [member.name for member in ordered.institutions]
    settings = ("run_name=quiet", "server.min_cohort=3", "privacy.colluders=0", "order.wait_s=60")
    private = ("privacy=distributed", "privacy.epsilon=1.4")
    asked = [word for setting in (*settings, *private) for word in ("--set", setting)]
    told = sovfed("evaluate", *paths, "--task", "breast_cancer", "--home", agency, "--propose", *asked)
    assert "3 masked sums of scores of held-out persons" in told and "would cost a person: ε 1." in told
    approved(ordered, "quiet")
    sovfed("run", "start", "--proposed", "quiet", "--no-follow", "--home", agency)
    answered(ordered, "quiet", dict.fromkeys(names, "sign"))
    lines = finished(ordered, "quiet")
    assert [line["model"]["name"] for line in lines] == ["model-1", "model-2"]
    assert all(line["noise_deviation"] > 1 and line["metrics"].keys() <= {"accuracy", "loss"} for line in lines)
    received = ordered.folder / "quiet.table"
    home = str(ordered.client_home(lines[0]["participants"][0]))
    assert "held-out persons" in sovfed("client", "table", "get", "quiet", str(received), "--home", home)
    checked = CliRunner().invoke(verify, [str(received), "--root", str(root)])
    assert checked.exit_code == 0 and "the agency states ε = 1.4" in checked.output, checked.output
