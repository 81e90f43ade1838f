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
from sovfed.federation.errors import IdentityError, NotReadNowError, PolicyError, SovfedError
from sovfed.federation.files import read_bounded, read_plain, read_private, read_whole, write_private

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
