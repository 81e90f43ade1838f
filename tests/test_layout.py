"""The package is the top-level folders under one name, and a wheel of it is complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import sovfed

ROOT = Path(__file__).parent.parent
FOLDERS = ("clients", "conf", "federation", "server", "simulations")
DATA = {".yaml", ".proto", ".pyi", ".toml", ".html", ".css", ".js", ".svg", ".txt"}
APART = ("sovfed/simulations/audit/", "sovfed/simulations/benchmarks/")  # in sovfed-bench


def _copy(folder: Path) -> Path:
    """A copy of what is packaged, without what earlier builds left."""
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE", ".src", ".bench", *FOLDERS]
    exclude = [f"--exclude={pattern}" for pattern in ("__pycache__", "*.egg-info", "build")]
    archive = subprocess.run(["tar", "-c", *exclude, *names], cwd=ROOT, check=True, capture_output=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, check=True, input=archive)
    return folder


def _build(source: Path, into: Path) -> zipfile.ZipFile:
    """The wheel of the project in the folder or source distribution `source`, built without the network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(into), str(source)], check=True, capture_output=True)
    (built,) = into.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _copy(tmp_path_factory.mktemp("tree") / "source")


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """What an institution installs."""
    return _build(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bench(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The benchmarks and attacks."""
    return _build(tree / ".bench", tmp_path_factory.mktemp("bench"))


def _package(wheel: zipfile.ZipFile) -> list[str]:
    return [name for name in wheel.namelist() if ".dist-info/" not in name]


def _extra(wheel: zipfile.ZipFile, name: str) -> list[str]:
    (metadata,) = (file for file in wheel.namelist() if file.endswith("METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    marked = [line.removeprefix("Requires-Dist: ") for line in lines if line.endswith(f'extra == "{name}"')]
    return [line.partition(";")[0].strip() for line in marked]


def expected() -> set[str]:
    """Every module and data file of the tree, by its name in the package."""
    files = {f"sovfed/{path.name}" for path in (ROOT / ".src" / "sovfed").iterdir() if path.is_file()}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or path.suffix in DATA:
                files.add(f"sovfed/{path.relative_to(ROOT)}")
    return files


def test_the_two_wheels_hold_every_module_and_configuration_file_once(
    wheel: zipfile.ZipFile, bench: zipfile.ZipFile
) -> None:
    package = _package(wheel) + _package(bench)
    assert len(package) == len(set(package))
    assert set(package) == expected()


def test_benchmarks_and_attacks_are_in_the_second_and_nothing_else_is(
    wheel: zipfile.ZipFile, bench: zipfile.ZipFile
) -> None:
    assert all(name.startswith(APART) for name in _package(bench))
    assert not any(name.startswith(APART) for name in _package(wheel))


def test_both_have_one_version(wheel: zipfile.ZipFile, bench: zipfile.ZipFile) -> None:
    for built in (wheel, bench):
        assert f"-{sovfed.__version__}-" in Path(str(built.filename)).name


def test_the_extra_of_a_checkout_is_its_own_folder_and_of_a_release_the_same_version(
    tree: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    assert _extra(wheel, "bench") == ["sovfed[simulate]", f"sovfed-bench@ {(tree / '.bench').as_uri()}"]
    script = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (released,) = tmp_path.glob("sovfed-*.tar.gz")
    (tmp_path / "wheel").mkdir()
    again = _build(released, tmp_path / "wheel")
    assert _extra(again, "bench") == ["sovfed[simulate]", f"sovfed-bench=={sovfed.__version__}"]
    assert set(again.namelist()) == set(wheel.namelist())


def test_wheel_carries_its_licence_and_no_tests(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())
    assert not any("test" in Path(name).name for name in wheel.namelist())


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
    bench = tomllib.loads((ROOT / ".bench" / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"] + bench["dependencies"])
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {"sovfed", "sovfed-bench"} <= {name.lower().replace("_", "-") for name in pins}


def test_both_distributions_ask_for_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bench = tomllib.loads((ROOT / ".bench" / "pyproject.toml").read_text())["project"]
    asked = set(sum(project["optional-dependencies"].values(), list(project["dependencies"])))
    assert set(bench["dependencies"]) <= asked


def test_version_is_the_package_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", sovfed.__version__)


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format demands
    assert (str(citation["version"]), citation["license"]) == (sovfed.__version__, project["license"])
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and (heading[1] == "Unreleased" or heading[1].startswith(sovfed.__version__))


def test_hooks_are_local_and_run_the_tools_of_the_project() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert {"ruff", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks["repos"][0]["hooks"]}


def test_tests_mirror_the_paths_of_what_they_test() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    for folder in folders - {Path()}:
        assert {"attacks", "deploy"} & set(folder.parts) or (ROOT / folder).is_dir(), (
            f"tests/{folder} mirrors no folder"
        )
