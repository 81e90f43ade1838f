"""An institution withdraws from a run: it is taken no more, the model is made anew without it, and releases say so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.release_fixture import ROUNDS, RUN, Released, finished_run, resealed, word_of
from tests.server.agency import server_config

from sovfed.federation.config import TrackingConfig
from sovfed.federation.errors import ConfigError, EvidenceError, IdentityError, PolicyError
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.orders.answers import WITHDRAWN
from sovfed.federation.orders.beginning import start_digest
from sovfed.federation.orders.order import Proposal, read_proposal
from sovfed.federation.release.checking import check_release
from sovfed.federation.release.cli import verify
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.cli.run import cli
from sovfed.server.home import Settings
from sovfed.server.orders.further import trained_further
from sovfed.server.orders.making import ANSWERS, Ordering, read_answers, write_order
from sovfed.server.orders.making import FILE as ORDER
from sovfed.server.orders.unlearning import left_before, left_since, unlearn, unlearning_config
from sovfed.server.orders.withdrawing import withdraw
from sovfed.server.orders.withdrawn import FILE, PROFILED, withdrawn_from
from sovfed.server.rounds import checkpoint
from sovfed.server.rounds.loop import whole_run
from sovfed.server.runs import certificate
from sovfed.server.runs.certificate import release
from sovfed.server.runs.folders import read_state, run_folder, stored_config
from sovfed.server.runs.logged import RunLog
from sovfed.server.runs.release import DIGEST, publish

HOSPITALS = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
LAST = HOSPITALS[3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("finished"), names=HOSPITALS)


@pytest.fixture
def federation(finished: Released, tmp_path: Path) -> Released:
    """The federation, for a test to change."""
    return finished.copied(tmp_path / "copy")


def digest_of(federation: Released) -> str:
    return read_proposal((federation.folder / ORDER).read_bytes()).order.digest


def statement(federation: Released, name: str = LAST, decision: str = WITHDRAWN, digest: str = "") -> bytes:
    return word_of(federation.agency.home.parent / name, digest or digest_of(federation), name, decision, officer=True)


def test_a_withdrawal_is_recorded_with_what_was_made_with_it(federation: Released) -> None:
    path = federation.folder / "said"
    path.write_bytes(statement(federation))
    words = ["withdraw", RUN, LAST, "--statement", str(path), "--home", str(federation.agency.home)]

    told = CliRunner().invoke(cli, words)

    assert told.exit_code == 0, told.output
    summary = json.loads((federation.folder / "summary.json").read_bytes())
    assert f"took part in {ROUNDS} rounds" in told.output and summary[DIGEST] in told.output
    (entry,) = [entry for entry in LogReader(federation.agency.home).newest() if entry["kind"] == "withdrawal"]
    assert (entry["institution"], entry["rounds"], entry["models"]) == (LAST, ROUNDS, [summary[DIGEST]])
    assert withdrawn_from(federation.folder) == {LAST}
    with pytest.raises(PolicyError, match="hospital-4 withdrew"):
        release(federation.agency.home, RUN, wait_s=0.0)


def test_a_release_made_before_is_not_touched_and_a_copy_of_it_made_after_says_so(federation: Released) -> None:
    before = release(federation.agency.home, RUN, wait_s=0.0)
    withdraw(federation.agency.home, RUN, LAST, statement(federation))
    (federation.folder / FILE).unlink()  # an agency that forgets it

    after = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)

    assert not any("withdrew" in line for line in check_release(before, federation.roots).missing)
    assert any("hospital-4, which withdrew after" in line for line in after.missing)


def test_a_withdrawal_that_nobody_has_recorded_yet_keeps_the_model_from_release(
    federation: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the institution's own answer, or while the release waits for cosignatures."""
    home, kept = federation.agency.home, read_answers(federation.folder)
    by_another = word_of(federation.homes[0], digest_of(federation), LAST, WITHDRAWN, officer=True)
    for word in (by_another, statement(federation, digest="0" * 64)):
        write_private(federation.folder / ANSWERS, json.dumps({**kept, LAST: json.loads(word)}).encode())
        certificate._require_nobody_withdrew(home, federation.folder)
    write_private(federation.folder / ANSWERS, json.dumps({**kept, LAST: json.loads(statement(federation))}).encode())
    with pytest.raises(PolicyError, match="hospital-4 withdrew"):
        release(home, RUN, wait_s=0.0)
    write_private(federation.folder / ANSWERS, json.dumps(kept).encode())
    monkeypatch.setattr(
        certificate, "_wait", lambda *_: withdraw(home, RUN, HOSPITALS[0], statement(federation, HOSPITALS[0]))
    )
    with pytest.raises(PolicyError, match="hospital-1 withdrew"):
        release(home, RUN, wait_s=0.0)


def test_nobody_else_withdraws_an_institution(federation: Released) -> None:
    home = federation.agency.home
    by_another = word_of(federation.homes[0], digest_of(federation), LAST, WITHDRAWN, officer=True)
    changed = json.dumps({**json.loads(statement(federation)), "reason": "another"}).encode()
    for said, error in (
        (by_another, IdentityError),
        (changed, IdentityError),
        (statement(federation, digest="0" * 64), IdentityError),
        (statement(federation, HOSPITALS[0]), ConfigError),
        (statement(federation, decision="refused"), ConfigError),
        (None, ConfigError),  # its answer to the run is a consent
    ):
        with pytest.raises(error):
            withdraw(home, RUN, LAST, said)
    assert withdrawn_from(federation.folder) == frozenset()


def test_a_withdrawal_that_cannot_be_read_lets_nobody_be_asked(federation: Released) -> None:
    write_private(federation.folder / FILE, b"[{]")
    with pytest.raises(ConfigError):
        withdrawn_from(federation.folder)


def test_the_model_is_made_anew_from_before_the_first_round_of_who_withdrew(federation: Released) -> None:
    home, folder = federation.agency.home, federation.folder
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    lines[0]["participants"] = list(HOSPITALS[:3])
    write_private(folder / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    config, model = stored_config(home, RUN), np.ones(get_task("digits_linear").parameters, np.float32)
    for number, vector in ((1, model), (2, model * 2)):  # the second holds who withdraws already
        made = checkpoint.Checkpoint(number, vector, np.zeros(0), {}, checkpoint.deciding(config))
        checkpoint.keep(folder, made, ROUNDS)
    write_private(folder / PROFILED, json.dumps(HOSPITALS[:3]).encode())
    withdraw(home, RUN, LAST, statement(federation))

    unlearning, proposal = unlearn(home, RUN, "anew")

    assert (unlearning.from_round, unlearning.withdrawn) == (1, (LAST,))
    assert proposal.order.cohort == HOSPITALS[:3] and proposal.order.run == "anew"
    assert (proposal.order.start, proposal.order.start_round) == (start_digest(model), 1)
    assert proposal.order.start_from == f"the model of run {RUN} after its round 1"
    again = unlearning_config(home, "anew")
    assert again is not None and again.order.cohort == HOSPITALS[:3]
    restored = checkpoint.read(run_folder(home, "anew"), again)
    assert restored is not None and restored.round == 1 and np.array_equal(restored.model, model)
    anew, agency = run_folder(home, "anew"), load_identity(home / "identity")
    checkpoint.write(anew, dataclasses.replace(restored, round=2, model=model * 3))  # it goes on, and is resumed
    task = get_task("digits_linear")
    shown = read_proposal(Ordering(again, "anew", anew, agency)(whole_run(again, task, "9", "anew", None)).tobytes())
    assert shown.order == proposal.order
    withdraw(home, RUN, HOSPITALS[2], statement(federation, HOSPITALS[2]))
    with pytest.raises(ConfigError, match="hospital-3 withdrew"):
        unlearning_config(home, "anew")
    with pytest.raises(ConfigError, match="there are 2 institutions, minimum cohort is 3"):
        unlearn(home, RUN, "too-few")


def test_who_is_in_the_model_that_a_run_made_anew_begins_with_may_still_leave(federation: Released) -> None:
    """By the rounds before it, or by the columns' profile alone; who came to the earlier run later is not in it."""
    home, folder = federation.agency.home, federation.folder
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line, names in zip(lines, (HOSPITALS[:1], HOSPITALS[2:], HOSPITALS[1:]), strict=True):
        line["participants"] = list(names)
    write_private(folder / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    config, model = stored_config(home, RUN), np.ones(get_task("digits_linear").parameters, np.float32)
    checkpoint.keep(folder, checkpoint.Checkpoint(1, model, np.zeros(0), {}, checkpoint.deciding(config)), ROUNDS)
    write_private(folder / PROFILED, json.dumps(HOSPITALS[1:2]).encode())
    withdraw(home, RUN, LAST, statement(federation))
    assert unlearn(home, RUN, "anew")[0].from_round == 1

    for name, within in ((HOSPITALS[2], set()), (HOSPITALS[1], {HOSPITALS[1]}), (HOSPITALS[0], set(HOSPITALS[:2]))):
        withdraw(home, RUN, name, statement(federation, name))
        assert left_since(home, "anew") == within
    for file in ("run.json", "summary.json", "model.safetensors"):
        shutil.copyfile(folder / file, run_folder(home, "anew") / file)
    with pytest.raises(
        PolicyError, match="hospital-1, hospital-2 withdrew from the run with whose model 'anew' begins"
    ):
        release(home, "anew", wait_s=0.0)
    digest = read_proposal((run_folder(home, "anew") / ORDER).read_bytes()).order.digest
    withdraw(home, "anew", HOSPITALS[1], statement(federation, HOSPITALS[1], digest=digest))
    with pytest.raises(ConfigError, match="without hospital-2 there are"):  # it is in the profile alone
        unlearn(home, "anew", "again")


def test_a_model_trained_further_from_one_that_somebody_withdrew_from_is_not_released(federation: Released) -> None:
    """Nor one trained further from that; a model that begins with none of theirs is."""
    home, folder = federation.agency.home, federation.folder
    first = json.loads((folder / "summary.json").read_bytes())[DIGEST]
    second, foreign = "2" * 64, "4" * 64
    for name, begun, made in (("second", first, second), ("third", second, second), ("other", foreign, foreign)):
        shutil.copytree(folder, run_folder(home, name))
        summary = json.loads((folder / "summary.json").read_bytes())
        changed = json.dumps({**summary, "started_from_sha256": begun, DIGEST: made})
        (run_folder(home, name) / "summary.json").write_text(changed)
    assert left_before(home, "third") == set()

    withdraw(home, RUN, LAST, statement(federation))

    assert (left_before(home, "second"), left_before(home, "third")) == ({LAST}, {LAST})
    assert left_before(home, "other") == left_before(home, RUN) == set()
    for file in ("summary.json", "rounds.jsonl", "model.safetensors"):  # as it was, but for what it began with
        shutil.copyfile(folder / file, run_folder(home, "second") / file)
    summary = json.loads((folder / "summary.json").read_bytes())
    (run_folder(home, "second") / "summary.json").write_text(json.dumps({**summary, "started_from_sha256": first}))
    with pytest.raises(PolicyError, match="hospital-4 withdrew from a run from whose model 'second' was"):
        release(home, "second", wait_s=0.0)


def test_runs_trained_further_are_named_where_somebody_withdraws_and_in_what_is_shown_and_listed(
    federation: Released,
) -> None:
    """By their own word, by their order alone, and at one remove; whoever looks sees who withdrew and what waits."""
    home, folder = federation.agency.home, federation.folder
    figures = {"train_loss": 0.5, "seconds": 1.0, "overhead_seconds": 0.5, "bytes_up": 1}
    lines = [json.loads(line) | figures for line in (folder / "rounds.jsonl").read_text().splitlines()]
    write_private(folder / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    first = json.loads((folder / "summary.json").read_bytes())[DIGEST]
    for name, begun, made in (
        ("second", first, "2" * 64),
        ("third", "2" * 64, "3" * 64),
        ("other", "4" * 64, "5" * 64),
    ):
        shutil.copytree(folder, run_folder(home, name))
        summary = json.loads((folder / "summary.json").read_bytes())
        changed = {**summary, "started_from_sha256": begun, DIGEST: made}
        (run_folder(home, name) / "summary.json").write_text(json.dumps(changed))
        (run_folder(home, name) / ORDER).unlink()
    order = read_proposal((folder / ORDER).read_bytes()).order
    begins = {"start": "e" * 64, "start_from": f"the model of run {RUN}", "start_file": first}
    write_order(
        private_directory(run_folder(home, "fourth")), Proposal(dataclasses.replace(order, run="fourth", **begins))
    )
    (private_directory(run_folder(home, "broken")) / ORDER).write_text("{")

    assert trained_further(home, RUN) == ["fourth", "second", "third"]
    shown = run(home, "show", RUN)
    assert "run third is trained further from this one's model\n" in shown
    (folder / "said").write_bytes(statement(federation))
    told = run(home, "withdraw", RUN, LAST, "--statement", str(folder / "said"))
    assert "run second is trained further from this one's model: what hospital-4 gave is in it" in told
    unlearn(home, RUN, "anew")
    shown = run(home, "show", RUN)
    assert "run fourth is trained further" in shown and "run anew makes it anew, without hospital-4" in shown
    assert json.loads(run(home, "show", RUN, "--json"))["trained_further"] == ["fourth", "second", "third"]
    listed = {entry["name"]: entry for entry in json.loads(run(home, "list", "--json"))}
    assert (listed[RUN]["withdrawn"], listed["second"]["withdrawn"]) == ([LAST], [])
    assert {name for name, entry in listed.items() if entry["status"] == "proposed"} == {"anew", "fourth", "broken"}
    told = run(home, "list")
    assert f"{RUN}: hospital-4 has withdrawn" in told and "anew: `sovfed run start --proposed anew` begins it" in told
    with pytest.raises(ConfigError, match="run 'anew' is proposed and has not begun"):
        read_state(home, "anew")


def test_a_run_made_anew_says_for_what_it_is(federation: Released) -> None:
    """Its order had the earlier run's purpose, and nobody was told."""
    home, old = federation.agency.home, read_proposal((federation.folder / ORDER).read_bytes()).order.purpose
    withdraw(home, RUN, LAST, statement(federation))
    told = run(home, "unlearn", RUN, "--name", "anew")
    assert f"for the purpose that run {RUN} had: {old}; --purpose says another" in told
    told = run(home, "unlearn", RUN, "--name", "other", "--purpose", "study 13")
    assert "purpose    study 13" in told and "--purpose says another" not in told
    config = unlearning_config(home, "other")
    assert config is not None and config.order.purpose == "study 13"


def run(home: Path, *words: str) -> str:
    """What a command of the agency says, whose server is down."""
    settings = Settings(server_config(home), TrackingConfig())
    write_private(home / "server.json", json.dumps(dataclasses.asdict(settings)).encode())
    ensure_secret(home / "secrets" / "loopback.secret")
    done = CliRunner().invoke(cli, [*words, "--home", str(home)])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.output


def test_an_institutions_withdrawal_is_verified_as_what_it_is(federation: Released) -> None:
    path, root = federation.folder / "hospital-4.withdrawal", federation.agency.authority / "root.pem"
    path.write_bytes(statement(federation))
    words = [str(path), "--root", str(root)]
    told = CliRunner().invoke(verify, words)
    assert told.exit_code == 0 and "signed by hospital-4, as the authority certified it: withdrawn" in told.output
    assert digest_of(federation) in told.output and "release" not in told.output
    values = json.loads(path.read_bytes())
    assert json.loads(CliRunner().invoke(verify, [*words, "--json"]).output) == values
    for name, value in (("reason", "another"), ("institution", "hospital-1"), ("order", "0" * 64), ("vouched", "!")):
        path.write_text(json.dumps({**values, name: value}))
        assert isinstance(CliRunner().invoke(verify, words).exception, EvidenceError)


def test_without_a_model_from_before_it_is_made_from_the_beginning(federation: Released) -> None:
    home = federation.agency.home
    with pytest.raises(ConfigError, match="nobody has withdrawn"):
        unlearn(home, RUN, "anew")
    withdraw(home, RUN, LAST, statement(federation))

    made, proposal = unlearn(home, RUN, "anew")
    assert (made.from_round, proposal.order.start) == (0, "")


def test_a_release_of_the_model_made_anew_names_who_is_left_out(federation: Released) -> None:
    bundle = release_anew(federation)

    verdict = check_release(bundle, federation.roots)

    assert any("made anew without hospital-4, which withdrew from run digits-1" in line for line in verdict.holds)
    assert any("not undone by that" in line for line in verdict.holds)
    assert verdict.predicate["institutions"] == list(HOSPITALS[:3])


@pytest.mark.parametrize(
    ("stated", "what"),
    [
        (None, "whether the run was made anew"),
        ({"of": RUN, "withdrawn": [], "from_round": 0, "earlier_model": ""}, "what was made anew"),
        ({"of": "other", "withdrawn": [LAST], "from_round": 0, "earlier_model": ""}, "what was made anew"),
    ],
)
def test_an_agency_that_tells_another_story_of_it_is_told(
    federation: Released, stated: dict[str, Any] | None, what: str
) -> None:
    bundle = release_anew(federation)
    with pytest.raises(EvidenceError, match=what):
        check_release(resealed(federation, bundle, unlearning=stated), federation.roots)


def test_who_withdrew_and_takes_part_again_is_noticed(federation: Released) -> None:
    with pytest.raises(EvidenceError, match="hospital-4 had withdrawn, and took part again"):
        release_anew(federation, HOSPITALS)


def release_anew(federation: Released, institutions: tuple[str, ...] = HOSPITALS[:3]) -> bytes:
    """The release of a run that made the model anew, in whose rounds `institutions` took part; nothing was trained."""
    home, task = federation.agency.home, get_task("digits_linear")
    withdraw(home, RUN, LAST, statement(federation))
    _, proposal = unlearn(home, RUN, "anew")
    folder, old = run_folder(home, "anew"), federation.folder
    (folder / ORDER).unlink()  # who agreed to it is told elsewhere
    config, log = unlearning_config(home, "anew"), RunLog(home, "anew", "2")
    assert config is not None and proposal.order.cohort == HOSPITALS[:3]
    log.begin(config, resume=False)
    rounds = (old / "rounds.jsonl").read_text().splitlines()
    lines = [{**json.loads(line), "participants": institutions} for line in rounds]
    for line in lines:
        log.round(line)
    write_private(folder / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    state = json.loads((old / "run.json").read_bytes())
    write_private(folder / "run.json", json.dumps({**state, "name": "anew"}).encode())
    summary = json.loads((old / "summary.json").read_bytes())
    summary |= {"institutions": list(institutions), "delivered_to": []}
    summary[DIGEST] = publish(
        folder, task, np.full(task.parameters, 0.5, np.float32), task.transform.public_scale, summary
    )
    write_private(folder / "summary.json", json.dumps(summary).encode())
    log.model(summary)
    log.end("finished")
    return release(home, "anew", wait_s=0.0)
