"""Persons on the institution's list are in nothing that is trained or evaluated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.clients.data.cases import NAMELESS, SMALL, written

from sovfed.clients.data import Records, load_records, opt_out_stamp
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.registry import get_task

TEXT = "patient,age,dose,ill\n" + "".join(f"p{row % 20},{20 + row},1,no\n" for row in range(60))


def used(records: object) -> set[int]:
    """The persons that train or are held out."""
    assert isinstance(records, Records)
    return {int(records.persons[row]) for row in (*records.train, *records.test)}


def test_a_person_on_the_list_neither_trains_nor_is_held_out_and_nobody_else_moves(tmp_path: Path) -> None:
    config = written(tmp_path, TEXT)
    everybody = load_records(SMALL, config)
    listed = tmp_path / "no.txt"
    listed.write_text("\ufeffp3\r\n  p7 \n\nnobody-here\n", encoding="utf-8")
    some = load_records(SMALL, dataclasses.replace(config, opt_out=str(listed)))
    assert used(everybody) == set(range(20))
    assert used(some) == set(range(20)) - {3, 7}
    assert isinstance(everybody, Records) and isinstance(some, Records)
    for before, after in ((everybody.train, some.train), (everybody.test, some.test)):
        kept = [row for row in before if everybody.persons[row] not in (3, 7)]
        np.testing.assert_array_equal(after, kept)
    listed.write_text("")
    assert used(load_records(SMALL, dataclasses.replace(config, opt_out=str(listed)))) == set(range(20))


def test_a_list_that_cannot_be_applied_lets_nothing_be_read(tmp_path: Path) -> None:
    config, missing = written(tmp_path, TEXT), str(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"data\.opt_out"):
        load_records(SMALL, dataclasses.replace(config, opt_out=missing))
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_records(SMALL, dataclasses.replace(config, opt_out=str(tmp_path / "latin.txt")))
    (tmp_path / "no.txt").write_text("p1\n")
    unnamed = written(tmp_path, TEXT.replace("patient,", "ward,"), "other.csv", opt_out=str(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="who is a person"):
        load_records(NAMELESS, unnamed)
    with pytest.raises(DataError, match="cannot leave persons out"):
        load_records(get_task("breast_cancer"), DataConfig(opt_out=str(tmp_path / "no.txt")))


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("p3", "P3"), ("P.007", "P.7"), ("007", "7"), ("7", "007"), ("P-007", "p-7"), ("7", "7.0"), ("7.00", "7"),
        ("７", "7"), ("p3", '"p3"'), ("p3", "'p3';"), ("p3", "p3,2026-01-31"), ("p3", "p3\tno"), ("p3", "p3\u200b"),
        ("\ufeffp3", "p3"), ("p 3", "p\u00a0 3"), ("Zo\u00e9", "ZOE\u0301"), ("P-3", "P\u20113"),
        ("p\u20283", "p\u20283"), ("ab", "Patient/ab"),
    ],
)  # fmt: skip
def test_a_person_who_is_written_otherwise_on_the_list_is_left_out(tmp_path: Path, cell: str, line: str) -> None:
    """Whoever was listed as a spreadsheet writes it was trained on, and nothing told."""
    others = "".join(f"q{row},{20 + row},1,no\n" for row in range(20))
    config = written(tmp_path, f"patient,age,dose,ill\n{cell},50,1,no\n{others}", opt_out=str(tmp_path / "no.txt"))
    (tmp_path / "no.txt").write_text(f"somebody\n{line}\n", encoding="utf-8")
    assert used(load_records(SMALL, config)) == set(range(1, 21))


def test_a_list_of_which_nobody_is_there_is_told_and_one_with_zero_bytes_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = written(tmp_path, TEXT, opt_out=str(tmp_path / "no.txt"))
    (tmp_path / "no.txt").write_text("case-1\n")
    load_records(SMALL, config)
    assert "names anybody in these records" in caplog.text and "case-1" not in caplog.text
    (tmp_path / "no.txt").write_bytes("p3\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="zero bytes"):
        load_records(SMALL, config)


def test_a_list_that_has_changed_is_read_before_the_next_run(tmp_path: Path) -> None:
    listed = tmp_path / "no.txt"
    listed.write_text("p3\n")
    config = written(tmp_path, TEXT, opt_out=str(listed))
    first, task = opt_out_stamp(config), dataclasses.replace(SMALL, build=None)
    trainer = make_trainer(ClientConfig(data=config, device="cpu"))
    assert used(trainer._loaded.read(task)) == set(range(20)) - {3}
    trainer._loaded.workloads[task.digest] = object()  # type: ignore[assignment]
    trainer._loaded.drop_if_changed(task)
    assert task.digest in trainer._loaded.workloads
    listed.write_text("p3\np7\n")
    assert opt_out_stamp(config) != first
    trainer._loaded.drop_if_changed(task)
    assert task.digest not in trainer._loaded.workloads
    assert used(trainer._loaded.read(task)) == set(range(20)) - {3, 7}
