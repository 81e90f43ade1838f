"""Small disks that can be filled: file systems in memory, mounted where nobody else sees them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

MARK: Final = "SOVFED_OWN_MOUNTS"  # set in the process that has them
FILLER: Final = "filler"
BLOCK: Final = 4096


def have_own_mounts() -> bool:
    """Whether this process may mount without anybody else's seeing it."""
    return MARK in os.environ


def with_own_mounts() -> None:
    """Begin this process anew with mounts of its own; returns, having changed nothing, where the machine has none."""
    command = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    try:
        if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
            return
    except OSError:
        return
    os.environ[MARK] = "1"
    os.execvp(command[0], [*command, sys.executable, "-m", "sovfed", *sys.argv[1:]])  # noqa: S606


def mount_small(folder: Path, size_mb: int) -> None:
    """Make `folder` (0700) with a file system of its own of that size."""
    folder.mkdir(mode=0o700, parents=True)
    options = f"size={size_mb}m,mode=0700,uid={os.geteuid()}"
    subprocess.run([_program("mount"), "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def unmount(folder: Path) -> None:
    subprocess.run([_program("umount"), "--lazy", str(folder)], check=False, capture_output=True)


def _program(name: str) -> str:
    return shutil.which(name) or name


def fill(folder: Path) -> None:
    """Leave no byte on the file system of `folder`."""
    with (folder / FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(BLOCK))
        except OSError:
            return


def free(folder: Path) -> None:
    (folder / FILLER).unlink(missing_ok=True)
