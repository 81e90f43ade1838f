"""A stranger's package with a task, built outside the source tree; an authority, and people who sign archives."""

from __future__ import annotations

import csv
import io
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sovfed.federation.archive.signer import SigningKey, create_signer, install_signer, load_signer
from sovfed.server.registry import authority

PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "wardnet"
version = "1.0"
dependencies = ["sovfed", "numpy>=1.26"]
[project.entry-points."sovfed.tasks"]
sepsis = "wardnet:TASK"
[tool.setuptools.packages.find]
include = ["wardnet*"]
[tool.setuptools.package-data]
wardnet = ["*.txt"]
"""
TASK = """\
from importlib.resources import files

from wardnet.net import Net
from sovfed.task import Column, Schema, Task, losses, metrics, number, target

print("wardnet was imported", flush=True)
HIDDEN = int(files("wardnet").joinpath("hidden.txt").read_text())
TASK = Task(
    name="sepsis", title="Sepsis on a ward",
    schema=Schema((
        number("lactate", 0, 30, unit="mmol/l"), number("temperature", 30, 45, unit="°C"),
        Column("ward", "category", categories=("north", "south"), missing="category"),
        target("outcome", "well", "septic"),
    ), person="patient"),
    build=lambda: Net(HIDDEN), loss=losses.binary_cross_entropy, metrics=metrics.BinaryMetrics(), headline="auc",
)
"""
NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.body, self.out = nn.Linear(5, hidden), nn.Linear(hidden, 1)

    def forward(self, x):
        return {"logits": self.out(self.body(x).tanh())}
"""
HEADER = ("patient", "lactate", "temperature", "ward", "outcome")


def write_project(folder: Path, **changes: str) -> Path:
    """A project in `folder`; `changes` replace files: project, task, net, hidden."""
    (folder / "wardnet").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(changes.get("project", PROJECT))
    (folder / "wardnet" / "__init__.py").write_text(changes.get("task", TASK))
    (folder / "wardnet" / "net.py").write_text(changes.get("net", NET))
    (folder / "wardnet" / "hidden.txt").write_text(changes.get("hidden", "8"))
    return folder


def build_wheel(folder: Path, **changes: str) -> Path:
    """The wheel of that project."""
    project = write_project(folder / "source", **changes)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index"]
    command = [*pip, "--no-build-isolation", "--wheel-dir", str(folder / "wheels"), str(project)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


def write_wheel(folder: Path, *, points: str = "", **changes: str) -> Path:
    """A wheel as `build_wheel` makes it, written by hand: a build takes seconds. `points` are further entry points."""
    project = write_project(folder / "source", **changes)
    path, info = folder / "wardnet-1.0-py3-none-any.whl", "wardnet-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        for source in sorted((project / "wardnet").iterdir()):
            file.write(source, f"wardnet/{source.name}")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.4\nName: wardnet\nVersion: 1.0\nRequires-Dist: sovfed\n")
        file.writestr(f"{info}/entry_points.txt", f"[sovfed.tasks]\nsepsis = wardnet:TASK\n{points}")
    return path


def make_signer(folder: Path, authority_home: Path, person: str, organisation: str) -> SigningKey:
    """A person whose key the authority in `authority_home` certified."""
    home = folder / f"signer-{person}-{organisation}"
    request, _ = create_signer(home, person, organisation)
    certificate = authority.sign(authority_home, request.read_bytes(), signer=True)
    root, crl = (authority_home / "root.pem").read_bytes(), (authority_home / "crl.pem").read_bytes()
    install_signer(home, certificate, root, crl, datetime.now(UTC))
    return load_signer(home)


def rows(site: str, count: int) -> Iterator[list[str]]:
    """Made-up patients."""
    drawn = random.Random(site)
    for number in range(count):
        lactate, temperature, ward = drawn.uniform(0, 12), drawn.uniform(35, 41), drawn.choice(["north", "south", ""])
        risk = 0.6 * (lactate - 6) + (temperature - 38) + (ward == "north") + drawn.gauss(0, 0.5)
        outcome = "septic" if risk > 0 else "well"
        yield [f"{site}-{number:03d}", f"{lactate:.2f}", f"{temperature:.1f}", ward, outcome]


def table(site: str, count: int) -> str:
    """A CSV file of them."""
    text = io.StringIO()
    csv.writer(text).writerows([HEADER, *rows(site, count)])
    return text.getvalue()
