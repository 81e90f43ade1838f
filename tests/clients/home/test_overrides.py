"""An institution's settings are chosen with the words that a run's are, and without what composes runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.clients.home.overrides import client_config
from sovfed.federation.compose import PACKAGED, compose
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.tasks.columns import Column, Schema, target


def test_what_is_chosen_is_what_is_said_and_the_rest_is_the_default() -> None:
    config = client_config(["data=csv", "data.path=/srv/a b.csv", "data.site=0", "data.limit=5", "client=cuda"])
    data = DataConfig(source="csv", path="/srv/a b.csv", site="0", limit=5)
    assert config == ClientConfig(device="cuda", precision="bf16", data=data)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task=heart"],
        ["task=heart", "data.path=/srv/heart", "data.site=va"],
        ["task=heart", "data=csv", "data.path='a b'"],
        ["data.limit=7", "data.limit=null", "client.crl_refresh_s=5"],
        ["data.missing_words=[n.b., k.A.,-99]"],
        ["client.device=cpu", "client.runtime_port=8080", "client.crl_refresh_s=1e1"],
    ],
)
def test_it_is_what_hydra_composes(overrides: list[str]) -> None:
    assert client_config(overrides) == compose(overrides).config.client


@pytest.mark.parametrize(
    "override",
    [
        "data",
        "+data=csv",
        "data=cvs",
        "dat=csv",
        "data.sit=a",
        "data.limit=0",
        "data.limit=x",
        "data.sites=2.5",
        "data.sites=true",
        "data.site=null",
        "client.device=cud",
        "client.crl_refresh_s=inf",
        "data._target_=os.system",
    ],
)
def test_wrong_overrides_are_refused_in_the_same_words(override: str) -> None:
    with pytest.raises(ConfigError) as ours:
        client_config([override])
    with pytest.raises(ConfigError) as hydras:
        compose([override])
    assert str(ours.value) == str(hydras.value)


@pytest.mark.parametrize("override", ["rounds=3", "strategy=fedprox", "privacy.epsilon=1"])
def test_settings_of_a_run_are_not_an_institutions(override: str) -> None:
    with pytest.raises(ConfigError, match="is chosen for a run, by the agency"):
        client_config([override])


def test_no_override_and_no_file_refers_to_the_environment(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("source: csv\npath: ${oc.env:HOME}\n")
    for overrides in (["data.path=${oc.env:HOME}"], ["data=mine"]):
        with pytest.raises(ConfigError, match="write out the value"):
            client_config(overrides, [PACKAGED, tmp_path])


def test_a_task_without_data_of_its_own_asks_for_them(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match="data=csv"):
        client_config(["task=mine"], [PACKAGED, tmp_path])


def test_the_connector_is_that_of_the_file_where_none_is_named(tmp_path: Path) -> None:
    for name, source in (("a.csv", "csv"), ("b.parquet", "parquet"), ("c.jsonl", "jsonl")):
        data = client_config(["data=own", f"data.path={tmp_path / name}"]).data
        assert (data.source, data.path) == (source, str(tmp_path / name))
    scans = Schema((Column("scan", "image", shape=(1, 2, 2)), target("ill", "no", "yes")))
    data = client_config(["data=own", f"data.path={tmp_path / 'a.csv'}"], schema=scans).data
    assert (data.source, data.path, data.table) == ("images", str(tmp_path), "a.csv")
    with pytest.raises(DataError, match="no such file or folder"):
        client_config(["data=own", f"data.path={tmp_path / 'nothing'}"])


def test_hydra_is_not_loaded() -> None:
    script = "import sys; sys.modules['hydra'] = sys.modules['omegaconf'] = None\n"
    script += "from sovfed.clients.home.overrides import client_config; print(client_config(['data=csv']).data.source)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "csv\n"
