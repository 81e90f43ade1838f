"""National law: which windows of which documents the connector gives, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from tests.real_data import published
from tests.records import inputs_of, targets_of

from sovfed.clients.data import load_records, statutes
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.statutes import TASK
from sovfed.simulations.population import sites

SITE = "moj_justice"


def document(split: str, text: str) -> str:
    return json.dumps({"id": "1", "split": split, "text": text}, ensure_ascii=False) + "\n"


def written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, site: str = SITE, packed: bool = True
) -> DataConfig:
    """A file of our own in the place of a published one: its checksum is taken as the known one."""
    content = text.encode() if isinstance(text, str) else text
    content = lzma.compress(content) if packed else content
    (folder / f"{site}.jsonl.xz").write_bytes(content)
    monkeypatch.setitem(statutes.SHA256, site, hashlib.sha256(content).hexdigest())
    return DataConfig(source="statutes", path=str(folder), site=site)


def test_every_byte_of_a_document_is_predicted_once_and_a_person_is_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "train": ["第一条　この法律は、" * 30, "短い。"],
        "valid": ["left out " * 50],
        "test": ["Zweck. " * 60, "§ 1"],
    }
    lines = [document(split, text) for split, found in texts.items() for text in found]
    records = load_records(TASK, written(tmp_path, monkeypatch, "".join(lines)))
    found: dict[int, bytes] = {}
    for window, given, person in zip(inputs_of(records), targets_of(records), records.persons, strict=True):
        predicted = window[1 + int(given) :].astype(np.uint8).tobytes()
        found[int(person)] = found.get(int(person), b"") + predicted
    assert [found[person] for person in range(4)] == [text.encode() for text in texts["train"] + texts["test"]]
    assert records.persons[records.train].tolist() == [0] * len(records.train[:-1]) + [1]
    assert set(records.persons[records.test]) == {2, 3}
    assert inputs_of(records).shape[1] == 129


def test_a_held_out_byte_has_at_least_64_before_it() -> None:
    text = bytes(range(256)) * 2
    windows, given = statutes.cut(text, 129, 64)
    assert given[0] == 0
    assert (given[1:] >= 64).all()
    assert windows[0, :3].tolist() == [ord("\n"), 0, 1]
    assert windows[-1, -1] == 255


def test_a_limit_takes_the_same_sample_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(document(split, f"{number} " * 2_000) for split in ("train", "test") for number in range(5))
    config = written(tmp_path, monkeypatch, text)
    limited = DataConfig(source="statutes", path=config.path, site=SITE, limit=40)
    everything, one, again = (load_records(TASK, each) for each in (config, limited, limited))
    assert (len(one.train), len(one.test)) == (40, 10)
    assert np.array_equal(inputs_of(one), inputs_of(again))
    assert {row.tobytes() for row in inputs_of(one)[one.test]} <= {
        row.tobytes() for row in inputs_of(everything)[everything.test]
    }
    assert len(np.unique(one.persons[one.train])) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1: no JSON object"),
        (document("train", "a") + "[1]\n", "line 2: no JSON object"),
        ("[" * 100_000 + "\n", "line 1: no JSON object"),
        (document("train", "Ada Lovelace") + document("dev", "a"), "line 2: 'split' is none of train, valid, test"),
        (document("train", ""), "line 1: 'split' is none of"),
        ('{"split": "train", "text": 7}\n', "line 1: 'split' is none of"),
        ('{"split": "train", "text": "\\ud800"}\n', "line 1: 'text' holds what is no Unicode"),
        (document("train", "a"), "1 to train, 0 to test documents"),
    ],
)
def test_a_bad_file_is_told_without_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_records(TASK, written(tmp_path, monkeypatch, text))
    assert "Lovelace" not in str(caught.value)


def test_a_file_that_unpacks_without_end_is_refused_at_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statutes, "MAX_TEXT", 1 << 20)
    monkeypatch.setattr(statutes, "MAX_MEMORY", 1 << 24)
    bomb = lzma.compress(b" " * (1 << 23), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
    assert len(bomb) < 1 << 12
    with pytest.raises(DataError, match="over 1048576 bytes once unpacked"):
        load_records(TASK, written(tmp_path, monkeypatch, bomb, packed=False))
    greedy = lzma.compress(b" " * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}])
    with pytest.raises(DataError, match="needs over 16777216 bytes of memory"):
        load_records(TASK, written(tmp_path, monkeypatch, greedy, packed=False))


def test_a_file_that_is_cut_off_or_goes_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lzma.compress((document("train", "a" * 300) + document("test", "b" * 300)).encode())
    for content, said in (
        (whole[:-4], "ends too early"),
        (whole + b"\0", "something follows"),
        (b"PK" * 50, "not an .xz"),
    ):
        with pytest.raises(DataError, match=said):
            load_records(TASK, written(tmp_path, monkeypatch, content, packed=False))


def test_a_changed_file_an_unknown_ministry_and_another_task_are_refused(tmp_path: Path) -> None:
    (tmp_path / f"{SITE}.jsonl.xz").write_bytes(lzma.compress(document("train", "a").encode()))
    for config, said in (
        (DataConfig(source="statutes", path=str(tmp_path), site=SITE), "SHA-256"),
        (DataConfig(source="statutes", path=str(tmp_path), site="bmj_justiz"), "no such file"),
        (DataConfig(source="statutes", path=str(tmp_path), site="moj_justic"), "did you mean 'moj_justice'"),
        (DataConfig(source="statutes", site=SITE), r"needs data\.path"),
    ):
        with pytest.raises(DataError, match=said):
            load_records(TASK, config)


def test_a_simulation_has_the_ministries_whose_files_are_there(tmp_path: Path) -> None:
    from sovfed.federation.compose import compose

    with pytest.raises(DataError, match="no file of a known ministry"):
        sites(compose(["task=statutes", f"data.path={tmp_path}"]).config)
    for name in ("moj_justice", "bmj_justiz", "unknown"):
        (tmp_path / f"{name}.jsonl.xz").touch()
    found = sites(compose(["task=statutes", f"data.path={tmp_path}"]).config)
    assert [one.site for one in found] == ["moj_justice", "bmj_justiz"]


@pytest.mark.parametrize(
    ("folder", "institutions", "train", "test"),
    [("ja_law", 10, 42_632_020, 2_637_372), ("de_law", 9, 6_635_841, 473_127)],
)
def test_the_published_files_hold_what_their_readme_counts(
    folder: str, institutions: int, train: int, test: int
) -> None:
    path = str(published(folder))
    names = statutes.sites_in(path)
    assert len(names) == institutions
    bytes_of = {"train": 0, "test": 0}
    for name in names:
        records = load_records(TASK, DataConfig(source="statutes", path=path, site=name))
        for split in bytes_of:
            bytes_of[split] += int((128 - targets_of(records)[getattr(records, split)]).sum())
    assert bytes_of == {"train": train, "test": test}
