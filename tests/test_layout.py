"""The package is the top-level folders under one name, and a wheel of it is complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import sovfed

ROOT = Path(__file__).parent.parent
FOLDERS = ("clients", "conf", "federation", "server", "simulations")
DATA = {".yaml", ".proto", ".pyi", ".toml"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a copy of the tree, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = ["pyproject.toml", "README.md", "LICENSE", ".src", *FOLDERS]
    ignored = ["__pycache__", "*.egg-info", "build"]
    source.mkdir()
    exclude = [f"--exclude={pattern}" for pattern in ignored]
    archive = subprocess.run(["tar", "-c", *exclude, *tracked], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=source, check=True, input=archive)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True)
    (built,) = folder.glob("sovfed-*.whl")
    with zipfile.ZipFile(built) as archive_file:
        return archive_file.namelist()


def expected() -> set[str]:
    """Every module and data file of the tree, by its name in the package."""
    found = {f"sovfed/{path.name}" for path in (ROOT / ".src" / "sovfed").iterdir() if path.is_file()}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or path.suffix in DATA:
                found.add(f"sovfed/{path.relative_to(ROOT)}")
    return found


def test_wheel_holds_every_module_and_configuration_file_once(wheel: list[str]) -> None:
    package = [name for name in wheel if ".dist-info/" not in name]
    assert len(package) == len(set(package))
    assert set(package) == expected()


def test_wheel_carries_its_licence_and_no_tests(wheel: list[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert not any("test" in Path(name).name for name in wheel)


def test_every_folder_of_python_files_is_a_package() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} would be missing from the wheel"


def test_links_point_at_the_top_level_folders() -> None:
    links = {path.name: path.resolve() for path in (ROOT / ".src" / "sovfed").iterdir() if path.is_symlink()}
    assert links == {name: ROOT / name for name in FOLDERS}


def test_constraints_pin_every_requirement_and_nothing_local() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= {name.lower().replace("_", "-") for name in pins}


def test_version_is_the_package_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", sovfed.__version__)


def test_tests_mirror_the_paths_of_what_they_test() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    for folder in folders - {Path()}:
        assert {"attacks", "deploy"} & set(folder.parts) or (ROOT / folder).is_dir(), (
            f"tests/{folder} mirrors no folder"
        )
