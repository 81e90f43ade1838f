"""A release is checked by the root alone: what holds, what is missing, and that no byte of it can be changed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.release_fixture import NAMES, ROUNDS, RUN, Released, finished_run, resealed, sealed_by_the_agency

from sovfed.cli import cli
from sovfed.clients.models.released import signed_release
from sovfed.federation.archive import zipped
from sovfed.federation.errors import ConfigError, DataError, EvidenceError, IdentityError, PolicyError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.beginning import Beginning
from sovfed.federation.release import lineage, sealed
from sovfed.federation.release.agreement import FACTS, MODEL
from sovfed.federation.release.checking import ENVELOPE, MAX_BYTES, check_release, read_release, with_signature
from sovfed.federation.release.standalone import write_verifier
from sovfed.federation.tasks.registry import get_task
from sovfed.server.registry import authority
from sovfed.server.runs import tracking
from sovfed.server.runs.certificate import release
from sovfed.server.runs.folders import stored_config
from sovfed.server.runs.gates import require_cosigners
from sovfed.server.runs.logged import RunLog
from sovfed.server.runs.release import FILES, SUMMARY, publish
from sovfed.server.runs.tracking import Tracker, approve, tracking_uri

FLIPS = 300


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def bundle(federation: Released) -> bytes:
    """A release that both institutions have cosigned and signed."""
    release(federation.agency.home, RUN, wait_s=0.0)  # logged: what is cosigned next holds it
    federation.cosign(*federation.homes)
    data = _sealed_again(federation)
    for home in federation.homes:
        data = signed_release(home, data)
    return data


def _sealed_again(federation: Released) -> bytes:
    """The release of a log that does not grow by it."""
    from sovfed.server.runs import certificate, folders

    summary = folders.read_summary(federation.agency.home, RUN)
    assert summary is not None
    return certificate._sealed(federation.agency.home, RUN, summary)


def _replaced(data: bytes, **files: bytes) -> bytes:
    """The release with other files, which nobody has signed."""
    entries = zipped.read(data, most=MAX_BYTES)
    return zipped.write({**entries, **files}, most=MAX_BYTES)


def test_a_model_that_was_trained_further_says_so_wherever_it_is_shown(tmp_path: Path) -> None:
    """A private run that began with a model of bare records: its card promised ε, and its release could as well."""
    first = "ab" * 32
    further = finished_run(tmp_path, begins=Beginning("ef" * 32, "the model of run earlier", 0, first))
    bundle = release(further.agency.home, RUN, wait_s=0.0)

    holds = check_release(bundle, further.roots).holds
    assert any(f"trained further from the model with SHA-256 {first}" in line for line in holds)
    for other in (None, "", "cd" * 32):
        with pytest.raises(EvidenceError, match="began with"):
            check_release(resealed(further, bundle, started_from=other), further.roots)
    facts = json.loads(zipped.read(bundle, most=MAX_BYTES)[FACTS])
    del facts["run"]["started_from"]
    with pytest.raises(EvidenceError, match="model's own facts name another model that the run began with, or none"):
        check_release(resealed(further, bundle, {FACTS: json.dumps(facts, indent=2).encode()}), further.roots)
    task, summary = get_task("digits_linear"), json.loads((further.folder / SUMMARY).read_text())
    vector = np.linspace(-1, 1, task.parameters, dtype=np.float32)
    private = summary | {"epsilon": 3.0, "delta": 1e-5, "privacy": {"mechanism": "distributed"}}
    publish(further.folder, task, vector, task.transform.public_scale, private)
    assert f"says nothing of the model with SHA-256 <code>{first}" in (further.folder / "model.html").read_text()


def test_a_whole_release_holds_and_says_what_is_missing(federation: Released, bundle: bytes) -> None:
    verdict = check_release(bundle, federation.roots)

    assert (verdict.agency, verdict.institutions) == ("localhost", NAMES)
    assert verdict.log.whole == list(NAMES)
    assert len(verdict.log.of_kind("round")) == ROUNDS
    assert "the model may tell" in " ".join(verdict.holds)
    assert not any("signatures of" in line or "cosignatures" in line for line in verdict.missing)
    assert verdict.predicate["evaluation"]["over_last_rounds"] == {"accuracy": [0.75, 0.875]}


def test_a_release_that_nobody_else_has_signed_or_cosigned_says_so(tmp_path: Path) -> None:
    federation = finished_run(tmp_path)

    verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)

    assert verdict.institutions == () and verdict.log.whole == []
    assert verdict.missing[:2] == (
        "signatures of hospital-1, hospital-2, which took part", "cosignatures of the log by hospital-1, hospital-2",
    )  # fmt: skip


def test_verify_says_how_what_is_missing_can_be_had_and_what_is_no_root(
    tmp_path: Path, federation: Released, bundle: bytes
) -> None:
    """Seen: `--root server.pem` was answered by the lack of a revocation list, and nobody knew how a clinic signs."""
    unsigned, signed, root = (
        tmp_path / "x.release",
        tmp_path / "y.release",
        federation.homes[0] / "identity" / "root.pem",
    )
    unsigned.write_bytes(_sealed_again(federation))
    signed.write_bytes(bundle)
    told = CliRunner().invoke(cli, ["verify", str(unsigned), "--root", str(root)]).output
    assert "signatures: `sovfed client release sign x.release`" in told
    assert f"`sovfed client release declare {RUN}`" in told and f"`sovfed audit canary --run {RUN}`" in told
    assert "release sign" not in CliRunner().invoke(cli, ["verify", str(signed), "--root", str(root)]).output
    other = CliRunner().invoke(cli, ["verify", str(signed), "--root", str(root.parent / "cert.pem")])
    assert isinstance(other.exception, IdentityError) and "not an authority's root" in str(other.exception)


def test_equal_logs_make_equal_releases(federation: Released, bundle: bytes) -> None:
    assert _sealed_again(federation) == _sealed_again(federation)


def test_one_bit_turned_anywhere_is_noticed(federation: Released, bundle: bytes) -> None:
    draw = random.Random(int(os.environ.get("SOVFED_FLIP_SEED", "15")))
    for _ in range(FLIPS):
        changed = bytearray(bundle)
        position, bit = draw.randrange(len(bundle)), 1 << draw.randrange(8)
        changed[position] ^= bit
        with pytest.raises(EvidenceError):
            check_release(bytes(changed), federation.roots)


def test_every_file_is_the_one_that_was_signed(federation: Released, bundle: bytes) -> None:
    for name, content in zipped.read(bundle, most=MAX_BYTES).items():
        with pytest.raises(EvidenceError):
            check_release(_replaced(bundle, **{name: content[:-1] + bytes([content[-1] ^ 1])}), federation.roots)


def test_bits_turned_in_every_part_of_the_signatures_are_noticed(federation: Released, bundle: bytes) -> None:
    envelope = zipped.read(bundle, most=MAX_BYTES)[ENVELOPE]
    for position in range(0, len(envelope), 37):
        changed = bytearray(envelope)
        changed[position] ^= 2
        with pytest.raises(EvidenceError):
            check_release(_replaced(bundle, **{ENVELOPE: bytes(changed)}), federation.roots)


@pytest.mark.parametrize("change", ["more", "less", "behind", "before"])
def test_bytes_beside_the_files_are_noticed(federation: Released, bundle: bytes, change: str) -> None:
    entries = zipped.read(bundle, most=MAX_BYTES)
    changed = {
        "more": lambda: zipped.write({**entries, "more.txt": b"x"}, most=MAX_BYTES),
        "less": lambda: zipped.write({n: d for n, d in entries.items() if n != "model/model.html"}, most=MAX_BYTES),
        "behind": lambda: bundle + b"\0",
        "before": lambda: b"\0" + bundle,
    }[change]()

    with pytest.raises(EvidenceError):
        check_release(changed, federation.roots)


def test_a_dropped_signature_is_told_as_missing(federation: Released, bundle: bytes) -> None:
    _, envelope, _ = read_release(bundle)
    fewer = sealed.Envelope(envelope.payload, envelope.signatures[:2])

    verdict = check_release(_replaced(bundle, **{ENVELOPE: fewer.to_bytes()}), federation.roots)

    assert "signatures of hospital-2, which took part" in verdict.missing


def test_a_release_without_the_agencys_signature_is_none(federation: Released, bundle: bytes) -> None:
    _, envelope, _ = read_release(bundle)
    fewer = sealed.Envelope(envelope.payload, envelope.signatures[1:])

    with pytest.raises(EvidenceError, match="not signed by an agency"):
        check_release(_replaced(bundle, **{ENVELOPE: fewer.to_bytes()}), federation.roots)


def test_another_authoritys_release_is_none(bundle: bytes, tmp_path: Path) -> None:
    authority.init(tmp_path / "other", "Somebody else")

    with pytest.raises(EvidenceError, match="no chain to the root"):
        check_release(bundle, load_roots(tmp_path / "other" / "root.pem"))


def test_an_institution_cannot_seal_a_release_of_its_own(federation: Released, bundle: bytes) -> None:
    _, envelope, _ = read_release(bundle)
    forged = sealed.Envelope(envelope.payload, (sealed.sign(envelope.payload, federation.homes[0]),))

    with pytest.raises(EvidenceError, match="not signed by an agency"):
        check_release(_replaced(bundle, **{ENVELOPE: forged.to_bytes()}), federation.roots)


def test_an_institution_does_not_sign_what_does_not_hold_or_twice(federation: Released, bundle: bytes) -> None:
    with pytest.raises(EvidenceError, match="has signed"):
        signed_release(federation.homes[0], bundle)
    with pytest.raises(EvidenceError):
        signed_release(federation.homes[0], _replaced(bundle, **{MODEL: b"another"}))


def test_what_an_institution_signed_is_in_its_own_log(federation: Released, bundle: bytes) -> None:
    newest = next(LogReader(federation.homes[0]).newest())

    assert (newest["kind"], newest["name"]) == ("release", RUN)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"institutions": ["hospital-1"]}, "other institutions"),
        ({"institutions": [*NAMES, "hospital-3"]}, "other institutions"),
        ({"model": {"sha256": "00" * 32, "round": 3, "parameters": 1}}, "not the one that the log"),
        ({"privacy": {"mechanism": "distributed", "epsilon": 1.0, "delta": 1e-6}}, "another privacy mechanism"),
        ({"secure_aggregation": ""}, "whether sums were masked"),
    ],
)
def test_an_agency_that_states_what_its_log_does_not_say_is_told(
    federation: Released, bundle: bytes, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(EvidenceError, match=what):
        check_release(resealed(federation, bundle, **changes), federation.roots)


@pytest.mark.parametrize(
    ("part", "changes", "what"),
    [
        ("model", {"round": ROUNDS - 1}, "another round"),
        ("run", {"rounds": ROUNDS + 1}, "another number"),
        ("run", {"task": {"name": "heart", "digest": "00", "version": "1"}}, "another task"),
        ("run", {"task": {"name": "digits_linear", "digest": "00", "version": "1"}}, "of another run or task"),
    ],
)
def test_an_agency_that_states_another_round_or_task_is_told(
    federation: Released, bundle: bytes, part: str, changes: dict[str, Any], what: str
) -> None:
    stated = {**read_release(bundle)[2]["predicate"][part], **changes}

    with pytest.raises(EvidenceError, match=what):
        check_release(resealed(federation, bundle, **{part: stated}), federation.roots)


def test_an_agency_whose_files_are_of_another_model_than_it_states_is_told(federation: Released, bundle: bytes) -> None:
    files = zipped.read(bundle, most=MAX_BYTES)
    facts, bill = json.loads(files["model/model.json"]), json.loads(files["mlbom.cdx.json"])
    facts["task"]["digest"] = "00"
    bill["metadata"]["component"]["hashes"][0]["content"] = "00" * 32
    entries, signature = json.loads(files[lineage.ENTRIES]), sealed.model_signature({"x": b""}, federation.agency.home)
    for name, content, what in (
        ("model/model.json", json.dumps(facts).encode(), "of another run or task"),
        ("mlbom.cdx.json", json.dumps(bill).encode(), "of another model"),
        ("model.sig", signature, "of other files"),
        (lineage.ENTRIES, canonical(entries[::-1]), "after a later one"),
        (lineage.ENTRIES, canonical([*entries, entries[-1]]), "comes twice"),
        (lineage.ENTRIES, b"[{}, " + files[lineage.ENTRIES][1:], "."),
        (lineage.ENTRIES, files[lineage.ENTRIES] + b" ", "spelled"),
        (lineage.ENTRIES, b"[" * 100_000, "form"),
    ):
        with pytest.raises(EvidenceError, match=what):
            check_release(resealed(federation, bundle, {name: content}), federation.roots)


def test_a_statement_that_is_nested_too_deep_is_refused_like_any_other(federation: Released, bundle: bytes) -> None:
    files = zipped.read(bundle, most=MAX_BYTES)
    for payload in (b"[" * 100_000, b'{"a":' * 400 + b"1" + b"}" * 400, b'{"a":NaN}'):
        with pytest.raises(EvidenceError):
            check_release(sealed_by_the_agency(federation, files, payload), federation.roots)


def test_an_institution_that_did_not_take_part_cannot_sign(tmp_path: Path) -> None:
    federation = finished_run(tmp_path)
    stranger = tmp_path / "hospital-3"
    with federation.agency.run():
        federation.agency.enrol(stranger, "hospital-3")
    data = release(federation.agency.home, RUN, wait_s=0.0)
    _, envelope, _ = read_release(data)

    with pytest.raises(EvidenceError, match="hospital-3, which did not take part"):
        check_release(with_signature(data, sealed.sign(envelope.payload, stranger)), federation.roots)


@pytest.mark.parametrize("institutions", [[], ["hospital-1"]], ids=["none", "fewer"])
def test_an_agency_that_names_fewer_institutions_than_its_rounds_had_is_told(
    tmp_path: Path, institutions: list[str]
) -> None:
    """Seen: with nobody named, `verify --signed-by-all` was content with nobody's signature."""
    federation = finished_run(tmp_path)
    summary = {**json.loads((federation.folder / "summary.json").read_text()), "institutions": institutions}
    (federation.folder / "summary.json").write_text(json.dumps(summary))
    RunLog(federation.agency.home, RUN, "1").model(summary)

    with pytest.raises(EvidenceError, match=r"no round in which|hospital-2 took part"):
        release(federation.agency.home, RUN, wait_s=0.0)


def test_a_model_that_no_round_made_is_not_released(tmp_path: Path) -> None:
    federation, name = finished_run(tmp_path), "digits-2"
    folder = federation.folder.parent / name
    shutil.copytree(federation.folder, folder)
    summary = json.loads((folder / "summary.json").read_text())
    log = RunLog(federation.agency.home, name, "2")
    log.begin(stored_config(federation.agency.home, RUN), resume=False)
    log.model(summary)
    log.end("finished")

    with pytest.raises(EvidenceError, match="no round in which"):
        release(federation.agency.home, name, wait_s=0.0)


def test_a_model_that_the_run_did_not_end_with_is_not_released(tmp_path: Path) -> None:
    federation = finished_run(tmp_path)
    path = federation.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")

    with pytest.raises(DataError, match="not the model"):
        release(federation.agency.home, RUN, wait_s=0.0)


def test_the_signature_of_an_institution_that_was_revoked_before_counts_for_nothing(tmp_path: Path) -> None:
    federation = finished_run(tmp_path)
    authority.revoke(federation.agency.authority, "hospital-1")
    federation.agency.publish_crl((federation.agency.authority / "crl.pem").read_bytes())
    data = release(federation.agency.home, RUN, wait_s=0.0)

    with pytest.raises(EvidenceError, match="revoked"):
        check_release(signed_release(federation.homes[0], data), federation.roots)
    assert check_release(signed_release(federation.homes[1], data), federation.roots).institutions == ("hospital-2",)


def test_the_cosignature_of_an_institution_that_was_revoked_counts_for_nothing(tmp_path: Path) -> None:
    """Seen: `verify --cosigned-by 2` was content with one that was on the release's own list of the revoked."""
    federation = finished_run(tmp_path)
    home = federation.agency.home
    size = LogReader(home).extent()
    federation.cosign(*federation.homes)
    authority.revoke(federation.agency.authority, "hospital-1")
    federation.agency.publish_crl((federation.agency.authority / "crl.pem").read_bytes())

    verdict = check_release(release(home, RUN, wait_s=0.0), federation.roots)

    assert list(verdict.log.cosigned) == ["hospital-2"]
    revoked = (federation.agency.authority / "crl.pem").read_bytes()
    require_cosigners(home, size, 1, revoked)
    with pytest.raises(PolicyError, match="cosigned by hospital-2; release_cosigners is 2"):
        require_cosigners(home, size, 2, revoked)


def test_the_verifier_is_one_file_of_equal_bytes(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("one.pyz", "two.pyz"))
    told = CliRunner().invoke(cli, ["verifier", str(first)], catch_exceptions=False)
    assert write_verifier(second) in told.output and first.read_bytes() == second.read_bytes()
    again = CliRunner().invoke(cli, ["verifier", str(first)])
    assert isinstance(again.exception, ConfigError) and "exists" in str(again.exception)


def test_verify_is_quick_and_needs_the_root_alone(federation: Released, bundle: bytes, tmp_path: Path) -> None:
    path, root = tmp_path / "model.release", tmp_path / "root.pem"
    path.write_bytes(bundle)
    root.write_bytes((federation.agency.authority / "root.pem").read_bytes())
    code = (
        "import sys; from sovfed.cli import cli; cli(['verify', sys.argv[1], '--root', sys.argv[2]], "
        "standalone_mode=False); print(sorted({'torch', 'mlflow', 'numpy', 'flwr'} & sys.modules.keys()))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(root)], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / ".src")},
    )  # fmt: skip

    assert "✓ signed by the agency localhost and by hospital-1, hospital-2" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_openssf_model_signing_verifies_the_model_too(bundle: bytes, tmp_path: Path) -> None:
    """A foreign verifier, if it is installed: `pip install model-signing`."""
    program = os.environ.get("SOVFED_MODEL_SIGNING", "")
    if not program:
        pytest.importorskip("model_signing", reason="model-signing is not installed")
    with zipfile.ZipFile(_written(tmp_path / "x.release", bundle)) as file:
        file.extractall(tmp_path / "x")
    command = [program or sys.executable, "-m", "model_signing", "verify", "key", str(tmp_path / "x" / "model")]
    command += ["--signature", str(tmp_path / "x" / "model.sig"), "--public_key", str(tmp_path / "x" / "agency.pub")]

    good = subprocess.run(command, check=False, capture_output=True, text=True)
    model = tmp_path / "x" / MODEL
    model.chmod(0o600)
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    bad = subprocess.run(command, check=False, capture_output=True, text=True)

    assert good.returncode == 0, good.stdout + good.stderr
    assert bad.returncode != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_mlflow_has_a_candidate_and_only_a_release_is_approved(
    federation: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    home = federation.agency.home
    config = stored_config(home, RUN)
    tracker = Tracker(config, home, federation.folder, RUN)
    tracker.finish("FINISHED", [federation.folder / name for name in FILES], register=True)
    client = MlflowClient(tracking_uri(config, home))
    before = dict(client.get_registered_model("sovfed-digits_linear").aliases)

    assert approve(home, RUN) == []
    after = dict(client.get_registered_model("sovfed-digits_linear").aliases)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = dataclasses.replace(config.tracking, uri="http://ann:passphrase@127.0.0.1:1")
    monkeypatch.setattr(tracking, "stored_config", lambda *_: dataclasses.replace(config, tracking=away))
    (line,) = approve(home, RUN)  # seen: a traceback, though the release was written

    assert "MLflow does not answer" in line and "passphrase" not in line
    assert before.keys() == {"candidate"} and after.keys() == {"candidate", "approved"}
    assert after["approved"] == after["candidate"] == before["candidate"]


def test_the_bill_of_materials_is_cyclonedx(bundle: bytes) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bill = zipped.read(bundle, most=MAX_BYTES)["mlbom.cdx.json"].decode()

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    assert json.loads(bill)["metadata"]["component"]["type"] == "machine-learning-model"


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
