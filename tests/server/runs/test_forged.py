"""What a malicious agency seals anew, or takes from another day, is noticed by whoever has the root alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.release_fixture import NAMES, RUN, Released, finished_run, resealed, word_of

from sovfed.clients.models.compared import differences
from sovfed.clients.models.released import signed_release
from sovfed.federation.archive import zipped
from sovfed.federation.certificates import key_from_pem, make_crl, to_pem
from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.keys import LOG_KEY, load_key
from sovfed.federation.evidence.notes import Checkpoint, sign
from sovfed.federation.evidence.store import LogReader, record
from sovfed.federation.evidence.witness import cosignatures
from sovfed.federation.orders.order import read_proposal
from sovfed.federation.release import lineage
from sovfed.federation.release.agreement import BILL, FACTS, MODEL, PROMISE, _head, require_promise
from sovfed.federation.release.checking import (
    ENVELOPE,
    MAX_BYTES,
    MAX_TEXT_BYTES,
    REVOKED,
    check_release,
    read_release,
    require_of_its_day,
    require_short,
)
from sovfed.federation.release.cli import verify
from sovfed.federation.release.sealed import model_signature
from sovfed.federation.text import steers
from sovfed.server.orders.making import write_answers
from sovfed.server.registry import authority
from sovfed.server.runs.certificate import release
from sovfed.server.runs.logged import RunLog

FORGED = 120  # releases that are sealed anew with something odd in them


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def bundle(finished: Released) -> bytes:
    return release(finished.agency.home, RUN, wait_s=0.0)


@pytest.fixture
def federation(finished: Released, bundle: bytes, tmp_path: Path) -> Released:
    return finished.copied(tmp_path / "copy")


def files_in(bundle: bytes) -> dict[str, bytes]:
    return zipped.read(bundle, most=MAX_BYTES)


def entries_in(bundle: bytes) -> list[dict[str, Any]]:
    return list(json.loads(files_in(bundle)[lineage.ENTRIES]))


def test_a_release_says_that_no_entry_of_its_run_is_left_out(finished: Released, bundle: bytes) -> None:
    verdict = check_release(bundle, finished.roots)

    assert any("and no other entry of it up to its release" in line for line in verdict.holds)
    assert f"released on {datetime.now(UTC):%F}, by the log" in verdict.holds


@pytest.mark.parametrize("left_out", range(8))
def test_an_entry_of_the_run_that_is_left_out_is_missed(finished: Released, bundle: bytes, left_out: int) -> None:
    """A withdrawal, an audit that failed, a refusal: each entry of a run names the one before it."""
    entries = entries_in(bundle)
    assert len(entries) == 9
    fewer = canonical([entry for place, entry in enumerate(entries) if place != left_out])

    with pytest.raises(EvidenceError, match="that is not shown"):
        check_release(resealed(finished, bundle, {lineage.ENTRIES: fewer}), finished.roots)


def test_a_withdrawal_cannot_be_left_out_of_a_release_made_after_it(federation: Released) -> None:
    home = federation.agency.home
    record(home, "withdrawal", name=RUN, institution=NAMES[1], order="00", answer="00", rounds=3, first=1, models=[])
    bundle = release(home, RUN, wait_s=0.0)
    kept = [entry for entry in entries_in(bundle) if json.loads(entry["entry"])["kind"] != "withdrawal"]

    assert any("which withdrew" in line for line in check_release(bundle, federation.roots).missing)
    with pytest.raises(EvidenceError, match="that is not shown"):
        check_release(resealed(federation, bundle, {lineage.ENTRIES: canonical(kept)}), federation.roots)


def test_a_log_that_is_behind_what_an_institution_cosigned_is_refused(federation: Released, bundle: bytes) -> None:
    """The agency shows an older head of its log beside newer cosignatures, which then say more than it shows."""
    home = federation.agency.home
    record(home, "withdrawal", name=RUN, institution=NAMES[1], order="00", answer="00", rounds=3, first=1, models=[])
    federation.cosign(*federation.homes)
    newer = files_in(release(home, RUN, wait_s=0.0))[lineage.COSIGNED]

    with pytest.raises(EvidenceError, match=r"the log is behind what .* has cosigned"):
        check_release(resealed(federation, bundle, {lineage.COSIGNED: newer}), federation.roots)


def test_a_release_while_the_agency_logs_other_things_counts_who_cosigned_all_of_the_run(federation: Released) -> None:
    """Seen: with one more entry of anything, nobody had cosigned 'the log with all of it'."""
    home = federation.agency.home
    first = release(home, RUN, wait_s=0.0)
    federation.cosign(*federation.homes)
    record(home, "login", role="viewer")

    from sovfed.server.runs import certificate, folders

    summary = folders.read_summary(home, RUN)
    assert summary is not None
    log = check_release(certificate._sealed(home, RUN, summary), federation.roots).log
    assert log.whole == list(NAMES) and log.size > check_release(first, federation.roots).log.size


def test_an_institution_signs_no_release_whose_log_is_not_the_one_that_it_cosigned(federation: Released) -> None:
    """Without its cosignature, or of another log that goes on from what the agency itself has kept of it."""
    home, institution = federation.agency.home, federation.homes[0]
    federation.cosign(*federation.homes)
    bundle = release(home, RUN, wait_s=0.0)
    assert differences(institution, check_release(bundle, federation.roots)) == []
    hidden = resealed(federation, bundle, {lineage.COSIGNED: b"[]"})
    with pytest.raises(EvidenceError, match="the release has no cosignature by it"):
        signed_release(institution, hidden)

    federation.cosign(institution)  # it has seen the release's entry; the fork begins before that
    size = LogReader(home).extent()
    fork = Checkpoint(LogReader(home).voucher.origin, size, hashlib.sha256(b"another").digest())
    verdict = check_release(bundle, federation.roots)
    changed = replace(verdict.log, root=fork.root)
    said = differences(institution, replace(verdict, log=changed))
    assert said == [f"hospital-1 has seen {size} entries of the agency's log, and those of the release are others"]


def test_a_release_that_nobody_cosigned_to_its_end_is_not_signed_by_who_has_seen_more(federation: Released) -> None:
    home, institution = federation.agency.home, federation.homes[0]
    federation.cosign(*federation.homes)
    bundle = release(home, RUN, wait_s=0.0)
    record(home, "login", role="viewer")
    federation.cosign(institution)

    with pytest.raises(EvidenceError, match="are shown to be among them: it is to be made anew"):
        signed_release(institution, bundle)
    assert signed_release(institution, release(home, RUN, wait_s=5.0))


def test_a_head_of_another_log_is_refused(federation: Released, bundle: bytes) -> None:
    home = federation.agency.home
    key, voucher = load_key(home / LOG_KEY), LogReader(home).voucher
    size = check_release(bundle, federation.roots).log.size
    forged = sign(Checkpoint(voucher.origin, size, merkle.leaf_hash(b"another")), key)

    with pytest.raises(EvidenceError, match="is not in the log"):
        check_release(resealed(federation, bundle, {lineage.HEAD: forged}), federation.roots)


def test_a_file_that_no_release_has_is_refused(finished: Released, bundle: bytes) -> None:
    """As one that a loader would take in the model's place, sealed by the agency."""
    models = {name.partition("/")[2]: data for name, data in files_in(bundle).items() if name.startswith("model/")}
    signature = model_signature({**models, "pytorch_model.bin": b"x"}, finished.agency.home)
    for more in ({"model/pytorch_model.bin": b"x", "model.sig": signature}, {"LIESMICH": b"x"}):
        with pytest.raises(EvidenceError, match="no release has such a file"):
            check_release(resealed(finished, bundle, more), finished.roots)


def facts_with(bundle: bytes, **run: Any) -> dict[str, Any]:
    facts = json.loads(files_in(bundle)[FACTS])
    return {**facts, "run": {**facts["run"], **run}}


def with_head(model: bytes, facts: dict[str, Any]) -> bytes:
    """The safetensors file `model` with other facts in its head."""
    end = 8 + int.from_bytes(model[:8], "little")
    told = json.dumps({name: value for name, value in facts.items() if name != "model_sha256"})
    head = json.dumps({**json.loads(model[8:end]), "__metadata__": {"sovfed": told}}).encode()
    return len(head).to_bytes(8, "little") + head + model[end:]


def test_a_model_that_tells_of_itself_what_its_json_does_not_is_noticed(finished: Released, bundle: bytes) -> None:
    """The head of the model is all that whoever has that file alone reads."""
    facts = facts_with(bundle, metrics={"accuracy": 0.999})
    for files, what in (
        ({FACTS: json.dumps(facts).encode()}, "says otherwise than the head"),
        ({MODEL: with_head(files_in(bundle)[MODEL], facts)}, "not the one that the log"),
    ):
        with pytest.raises(EvidenceError, match=what):
            check_release(resealed(finished, bundle, signed_again(finished, bundle, files)), finished.roots)


@pytest.mark.parametrize(
    ("run", "what"),
    [
        ({"privacy": {"mechanism": "distributed", "epsilon": 0.1, "delta": 1e-6, "seeded": False}}, "other privacy"),
        ({"metrics": {"accuracy": 0.999}}, "other institutions or metrics"),
        ({"institutions": [*NAMES, "hospital-3"]}, "other institutions or metrics"),
        ({"strategy": "fedadam"}, "another size, version or strategy"),
    ],
)
def test_a_model_that_tells_of_itself_what_the_release_does_not_is_noticed(
    federation: Released, bundle: bytes, run: dict[str, Any], what: str
) -> None:
    """Also one that the agency has logged and released so: its head and `model.json` agree."""
    folder, facts = federation.folder, facts_with(bundle, **run)
    model = with_head(files_in(bundle)[MODEL], facts)
    facts["model_sha256"] = hashlib.sha256(model).hexdigest()
    (folder / "model.safetensors").write_bytes(model)
    (folder / "model.json").write_text(json.dumps(facts))
    summary = {**json.loads((folder / "summary.json").read_text()), "model_sha256": facts["model_sha256"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    RunLog(federation.agency.home, RUN, "1").model(summary)
    with pytest.raises(EvidenceError, match=what):
        release(federation.agency.home, RUN, wait_s=0.0)


def signed_again(federation: Released, bundle: bytes, files: dict[str, bytes]) -> dict[str, bytes]:
    """`files`, with the agency's signature over the model's folder as it is with them."""
    whole = {**files_in(bundle), **files}
    models = {name.partition("/")[2]: data for name, data in whole.items() if name.startswith("model/")}
    return {**files, "model.sig": model_signature(models, federation.agency.home)}


def test_a_name_that_stands_twice_in_a_file_is_refused(finished: Released, bundle: bytes) -> None:
    """Some readers take the first value, some the last: one of them would be told what was not checked."""
    for name in (FACTS, BILL):
        content = files_in(bundle)[name]
        key = json.loads(content)
        first = next(iter(key))
        twice = b'{"%s": null, ' % first.encode() + content.lstrip()[1:]
        with pytest.raises(EvidenceError, match="a name comes twice"):
            check_release(resealed(finished, bundle, signed_again(finished, bundle, {name: twice})), finished.roots)


STATED = {
    "mechanism": "distributed", "delta": 1e-6, "clip": 1.0, "unit": "person", "adjacency": "add or remove one",
    "accountant": "a", "epsilon": 1.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"epsilon": 0.5}, {"delta": 1e-9}, {"mechanism": "silo"}, {"clip": 0.1}, {"seeded": True}, {"run": "other"}],
)
def test_a_privacy_page_that_promises_otherwise_than_the_statement_is_noticed(changes: dict[str, Any]) -> None:
    promise = {**STATED, "run": RUN, "seeded": False}
    predicate = {"privacy": STATED, "run": {"name": RUN}}
    require_promise({PROMISE: json.dumps(promise).encode()}, predicate)
    with pytest.raises(EvidenceError, match="promises otherwise"):
        require_promise({PROMISE: json.dumps({**promise, **changes}).encode()}, predicate)


def test_a_privacy_page_beside_a_statement_without_privacy_is_noticed(finished: Released, bundle: bytes) -> None:
    with pytest.raises(EvidenceError, match="there without a promise"):
        check_release(resealed(finished, bundle, {PROMISE: b"{}"}), finished.roots)
    with pytest.raises(EvidenceError, match="missing beside one"):
        require_promise({}, {"privacy": STATED, "run": {"name": RUN}})


def crl_of(federation: Released, day: datetime, revoked: list[tuple[int, datetime]], days: int = 30) -> bytes:
    """A revocation list of the authority, as it was, or will be, on that day."""
    home = federation.agency.authority
    key = key_from_pem((home / "root.key").read_bytes(), "root.key")
    return to_pem(make_crl(key, federation.roots[0], revoked, 9, day, days))


@pytest.mark.parametrize("days", [-90, 90])
def test_a_revocation_list_of_another_day_is_refused(finished: Released, bundle: bytes, days: int) -> None:
    """An old one, from before somebody was revoked, in the place of the one that was in force."""
    other = crl_of(finished, datetime.now(UTC) + timedelta(days=days), [])

    with pytest.raises(EvidenceError, match="not the list that was in force"):
        check_release(resealed(finished, bundle, {REVOKED: other}), finished.roots)


def test_a_certificate_that_had_ended_before_signs_no_release(finished: Released, bundle: bytes) -> None:
    """By the key of an institution that left: its certificate ends, and is on no list any more."""
    log, envelope = check_release(bundle, finished.roots).log, read_release(bundle)[1]
    require_of_its_day(envelope, crl_of(finished, datetime.now(UTC), []), log)
    later = datetime.now(UTC) + timedelta(days=500)
    entries = tuple({**entry, "at": int(later.timestamp())} for entry in log.entries)

    with pytest.raises(EvidenceError, match="had ended before"):
        require_of_its_day(envelope, crl_of(finished, later, []), replace(log, entries=entries))


def test_an_answer_by_a_key_that_was_revoked_is_no_consent(tmp_path: Path) -> None:
    """An agency that has a stolen key signs the order with it, long after the authority has revoked it."""
    federation = finished_run(tmp_path)
    home, digest = federation.agency.home, read_proposal((federation.folder / "order.json").read_bytes()).order.digest
    kept = json.loads((federation.folder / "answers.json").read_bytes())
    forged = {**kept, NAMES[1]: json.loads(word_of(federation.homes[1], digest, NAMES[1], officer=True))}
    spelled = {name: json.dumps(value).encode() for name, value in forged.items()}
    RunLog(home, RUN, "1").answers(digest, write_answers(federation.folder, spelled))
    serial = int(authority.read_register(federation.agency.authority).issued[-1].serial, 16)
    before, after = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    bundle = release(home, RUN, wait_s=0.0)

    for when, refused in ((before, True), (after, False)):
        sealed = resealed(federation, bundle, {REVOKED: crl_of(federation, datetime.now(UTC), [(serial, when)])})
        if refused:
            with pytest.raises(EvidenceError, match="hospital-2 was revoked, or its certificate"):
                check_release(sealed, federation.roots)
        else:
            assert check_release(sealed, federation.roots).agency == "localhost"


def test_rounds_after_the_order_s_end_and_before_any_order_are_told(finished: Released, bundle: bytes) -> None:
    from sovfed.federation.release.ordered import _earlier, _require_in_time

    order = read_proposal(files_in(bundle)["orders/order.json"]).order
    log = check_release(bundle, finished.roots).log
    late = replace(log, entries=(*log.entries, {"kind": "round", "at": order.expires + 90_000}))
    early = replace(log, entries=({"kind": "round", "at": 1}, *log.entries))

    assert _earlier(order, log) == ()
    assert _earlier(order, early) == ("the order of 1 rounds that were made before this one was proposed",)
    with pytest.raises(EvidenceError, match="after the order had ended"):
        _require_in_time(order, late)


def test_what_would_fill_the_memory_as_it_is_read_is_refused_before() -> None:
    """JSON takes twenty times its length once it is read: the whole of a release could be its signatures."""
    for name in (ENVELOPE, lineage.ENTRIES, BILL):
        with pytest.raises(EvidenceError, match=f"{name}: 134217729 bytes"):
            require_short({name: bytes(MAX_TEXT_BYTES + 1)})
    require_short({MODEL: bytes(MAX_TEXT_BYTES + 1), ENVELOPE: b"{}"})
    with pytest.raises(EvidenceError, match="a head of"):
        _head((1 << 30).to_bytes(8, "little") + b"{}")


def test_what_is_no_file_or_too_long_is_not_read(finished: Released, tmp_path: Path) -> None:
    root, sparse = finished.agency.authority / "root.pem", tmp_path / "huge.release"
    with sparse.open("wb") as file:
        file.truncate(3 << 30)
    for path in ("/dev/zero", str(sparse)):
        begun = time.process_time()
        told = CliRunner().invoke(verify, [path, "--root", str(root)])
        assert isinstance(told.exception, EvidenceError) and "no file of at most" in str(told.exception)
        assert time.process_time() - begun < 60  # it is not read
    assert read_release(release(finished.agency.home, RUN, wait_s=0.0)) and cosignatures(finished.agency.home) == []


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**53 - 1, 1e300, "", "0" * 64, "\n✓ signed by the ministry", "\u202e", [], [[]], {}, {"a": 1},
    [None], [*NAMES, *NAMES], 10**15,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON `value`."""
    if path:
        yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*path, key))


def changed(value: Any, draw: random.Random) -> Any:
    """`value` with something in it left out, or another thing in its place."""
    made = json.loads(json.dumps(value))
    *path, last = draw.choice(list(places(made)))
    inner = made
    for key in path:
        inner = inner[key]
    if draw.random() < 0.2:
        del inner[last]
    else:
        inner[last] = draw.choice(ODD)
    return made


def test_nothing_that_an_agency_seals_ends_the_reader_or_steers_a_terminal(finished: Released, bundle: bytes) -> None:
    """Whatever stands in the statement or a file: the release holds, or an EvidenceError says that it does not."""
    draw, stated = random.Random(int(os.environ.get("SOVFED_FLIP_SEED", "15"))), read_release(bundle)[2]["predicate"]
    names = (FACTS, BILL, lineage.ENTRIES, lineage.KEYS, "orders/order.json", "orders/answers.json")
    held = 0
    for number in range(FORGED):
        if number % 2:
            predicate = changed(stated, draw)
            sealed = resealed(finished, bundle, None, **{name: predicate.get(name) for name in stated})
        else:
            name = draw.choice(names)
            content = canonical(changed(json.loads(files_in(bundle)[name]), draw))
            sealed = resealed(finished, bundle, signed_again(finished, bundle, {name: content}))
        with suppress(EvidenceError):
            verdict = check_release(sealed, finished.roots)
            held += 1
            assert not any(steers(line) for line in (*verdict.holds, *verdict.missing))
    assert 0 < held < FORGED / 2
