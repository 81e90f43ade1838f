"""Which wheels may become a task."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from sovfed.federation.archive import zipped
from sovfed.federation.archive.wheel import brought, check_modules, check_requirements, read_wheel
from sovfed.federation.errors import ConfigError

INFO = "lab-1.dist-info"
METADATA = b"Metadata-Version: 2.4\nName: lab\nVersion: 1\nRequires-Dist: numpy>=1\n"
POINTS = b"[sovfed.tasks]\nsepsis = lab:TASK\n"
GOOD = {"lab/__init__.py": b"", f"{INFO}/METADATA": METADATA, f"{INFO}/entry_points.txt": POINTS}


def test_what_a_wheel_brings_is_read_without_importing_it() -> None:
    said = brought(GOOD)
    assert (said.tasks, said.requires, said.modules) == ({"sepsis": "lab:TASK"}, ("numpy>=1",), ("lab",))


@pytest.mark.parametrize(
    "name",
    ["lab/fast.so", "lab/fast.pyd", "lab/old.pyc", "lab.pth", "lab/__pycache__/x.py", "lab-1.data/scripts/run", "x.zip",
     "other-1.dist-info/METADATA"],
)  # fmt: skip
def test_what_is_no_source_of_one_package_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        brought({**GOOD, name: b""})


def test_entry_points_of_others_are_refused() -> None:
    """Other libraries would run them by themselves: torch.backends, pytest11, mlflow.tracking_store."""
    with pytest.raises(ConfigError, match=r"torch\.backends"):
        brought({**GOOD, f"{INFO}/entry_points.txt": POINTS + b"[torch.backends]\nlab = lab:start\n"})


@pytest.mark.parametrize("data", [b"\xff", b"[sovfed.tasks]\nx\n"])
def test_entry_points_that_cannot_be_read_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        brought({**GOOD, f"{INFO}/entry_points.txt": data})


@pytest.mark.parametrize("name", ["sovfed", "json", "torch", "numpy", "sys", "__main__", "a-b", "_pytest"])
def test_a_module_that_is_there_already_is_not_shadowed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"shadows none|no name of a module"):
        check_modules(["a_new_one", name])


@pytest.mark.parametrize(
    ("text", "said"), [("numpy>=99", "installed here is"), ("no-such-thing", "not installed"), ("???", "read")]
)
def test_a_requirement_that_is_not_met_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_requirements([text])


def test_a_requirement_of_an_extra_or_another_system_is_none() -> None:
    assert check_requirements(['nothing; extra == "x"', 'nothing; sys_platform == "win32"']) == {}


def test_a_wheel_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    bomb = tmp_path / "lab-1-py3-none-any.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file, file.open("lab/zeros.bin", "w") as zeros:
        for _ in range(5):
            zeros.write(bytes(1 << 24))
    with pytest.raises(ConfigError, match="MiB unpacked"):
        read_wheel(bomb)
    with pytest.raises(ConfigError, match="pure Python"):
        read_wheel(tmp_path / "lab-1-cp311-cp311-linux_x86_64.whl")
    bomb.write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="not a wheel"):
        read_wheel(bomb)


def test_a_wheel_whose_size_is_forged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("lab/zeros.bin", bytes(1 << 20))
    forged = content.getvalue().replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path = tmp_path / "lab-1-py3-none-any.whl"
    path.write_bytes(forged)
    monkeypatch.setattr(zipped, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="not a wheel"):
        read_wheel(path)
