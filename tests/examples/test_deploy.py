"""Examples deployed: one wheel that each operator installs, and one federation of real processes."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("survival", "frozen_image")  # a task.yaml and a package's task; `python examples/deploy.py` runs all five


def run(python: Path | str, *arguments: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # ours, in tests
    environment["OMP_NUM_THREADS"] = "1"
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has all of this one's packages, and the wheel of the examples."""
    folder = tmp_path_factory.mktemp("examples")
    source = shutil.copytree(EXAMPLES, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    run(sys.executable, source / "frozen_image" / "make_base.py")
    (source / "text_lora" / "base").mkdir(exist_ok=True)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    run(sys.executable, *pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", folder / "wheels", source)
    venv.create(folder / "venv", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (wheel,) = (folder / "wheels").glob("*.whl")
    run(sys.executable, *pip, "install", *offline, "--target", packages, wheel)
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "environment.pth").write_text("\n".join(lines))
    return folder / "venv" / "bin" / "python"


@pytest.mark.deploy
@pytest.mark.timeout(600)  # four runs on one federation, and a base that is trained first
def test_studies_are_trained_on_one_federation_plain_and_private(installed: Path, tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    run(installed, EXAMPLES / "deploy.py", *NAMES, "--quick", "--json", told)
    lines = {line["example"]: line for line in json.loads(told.read_text())}
    assert tuple(lines) == NAMES
    for name, line in lines.items():
        assert 0 < line["epsilon"] <= 8, name
        assert line["federated"] > line["pooled"] - 0.1, line
