"""A regulator reads what a log has of a time, with proofs, and nothing of a person; a changed bundle does not hold."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.federation.evidence.conftest import make_home
from tests.lane_fixture import Authority

from sovfed.federation.archive import zipped
from sovfed.federation.errors import ConfigError, EvidenceError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.store import LogReader, record
from sovfed.federation.evidence.witness import keep_cosignature, watch
from sovfed.federation.identity import load_roots
from sovfed.federation.release import lineage, sealed
from sovfed.federation.release.incident import MAX_BYTES, REPORT, check_bundle, make_bundle, told
from sovfed.federation.release.incident_cli import incident

LONG = 10_000


def bundle_of(home: Path, *, early: bool = False) -> bytes:
    now = int(time.time())
    return make_bundle(home, now - LONG, now + LONG, "a node was lost", early=early)


def test_a_bundle_holds_the_entries_of_its_time_and_is_in_the_log_itself(hospital: Path) -> None:
    record(hospital, "refusal", request="TrainRequest", code="policy", count=8122)
    roots = load_roots(hospital / "identity" / "root.pem")

    checked = check_bundle(bundle_of(hospital), roots)

    assert [values["kind"] for values in checked.entries] == ["round"] * 7 + ["refusal"]
    assert checked.report["counts"] == {"round": 7, "refusal": 1}
    assert any("1 × refused" in line for line in told(checked)) and "a node was lost" in told(checked)
    again = check_bundle(bundle_of(hospital), roots)
    assert again.report["counts"]["incident"] == 1
    assert check_bundle(make_bundle(hospital, 0, 10, "", early=False), roots).entries == ()


def test_the_early_word_has_counts_and_no_entry(hospital: Path) -> None:
    checked = check_bundle(bundle_of(hospital, early=True), load_roots(hospital / "identity" / "root.pem"))
    assert checked.entries == () and checked.report["counts"] == {"round": 7}
    assert "an early word: counts by its own account, and no entries" in told(checked)


def test_a_regulator_is_told_who_has_cosigned_the_log_that_is_shown(hospital: Path, agency: Path) -> None:
    """Times are the home's own: what somebody else has seen, and when, stands beside them."""
    roots = load_roots(hospital / "identity" / "root.pem")
    assert any(
        "nobody has cosigned the log of 7 entries" in line for line in told(check_bundle(bundle_of(hospital), roots))
    )
    note = watch(agency, LogReader(hospital).voucher, LogReader(hospital).head(), ())
    keep_cosignature(hospital, LogReader(agency).voucher, LogReader(hospital).voucher, note)
    lines = told(check_bundle(bundle_of(hospital), roots))
    assert any("of the log's 8 entries the first 8 are cosigned by agency.example on 20" in line for line in lines)


def test_both_sides_have_commands_for_it(agency: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.incident"
    made = CliRunner().invoke(incident, ["bundle", "--home", str(agency), "--hours", "1", "--out", str(out)])
    assert made.exit_code == 0, made.output
    words = ["check", str(out), "--root", str(agency / "identity" / "root.pem")]
    assert "7 × rounds" in CliRunner().invoke(incident, words).output
    assert json.loads(CliRunner().invoke(incident, [*words, "--json"]).output)["report"]["early"] is False
    with pytest.raises(ConfigError, match="no log"):
        make_bundle(tmp_path, 0, 1, "", early=False)


def test_a_bundle_that_leaves_out_changes_or_borrows_does_not_hold(
    hospital: Path, authority: Authority, tmp_path: Path
) -> None:
    """Also where the home itself signs it again."""
    roots, data = load_roots(hospital / "identity" / "root.pem"), bundle_of(hospital)
    files = zipped.read(data, most=MAX_BYTES)
    report, entries = json.loads(sealed.read_envelope(files[REPORT]).payload), json.loads(files[lineage.ENTRIES])
    other = make_home(authority, tmp_path, "hospital-10")
    borrowed = lineage.show(other, lambda seq, values: True)

    def signed(home: Path, shown: dict[str, bytes], **changes: object) -> bytes:

        digests = {name: hashlib.sha256(content).hexdigest() for name, content in shown.items() if name != REPORT}
        payload = canonical({**report, "files": digests, **changes})
        envelope = sealed.Envelope(payload, (sealed.sign(payload, home),)).to_bytes()
        return zipped.write({**shown, REPORT: envelope}, most=MAX_BYTES)

    def told_less(home: Path, begin: int, kept: slice, **changes: object) -> bytes:
        """A bundle of its own making: entries left out of the counts too."""
        fewer = entries[kept]
        kinds = [json.loads(shown["entry"]) for shown in fewer]
        counts = Counter(values["kind"] for values in kinds if begin <= values["at"])
        shown = {**files, lineage.ENTRIES: canonical(fewer)}
        return signed(home, shown, **{"from": begin, "counts": counts, **changes})

    left_out = {**files, lineage.ENTRIES: canonical(entries[1:])}
    changed = {**files, lineage.ENTRIES: files[lineage.ENTRIES].replace(b"hospital-2", b"hospital-3")}
    for bad in (
        zipped.write(left_out, most=MAX_BYTES),
        signed(hospital, left_out),
        signed(hospital, changed),
        signed(hospital, {**files, **borrowed}),
        signed(other, files),
        signed(hospital, files, to=report["from"]),
        told_less(hospital, report["from"], slice(1, None)),
        told_less(hospital, report["from"], slice(None, -1)),
        told_less(hospital, report["from"], slice(None, None, 2)),
        told_less(hospital, report["from"], slice(0)),
        signed(hospital, files, early=True),
        signed(hospital, files, counts={**report["counts"], "round": 6}),
        *(signed(hospital, files, to=end) for end in (10**12, 2**52, 1e300, "later", None)),
        signed(hospital, files, versions=[]),
        data[:-1],
        b"",
    ):
        with pytest.raises(EvidenceError):
            check_bundle(bad, roots)
    assert check_bundle(signed(hospital, files), roots).entries
    assert check_bundle(told_less(hospital, report["from"], slice(None)), roots).entries


def test_a_bundle_reaches_over_its_time_whatever_the_clock_said(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours show that nothing between them was left out, and are told to nobody."""
    roots, now = load_roots(hospital / "identity" / "root.pem"), int(time.time())
    for later in (100, 90, 200, 150, 300):  # a clock that was set back
        monkeypatch.setattr(time, "time", lambda later=later: float(now + later))
        record(hospital, "refusal", request="TrainRequest", code=str(later), count=1)
    for begin, end, codes in (
        (95, 180, ["100", "150"]), (201, 299, []), (90, 90, ["90"]), (400, 500, []), (300, 500, ["300"]),
    ):  # fmt: skip
        monkeypatch.setattr(time, "time", lambda: float(now + 10_000))
        checked = check_bundle(make_bundle(hospital, now + begin, now + end, "", early=False), roots)
        assert [values["code"] for values in checked.entries] == codes
        assert checked.report["counts"] == ({"refusal": len(codes)} if codes else {})
