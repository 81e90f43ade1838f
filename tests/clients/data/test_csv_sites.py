"""Which institution a table, a file in a folder or a row is of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.clients.data.cases import SMALL, rows, written
from tests.clients.data.csv_files import EXPECTED, PLAIN, load

from sovfed.clients.data import check_private_data, load_records, natural_sites, single
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError


def test_a_column_may_have_its_own_name_here(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("columns: {age: Alter, ill: krank}\n")
    config = written(
        tmp_path, PLAIN.replace("age", "Alter").replace("ill", "Krank"), mapping=str(tmp_path / "names.yaml")
    )
    assert rows(load(config)) == EXPECTED


def test_a_folder_has_a_file_for_each_site(tmp_path: Path) -> None:
    for site, age in (("north", 40), ("south", 60)):
        written(tmp_path, f"age,dose,ill\n{age},1,0\n", f"{site}.csv")
    (tmp_path / "north.csv.bad-rows").write_text("")
    config = DataConfig(source="csv", path=str(tmp_path), site="south")
    assert natural_sites(config) == ("north", "south")
    assert not single(config)
    assert rows(load(config)) == [[60, 1, 0]]
    with pytest.raises(DataError, match=r"no file of site 'nort'.*did you mean 'north'"):
        load(dataclasses.replace(config, site="nort"))


def test_a_column_may_tell_the_sites(tmp_path: Path) -> None:
    config = written(
        tmp_path, "age,ward,dose,ill\n40, b ,1,0\n50,a,1,1\n60,b,2,1\nbad,a,1,1\n", site_column="Ward", site="b"
    )
    assert natural_sites(config) == ("a", "b")
    assert not single(config)
    assert rows(load(config)) == [[40, 1, 0], [60, 2, 1]]


def test_a_single_file_is_one_institutions(tmp_path: Path) -> None:
    config = written(tmp_path, PLAIN)
    assert natural_sites(config) == ()
    assert single(config)
    assert not single(DataConfig(source="breast_cancer"))


def test_a_file_that_the_sealed_trainer_may_not_open_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, "age,dose,ill,patient\n50,1,0,Ada\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); if it was replaced .*client down"):
            read(SMALL, config)
