"""What every test runs in: reports home switched off, Flower's files in a temporary folder, nobody outside called."""

from __future__ import annotations

import gc
import ipaddress
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sovfed.federation.host.quiet import be_quiet

HOME = Path(tempfile.mkdtemp(prefix="sovfed-tests-"))
APART = "SOVFED_TESTS_APART"
DEPLOY_TIMEOUT_S = 400  # a federation of seventeen processes starts, runs and stops, on two busy cores too
# The longest files of real processes: begun first, none of them is left to one core at the end.
LONGEST = (
    "test_own_task", "test_faults", "test_seam", "test_orders", "test_join", "test_task_package", "test_supernode",
    "test_deploy", "test_isolation", "test_hangs", "test_chaos", "test_presence", "test_privacy", "test_executor",
    "test_secure_aggregation", "test_crash", "test_simulation", "test_rounds", "test_superlink", "test_seeing",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    be_quiet(HOME)
    os.environ["MPLBACKEND"] = "Agg"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests and processes share the cores: threads would spin for them
    sys.addaudithook(_refuse_outside)
    # How long an example takes says nothing of the code on a machine that is busy.
    settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real processes have longer: what they wait for ends first, and says what it waited for.

    The longest of them begin.
    """
    for item in items:
        if item.get_closest_marker("deploy") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(DEPLOY_TIMEOUT_S))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """A test's turn: files without real processes as they come, then the longest, then the others."""
    if not item.get_closest_marker("deploy"):
        return -1
    return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _kept_modules() -> None:
    """What was imported stays, so nobody looks through it for garbage: Flower would, each time it hands out arrays."""
    gc.collect()
    gc.freeze()


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `apart` by a pytest of its own.

    torch's export starts threads of autograd, after which nobody may fork; and what exports cannot run in a fork.
    """
    if not pyfuncitem.get_closest_marker("apart") or APART in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", pyfuncitem.nodeid]
    environment = {**os.environ, APART: "1"}
    done = subprocess.run(
        command, check=False, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    if " skipped" in done.stdout.splitlines()[-1]:
        pytest.skip(done.stdout)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def _refuse_outside(event: str, args: tuple[object, ...]) -> None:
    """Fail a test whose Python code connects to anything but this machine."""
    if event == "socket.connect" and isinstance(args[1], tuple) and not _is_here(str(args[1][0])):
        raise RuntimeError(f"a test tried to connect to {args[1]}")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
