"""The connectors: what they load, and what they say when something is wrong."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.real_data import published

from sovfed.clients.data import (
    GROUP,
    Connector,
    Records,
    check,
    check_private_data,
    connector,
    load_records,
    uci_heart,
)
from sovfed.clients.data.split import by_person, simulated_site, stratified
from sovfed.clients.data.survey import report
from sovfed.federation import plugins
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, DataError, PrivacyError
from sovfed.federation.schema import bind
from sovfed.federation.tasks.columns import NUMBERS, Schema, number, target
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    from pathlib import Path

HEART = get_task("heart")


def _inputs(records: Any) -> Any:
    """The stored inputs, a row a record."""
    part = next(iter(records.columns.values()))
    return part.reshape(len(part), -1)


def _labels(records: Any) -> Any:
    return list(records.columns.values())[-1]


@pytest.mark.parametrize(("name", "total"), [("breast_cancer", 569), ("digits", 1797)])
def test_simulated_sites_share_out_every_record_once(name: str, total: int) -> None:
    parts = [load_records(get_task(name), DataConfig(source=name, site=str(site))) for site in range(4)]
    persons = np.concatenate([part.persons for part in parts])
    assert np.array_equal(np.sort(persons), np.arange(total))
    sizes = [len(_labels(part)) / total for part in parts]
    assert sizes == pytest.approx([0.45, 0.30, 0.17, 0.08], abs=0.002)
    assert all(len(np.intersect1d(part.train, part.test)) == 0 for part in parts)


def test_the_bundled_files_are_what_scikit_learn_loads() -> None:
    from sklearn.datasets import load_breast_cancer, load_digits

    for name, (features, classes), flip in (
        ("breast_cancer", load_breast_cancer(return_X_y=True), True),
        ("digits", load_digits(return_X_y=True), False),
    ):
        part = load_records(get_task(name), DataConfig(source=name, site="1"))
        assert np.array_equal(_inputs(part), features[part.persons].astype(np.float32))
        assert np.array_equal(_labels(part), 1 - classes[part.persons] if flip else classes[part.persons])


def test_simulated_hospitals_differ_in_case_mix_and_each_has_both_classes() -> None:
    parts = [load_records(get_task("breast_cancer"), DataConfig(site=str(site))) for site in range(4)]
    share = [_labels(part).mean() for part in parts]
    assert max(share) - min(share) > 0.5
    assert all(len(np.unique(_labels(part)[rows])) == 2 for part in parts for rows in (part.train, part.test))


@pytest.mark.parametrize("name", ["synthetic_images", "synthetic_text"])
def test_made_up_records_differ_by_site_and_not_by_call(name: str) -> None:
    one, again, other = (load_records(get_task(name), DataConfig(source="synthetic", site=site)) for site in "334")
    assert np.array_equal(_inputs(one), _inputs(again))
    assert np.array_equal(_labels(one), _labels(again))
    assert not np.array_equal(_inputs(one), _inputs(other))
    assert (len(one.train), len(one.test)) == (50, 10)


def test_the_same_site_is_the_same_everywhere() -> None:
    one, two = (load_records(get_task("digits"), DataConfig(source="digits", site="2")) for _ in range(2))
    assert np.array_equal(one.persons, two.persons)
    assert np.array_equal(one.train, two.train)
    # Without noise a site is a stretch of the axis; 17, 45, 30 and 8 of 100 belong to sites 2, 0, 1 and 3.
    assert simulated_site("x", np.arange(100) / 100, 0.0, "0", 4).tolist() == list(range(17, 62))


@pytest.mark.parametrize("site", ["4", "-1", "cleveland", "1" * 60])
def test_a_site_that_is_not_there_is_refused(site: str) -> None:
    with pytest.raises(DataError, match=r"data\.site"):
        load_records(get_task("breast_cancer"), DataConfig(site=site))


def test_too_many_sites_are_refused() -> None:
    with pytest.raises(DataError, match="at least 20"):
        load_records(get_task("breast_cancer"), DataConfig(site="39", sites=40))


def test_a_person_is_on_one_side_whatever_else_the_file_holds() -> None:
    names = [f"p{number % 50}" for number in range(200)]
    train, test = by_person("t", names)
    assert {names[row] for row in train}.isdisjoint(names[row] for row in test)
    more = by_person("t", ["new", *names])[1] - 1
    assert set(test) == {row for row in more if row >= 0}


def test_labels_are_split_alike() -> None:
    labels = np.array([0] * 100 + [1] * 10)
    train, test = stratified("t", labels)
    assert (labels[test] == 1).sum() == 3
    assert (labels[train] == 1).sum() == 7


def _heart_line(label: int = 0) -> str:
    return f"63,1,1,145,233,1,2,150,0,2.3,3,0,6,{label}\n"


def _heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> DataConfig:
    """A file of our own in the place of a published one: its checksum is taken as the known one."""
    import hashlib

    (tmp_path / "processed.va.data").write_text(text)
    monkeypatch.setitem(uci_heart.SHA256, "va", hashlib.sha256(text.encode()).hexdigest())
    return DataConfig(source="uci_heart", path=str(tmp_path), site="va")


def test_heart_rows_are_coded_as_flamby_codes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        _heart_line()
        + "50,0,4,?,200,0,1,120,1,0,1,?,?,2\n"  # trestbps is missing: the row goes
        + "60,0,3,120,0,0,1,110,1,-0.5,?,?,?,4\n"  # missing slope, ca and thal do not matter
        + _heart_line() * 5
        + _heart_line(2) * 5
    )
    records = load_records(HEART, _heart(tmp_path, monkeypatch, text))
    assert _inputs(records)[0].tolist() == pytest.approx([63, 1, 145, 233, 1, 150, 0, 2.3, 0, 0, 0, 0, 1])
    assert _inputs(records)[1].tolist() == pytest.approx([60, 0, 120, 0, 0, 110, 1, -0.5, 0, 1, 0, 1, 0])
    assert _labels(records).tolist() == [0, 1, *[0] * 5, *[1] * 5]
    assert len(records.train) + len(records.test) == 12


def test_the_published_heart_files_give_flambys_counts() -> None:
    # FLamby, fed_heart_disease/README.md: 303, 261, 46 and 130 patients, 199, 172, 30 and 85 of them for training.
    path = str(published("heart_disease"))
    parts = [load_records(HEART, DataConfig(source="uci_heart", path=path, site=site)) for site in uci_heart.SITES]
    assert [len(_labels(part)) for part in parts] == [303, 261, 46, 130]
    assert [len(part.train) for part in parts] == [199, 172, 30, 85]
    assert sum(len(part.test) for part in parts) == 254


def test_a_changed_heart_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processed.va.data").write_text(_heart_line() * 20)
    with pytest.raises(DataError, match="SHA-256"):
        load_records(HEART, DataConfig(source="uci_heart", path=str(tmp_path), site="va"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2,3\n", "line 1: 3 columns, expected 14"),
        (_heart_line() + _heart_line().replace("145", "Ada Lovelace"), "line 2: a value is neither a number nor"),
        ("63,1,1,?,233,1,2,150,0,2.3,3,0,6,0\n", "no row without a missing value"),
        ((_heart_line() + _heart_line(1)).replace("63,", "630,") * 9, "column 'age': 18 of 18 values"),
        ((_heart_line() + _heart_line(1)).replace("63,", "nan,") * 9, "column 'age': 18 of 18 values"),
    ],
)
def test_a_bad_heart_file_is_told_without_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_records(HEART, _heart(tmp_path, monkeypatch, text))
    told = str(caught.value).replace(str(tmp_path), "")
    assert "Lovelace" not in told
    assert "630" not in told


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DataConfig(source="uci_heart", site="va"), r"needs data\.path"),
        (DataConfig(source="uci_heart", site="va", path="/nowhere"), "no such file"),
        (DataConfig(source="uci_heart", site="vb", path="/nowhere"), "did you mean 'va'"),
        (DataConfig(source="breast_cancer"), "for task 'breast_cancer', not for 'heart'"),
        (DataConfig(source="none"), "holds no records"),
        (dataclasses.replace(DataConfig(), source="digit"), "did you mean 'digits'"),
    ],
)
def test_what_is_missing_is_said(config: DataConfig, said: str) -> None:
    with pytest.raises((DataError, ConfigError), match=said):
        load_records(HEART, config)


SMALL = Schema((number("age", 0, 120), number("dose", 0, 5), target("ill", "no", "yes")), person="patient")


def _table(numbers: Any = None, ill: Any = None) -> dict[str, Any]:
    numbers = np.zeros((4, 2), np.float32) if numbers is None else numbers
    return {NUMBERS: numbers, "ill": np.array([0, 1, 0, 1]) if ill is None else ill}


def _records(**changes: object) -> Records:
    plain = Records(_table(), np.arange(4), np.array([0, 1]), np.array([2, 3]))
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (_records(columns=_table(np.zeros((4, 3), np.float32))), r"expected float32 of shape \(4, 2\)"),
        (_records(columns=_table(np.full((4, 2), np.inf, np.float32))), "column 'age': 4 of 4"),
        (_records(columns=_table(ill=np.array([0, 1, 2, -1]))), "column 'ill': 2 of 4 values are no known class"),
        (
            _records(train=np.array([], dtype=np.int64), test=np.array([], dtype=np.int64)),
            "no training and no held-out",
        ),
        (_records(test=np.array([1, 2])), "overlap"),
        (_records(test=np.array([4])), "outside"),
        (_records(persons=np.array([0, 1, 1, 2])), "1 persons are both"),
        (_records(persons=np.array([0, 0, 1, 2]), several_records=False), "though one for each was declared"),
    ],
)
def test_records_that_do_not_fit_the_schema_are_refused(records: Records, said: str) -> None:
    check(_records(), SMALL, "here")
    with pytest.raises(DataError, match=said):
        check(records, SMALL, "here")


def test_a_limit_takes_a_sample_that_no_private_run_may_use() -> None:
    config = DataConfig(site="0", limit=40)
    assert "data.limit" in load_records(get_task("breast_cancer"), config).not_private
    with pytest.raises(PrivacyError, match=r"data\.limit"):
        check_private_data(get_task("breast_cancer"), config)


@pytest.mark.parametrize(
    ("source", "task", "several"),
    [("breast_cancer", "breast_cancer", False), ("digits", "digits", False), ("synthetic", "synthetic_text", False)],
)
def test_published_and_made_up_records_are_of_a_person_each(source: str, task: str, several: bool) -> None:
    records = load_records(get_task(task), DataConfig(source=source))
    assert (records.several_records, records.not_private) == (several, "")
    assert len(np.unique(records.persons)) == len(records.persons)


def test_any_disease_is_disease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(_heart_line(label) * 4 for label in (0, 1, 2, 3, 4))
    assert _labels(load_records(HEART, _heart(tmp_path, monkeypatch, text))).tolist() == [0] * 4 + [1] * 16


def test_about_three_of_ten_persons_are_held_out() -> None:
    """Binomial: of 10,000 persons between 2,700 and 3,300 beyond any doubt."""
    train, test = by_person("t", (f"p{number}" for number in range(10_000)))
    assert 2_700 < len(test) < 3_300
    assert len(train) + len(test) == 10_000


@pytest.mark.parametrize(
    ("source", "setting", "value", "meant"),
    [
        ("csv", "table", "other.csv", "'images'"),
        ("parquet", "query", "SELECT 1", "'sql'"),
        ("csv", "url_file", "/srv/url", "'omop', 'sql'"),
        ("breast_cancer", "query_file", "/srv/query", "'sql'"),
        ("images", "query", "SELECT 1", "'sql'"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused_with_the_source_that_reads_it(
    source: str, setting: str, value: str, meant: str
) -> None:
    config = bind(DataConfig, {"source": source, setting: value}, "data")
    for look in (load_records, report):
        with pytest.raises(DataError, match=rf"^data\.{setting} is for data\.source {meant}; '{source}' has no use"):
            look(get_task("breast_cancer"), config)


def test_an_outside_connector_says_itself_which_settings_it_reads() -> None:
    point = EntryPoint("lab_queries", f"{__name__}:STRANGER", GROUP)
    plugins.bring([point])
    try:
        task, config = get_task("breast_cancer"), DataConfig(source="lab_queries", query="SELECT 1")
        assert len(load_records(task, config).persons) == 569
        with pytest.raises(DataError, match=r"data\.query is for data\.source 'lab_queries', 'sql'; 'csv' has no use"):
            load_records(task, dataclasses.replace(config, source="csv"))
        with pytest.raises(DataError, match=r"data\.table is for data\.source 'images'; 'lab_queries' has no use"):
            load_records(task, dataclasses.replace(config, table="a.csv"))
    finally:
        plugins._BROUGHT.clear()
        connector.cache_clear()


STRANGER = Connector(lambda task, _: load_records(task, DataConfig(sites=1)), reads=("query",))
