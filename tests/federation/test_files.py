"""Files that cannot be read: for good, or because the machine is short of something at this moment."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sovfed.clients.home.settings import read_settings
from sovfed.federation.errors import ConfigError, IdentityError, NotReadNowError, PolicyError, SovfedError
from sovfed.federation.files import read_bounded, read_object, read_plain, read_private, read_whole, write_private

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
