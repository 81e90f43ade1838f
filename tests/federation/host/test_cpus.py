"""A quota of processors is seen, where the kernel's control groups say it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from sovfed.federation.host import cpus
from sovfed.federation.host.quiet import quiet_environment


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(("text", "expected"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("what\n", None)])
def test_the_second_version_s_limit_is_read(tmp_path: Path, text: str, expected: float | None) -> None:
    write(tmp_path / "a" / "b" / "cpu.max", text)
    assert cpus.quota(tmp_path, "0::/a/b\n") == expected


def test_the_smallest_of_all_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "a" / "cpu.max", "50000 100000")
    write(tmp_path / "a" / "b" / "cpu.max", "400000 100000")
    assert cpus.quota(tmp_path, "0::/a/b\n") == 0.5


def test_a_container_s_own_root_counts_where_the_path_is_the_host_s(tmp_path: Path) -> None:
    write(tmp_path / "cpu.max", "200000 100000")
    assert cpus.quota(tmp_path, "0::/machine/of/the/host\n") == 2.0


@pytest.mark.parametrize(("amount", "expected"), [("250000\n", 2.5), ("-1\n", None)])
def test_the_first_version_s_limit_is_read(tmp_path: Path, amount: str, expected: float | None) -> None:
    write(tmp_path / "cpu" / "job" / "cpu.cfs_quota_us", amount)
    write(tmp_path / "cpu" / "job" / "cpu.cfs_period_us", "100000\n")
    assert cpus.quota(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/job\n") == expected


def test_without_a_quota_all_processors_are_usable_and_no_number_of_threads_is_set() -> None:
    if cpus.usable() == len(os.sched_getaffinity(0)):
        assert "OMP_NUM_THREADS" in os.environ or "OMP_NUM_THREADS" not in quiet_environment()


def test_a_real_quota_bounds_the_threads_of_a_process(tmp_path: Path) -> None:
    """As a container's `--cpus=1` on a machine of several."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    parent = next((folder for folder in (cpus.GROUPS, cpus.GROUPS / "cpu") if (folder / "cgroup.procs").exists()), None)
    group = Path(parent or "/none") / f"sovfed-{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("100000 100000")
        elif (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text("100000")
        else:
            pytest.skip("no processors in these control groups")
        program = (
            "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()));"
            "from sovfed.federation.host import cpus; from sovfed.federation.host.quiet import quiet_environment;"
            "print(cpus.usable(), quiet_environment()['OMP_NUM_THREADS'])"
        )
        env = {"PYTHONPATH": os.pathsep.join(sys.path)}
        argv = [sys.executable, "-c", program, str(group / "cgroup.procs")]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.stdout == "1 1\n", done.stderr
        free = subprocess.run(
            [*argv, "x"], env={**env, "OMP_NUM_THREADS": "7"}, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert free.stdout == "1 7\n"  # who sets it knows better
    finally:
        group.rmdir()
