"""A folder's lock: one after the other, and whoever is locked out is told so rather than kept."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from sovfed.federation import files
from sovfed.federation.errors import ConfigError


def test_two_who_write_a_folder_s_file_anew_do_so_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")

    def add() -> None:
        with files.alone(tmp_path):
            count = int((tmp_path / "count").read_text())
            threading.Event().wait(0.01)
            (tmp_path / "count").write_text(str(count + 1))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "8"


def test_a_folder_that_somebody_holds_locked_is_waited_for_with_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCKED_S", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="held it locked"), files.alone(tmp_path):
        raise AssertionError
    os.close(descriptor)
    with files.alone(tmp_path):
        pass
