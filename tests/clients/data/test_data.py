"""The connectors: what they load, and what they say when something is wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.real_data import published

from sovfed.clients.data import Records, check, check_private_data, load_records, uci_heart
from sovfed.clients.data.split import by_person, simulated_site, stratified
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError, PrivacyError
from sovfed.federation.tasks import Feature, Schema, get_task

if TYPE_CHECKING:
    from pathlib import Path

HEART = get_task("heart")


@pytest.mark.parametrize(("name", "total"), [("breast_cancer", 569), ("digits", 1797)])
def test_simulated_sites_share_out_every_record_once(name: str, total: int) -> None:
    parts = [load_records(get_task(name), DataConfig(source=name, site=str(site))) for site in range(4)]
    persons = np.concatenate([part.persons for part in parts])
    assert np.array_equal(np.sort(persons), np.arange(total))
    sizes = [len(part.labels) / total for part in parts]
    assert sizes == pytest.approx([0.45, 0.30, 0.17, 0.08], abs=0.002)
    assert all(len(np.intersect1d(part.train, part.test)) == 0 for part in parts)


def test_the_bundled_files_are_what_scikit_learn_loads() -> None:
    from sklearn.datasets import load_breast_cancer, load_digits

    for name, (features, target), flip in (
        ("breast_cancer", load_breast_cancer(return_X_y=True), True),
        ("digits", load_digits(return_X_y=True), False),
    ):
        part = load_records(get_task(name), DataConfig(source=name, site="1"))
        assert np.array_equal(part.features, features[part.persons].astype(np.float32))
        assert np.array_equal(part.labels, 1 - target[part.persons] if flip else target[part.persons])


def test_simulated_hospitals_differ_in_case_mix_and_each_has_both_classes() -> None:
    parts = [load_records(get_task("breast_cancer"), DataConfig(site=str(site))) for site in range(4)]
    share = [part.labels.mean() for part in parts]
    assert max(share) - min(share) > 0.5
    assert all(len(np.unique(part.labels[rows])) == 2 for part in parts for rows in (part.train, part.test))


@pytest.mark.parametrize("name", ["synthetic_images", "synthetic_text"])
def test_made_up_records_differ_by_site_and_not_by_call(name: str) -> None:
    one, again, other = (load_records(get_task(name), DataConfig(source="synthetic", site=site)) for site in "334")
    assert np.array_equal(one.features, again.features)
    assert np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.features, other.features)
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
    assert records.features[0].tolist() == pytest.approx([63, 1, 145, 233, 1, 150, 0, 2.3, 0, 0, 0, 0, 1])
    assert records.features[1].tolist() == pytest.approx([60, 0, 120, 0, 0, 110, 1, -0.5, 0, 1, 0, 1, 0])
    assert records.labels.tolist() == [0, 1, *[0] * 5, *[1] * 5]
    assert len(records.train) + len(records.test) == 12


def test_the_published_heart_files_give_flambys_counts() -> None:
    # FLamby, fed_heart_disease/README.md: 303, 261, 46 and 130 patients, 199, 172, 30 and 85 of them for training.
    path = str(published("heart_disease"))
    parts = [load_records(HEART, DataConfig(source="uci_heart", path=path, site=site)) for site in uci_heart.SITES]
    assert [len(part.labels) for part in parts] == [303, 261, 46, 130]
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
    assert "Lovelace" not in str(caught.value)
    assert "630" not in str(caught.value)


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
    with pytest.raises(DataError, match=said):
        load_records(HEART, config)


SMALL = dataclasses.replace(
    HEART, schema=Schema((Feature("age", 0, 120), Feature("dose", 0, 5)), "ill", ("no", "yes"), person="patient")
)


def _csv(tmp_path: Path, text: str | bytes) -> DataConfig:
    path = tmp_path / "records.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return dataclasses.replace(DataConfig(), source="csv", path=str(path))


def test_a_name_written_in_several_ways_is_one_person(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    names = ["Zoë", "Zoe\u0308", " Zoë", "Zoë\u00a0", "zoë", "A  B", "A B"]
    path.write_text("age,dose,ill,patient\n" + "".join(f"50,1,0,{name}\n" for name in names), encoding="utf-8")
    found = load_records(SMALL, DataConfig(source="csv", path=str(path))).persons
    assert found.tolist() == [0, 0, 0, 0, 1, 2, 2]  # whether letters' case tells persons apart, only their keeper knows


def test_a_csv_file_is_read_by_its_header_and_split_by_person(tmp_path: Path) -> None:
    rows = [f"ward,{number % 20},{number % 2},{number % 5},{30 + number % 40}" for number in range(60)]
    records = load_records(SMALL, _csv(tmp_path, "\n".join(["place,patient,ill,dose,age", *rows])))
    assert records.features[:2].tolist() == [[30, 0], [31, 1]]
    assert records.labels[:3].tolist() == [0, 1, 0]
    assert len(np.unique(records.persons)) == 20
    assert "60 records of 20 persons" in repr(records)
    assert not set(records.persons[records.train]) & set(records.persons[records.test])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age,dose,ill\n", "lacks the person column 'patient'"),
        ("age,ill,patient\n", r"lacks columns \['dose'\]"),
        ("age,dose,ill,patient,age\n", "names a column twice"),
        ("age,dose,ill,patient\n50,1,0,Ada\n50,1,0\n", "line 3: 3 columns, expected 4"),
        ("age,dose,ill,patient\n50,much,0,Ada\n", "line 2: column 'dose' is not a number$"),
        ("age,dose,ill,patient\n50,1,much,Ada\n", "line 2: column 'ill' is not a number; classes .*: 0 "),
        ("age,dose,ill,patient\n50,1,0.5,Ada\n", "no class numbers"),
        ("age,dose,ill,patient\n50,1,0,\n", "1 rows name no person"),
        ("age,dose,ill,patient\n50,1,0,NaN\n50,1,0, \n51,1,0,a\n52,1,0,<NA>\n", "3 rows name no person"),
        ('age,dose,ill,patient\n50,1,0,"Ada', "malformed CSV"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("", "0 bytes"),
    ],
)
def test_a_bad_csv_file_is_told_without_its_content(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_records(SMALL, _csv(tmp_path, text))
    assert "Ada" not in str(caught.value)
    assert "much" not in str(caught.value)


def test_a_file_that_the_sealed_trainer_may_not_open_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _csv(tmp_path, "age,dose,ill,patient\n50,1,0,Ada\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); if it was replaced .*client down"):
            read(SMALL, config)


def _records(**changes: object) -> Records:
    plain = Records(
        np.zeros((4, 2), dtype=np.float32), np.array([0, 1, 0, 1]), np.arange(4), np.array([0, 1]), np.array([2, 3])
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (_records(features=np.zeros((4, 3), dtype=np.float32)), "expected 2 columns"),
        (_records(features=np.full((4, 2), np.inf, dtype=np.float32)), "column 'age': 4 of 4"),
        (_records(labels=np.array([0, 1, 2, -1])), "label 'ill': 2 of 4"),
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
    check(_records(), SMALL.schema, "here")
    with pytest.raises(DataError, match=said):
        check(records, SMALL.schema, "here")


ROWS = [f"{30 + number % 7},{number % 3},{number % 2}" for number in range(80)]  # 42 different ones: some thrice


def _sides(records: Records) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """The rows of either side as they are, in an order of their own."""
    rows = [(*features, label) for features, label in zip(records.features.tolist(), records.labels, strict=True)]
    return tuple(sorted(rows[row] for row in side) for side in (records.train, records.test))  # type: ignore[return-value]


@pytest.mark.parametrize("gone", [0, 1, 42, 79])
def test_a_row_less_moves_no_other_row_to_the_other_side(tmp_path: Path, gone: int) -> None:
    """Where each row is a person, also if others are like it, and if it stands before all others."""
    task = dataclasses.replace(SMALL, schema=dataclasses.replace(SMALL.schema, person=""))
    config = dataclasses.replace(_csv(tmp_path, ""), person="row")
    sides = []
    for kept in (ROWS, ROWS[:gone] + ROWS[gone + 1 :]):
        _csv(tmp_path, "\n".join(["age,dose,ill", *kept]))
        sides.append(_sides(load_records(task, config)))
    (train, test), (train_less, test_less) = sides
    fewer = len(train) - len(train_less)
    whole, less = (train, train_less) if fewer else (test, test_less)
    assert (test if fewer else train) == (test_less if fewer else train_less)
    assert len(whole) == len(less) + 1
    for row in less:
        whole.remove(row)
    assert whole == [tuple(map(float, ROWS[gone].split(",")))]


def test_who_is_a_person_is_declared_and_never_counted(tmp_path: Path) -> None:
    task = dataclasses.replace(SMALL, schema=dataclasses.replace(SMALL.schema, person=""))
    named = "\n".join(
        ["age,dose,ill,person,mrn", *(f"{row},p{number},m{number // 2}" for number, row in enumerate(ROWS))]
    )
    bare = "\n".join(["age,dose,ill", *ROWS])
    for text, person, several, private in (
        (named, None, True, True),  # though nobody has two
        (named, "mrn", True, True),
        (bare, "row", False, True),
        (bare, None, False, False),
    ):
        config = dataclasses.replace(_csv(tmp_path, text), person=person)
        records = load_records(task, config)
        assert (records.several_records, records.not_private == "") == (several, private)
        assert len(np.unique(records.persons)) == (40 if person == "mrn" else 80)
        if private:
            check_private_data(task, config)
        else:
            with pytest.raises(PrivacyError, match=r"declare that with data\.person=row"):
                check_private_data(task, config)


@pytest.mark.parametrize(
    ("header", "person", "said"),
    [
        ("age,dose,ill,person", "row", "each row another person, yet there is a column"),
        ("age,dose,ill,row", "row", "each row another person, yet there is a column"),
        ("age,dose,ill", "mrn", "lacks the person column 'mrn'"),
    ],
)
def test_a_declaration_that_the_header_contradicts_is_refused(
    tmp_path: Path, header: str, person: str, said: str
) -> None:
    task = dataclasses.replace(SMALL, schema=dataclasses.replace(SMALL.schema, person=""))
    config = dataclasses.replace(_csv(tmp_path, header + "\n"), person=person)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=said):
            read(task, config)


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
    assert load_records(HEART, _heart(tmp_path, monkeypatch, text)).labels.tolist() == [0] * 4 + [1] * 16


def test_about_three_of_ten_persons_are_held_out() -> None:
    """Binomial: of 10,000 persons between 2,700 and 3,300 beyond any doubt."""
    train, test = by_person("t", (f"p{number}" for number in range(10_000)))
    assert 2_700 < len(test) < 3_300
    assert len(train) + len(test) == 10_000
