"""Rows at fault: refused, or left out and listed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.clients.data.cases import SMALL, written
from tests.clients.data.csv_files import LINES, load, sides

from sovfed.federation.errors import DataError


def test_bad_rows_are_left_out_up_to_a_share_and_listed_privately(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{30 + row},1,0,p{row}" for row in range(40)]
    lines[3], lines[7] = "33,secret,0,p3", "37,9,0,p7"
    config = written(tmp_path, "\n".join(["age,dose,ill,patient", *lines]), bad_rows="quarantine")
    records = load(config, SMALL)
    assert len(records) == 38
    listed = tmp_path / "records.csv.bad-rows"
    assert listed.read_text() == 'line,column,fault\n5,"dose",number\n9,"dose",outside\n'
    assert listed.stat().st_mode & 0o777 == 0o600
    assert "2 of 40 rows left out" in caplog.text
    assert "secret" not in caplog.text
    for share, file in ((0.04, None), (0.05, str(tmp_path / "else"))):
        changed = dataclasses.replace(config, max_bad_share=share, bad_rows_file=file)
        if share < 0.05:
            with pytest.raises(DataError, match=r"2 of 40 rows cannot be used, more than data.max_bad_share 0.04"):
                load(changed, SMALL)
        else:
            assert len(load(changed, SMALL)) == 38
            assert (tmp_path / "else").exists()


def test_the_list_of_bad_rows_is_written_over_no_other_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Settings that somebody else has made may name any file of this user's."""
    other, link = tmp_path / "authorized_keys", tmp_path / "link"
    other.write_text("ssh-ed25519 AAAA mine\n")
    link.symlink_to(other)
    lines = [f"{30 + row},1,0,p{row}" for row in range(40)]
    lines[3] = "33,secret,0,p3"
    text = "\n".join(["age,dose,ill,patient", *lines])
    for path in (other, link, tmp_path):
        assert len(load(written(tmp_path, text, bad_rows="quarantine", bad_rows_file=str(path)), SMALL)) == 39
        assert f"they are not written to {path}, which is another file" in caplog.text
    assert other.read_text() == "ssh-ed25519 AAAA mine\n"
    assert link.is_symlink()
    for _ in range(2):  # its own list is written anew
        load(written(tmp_path, text, bad_rows="quarantine", bad_rows_file=str(tmp_path / "list")), SMALL)
        assert (tmp_path / "list").read_text() == 'line,column,fault\n5,"dose",number\n'


def test_codes_without_a_meaning_are_never_left_out(tmp_path: Path) -> None:
    """1 and 2 for no and yes: with few of class 2 all others would be read as the wrong class."""
    text = "\n".join(["age,dose,ill", *["50,1,1"] * 60, "51,1,2"])
    with pytest.raises(DataError, match="column 'ill': 1 value is a code"):
        load(written(tmp_path, text, bad_rows="quarantine"))


def test_a_row_at_fault_changes_nothing_for_another(tmp_path: Path) -> None:
    whole = load(
        written(tmp_path, "\n".join(["age,dose,ill,patient", *(f"{line},p{row}" for row, line in enumerate(LINES))])),
        SMALL,
    )
    lines = [f"{line},p{row}" for row, line in enumerate(LINES)]
    lines.insert(5, "1,<0.1,0,q")
    less = load(written(tmp_path, "\n".join(["age,dose,ill,patient", *lines]), bad_rows="quarantine"), SMALL)
    assert sides(whole) == sides(less)
