"""Files that cannot be read, for good or at this moment; and that nobody else may read."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sovfed.clients.home.settings import read_settings
from sovfed.federation.errors import ConfigError, IdentityError, NotReadNowError, PolicyError, ServiceError, SovfedError
from sovfed.federation.files import (
    private_directory,
    read_bounded,
    read_object,
    read_plain,
    read_private,
    read_whole,
    write_atomic,
    write_private,
)

READERS = (
    read_private,
    read_plain,
    read_bounded,
    partial(read_whole, most=9),
    partial(read_settings, error=PolicyError),
)


@contextmanager
def no_descriptor() -> Iterator[None]:
    """This process can open nothing more meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_no_descriptor_is_left_for_is_not_missing_or_wrong(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    """Exit codes 2 and 3 are final: a process would not be started again though its files are as they should be."""
    path = tmp_path / "key"
    write_private(path, b"a: 1")
    read(path)  # and what it imports
    with no_descriptor(), pytest.raises(NotReadNowError, match="Too many open files"):
        read(path)
    assert read(path)


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_is_not_there_is_no_shortage(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(SovfedError) as told:
        read(tmp_path / "key")
    assert isinstance(told.value, IdentityError | PolicyError) and not isinstance(told.value, NotReadNowError)


@pytest.mark.parametrize("content", [b"", b"{", bytes(9), b"[]", b"null", b"\xff", b'{"status": 5}'])
def test_an_object_that_is_no_longer_what_was_written_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b'{"status": "running", "more": 1}')
    assert read_object(path, {"status": str})["more"] == 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.json is damaged: .* restore it from a backup, or ask dr-ito"):
        read_object(path, {"status": str}, "ask dr-ito")


@pytest.mark.parametrize(("mode", "ok"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o644, False)])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int, ok: bool) -> None:
    path = tmp_path / "key.pem"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(mode)
    if ok:
        assert read_private(path) == b"secret"
    else:
        with pytest.raises(IdentityError, match="expected 0600"):
            read_private(path)


def test_a_secret_behind_a_link_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "real", b"secret")
    (tmp_path / "key.pem").symlink_to("real")
    with pytest.raises(IdentityError):
        read_private(tmp_path / "key.pem")


def test_a_home_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    assert stat.S_IMODE(private_directory(tmp_path / "home").stat().st_mode) == 0o700
    (tmp_path / "home").chmod(0o750)
    with pytest.raises(ServiceError, match="expected 0700"):
        private_directory(tmp_path / "home")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r".+"):
        write_atomic(tmp_path / "folder", b"new")  # a file cannot replace a folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "folder"]
    assert (tmp_path / "f").read_bytes() == b"old"
