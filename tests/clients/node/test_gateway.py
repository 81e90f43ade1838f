"""The gateway: what it does not import, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sovfed.clients.node.gateway import run
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import ConfigError


def test_gateway_needs_a_runtime_port(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runtime_port is 0"):
        run(tmp_path, ClientConfig(), threading.Event())


def test_gateway_imports_nothing_that_reads_records_or_trains(tmp_path: Path) -> None:
    """Run it up to its loop, then look at what it has loaded."""
    (tmp_path / "identity").mkdir()
    addresses = {"name": "h", "fleet_address": "127.0.0.1:1", "lane_address": "127.0.0.1:2"}
    (tmp_path / "identity" / "institution.json").write_text(json.dumps(addresses))
    program = f"""
import json, sys, threading
from pathlib import Path
from sovfed.clients.node.gateway import run
from sovfed.federation.config import ClientConfig
stop = threading.Event()
threading.Timer(1.0, stop.set).start()
run(Path({str(tmp_path)!r}), ClientConfig(runtime_port=1), stop)
heavy = ["torch", "sklearn", "pandas", "scipy", "mlflow", "hydra", "ray", "safetensors"]
print(json.dumps([[name for name in heavy if name in sys.modules],
                  [name for name in sys.modules if name.startswith(("sovfed.clients.data", "sovfed.federation.tasks",
                   "sovfed.clients.training.local", "sovfed.server"))]]))
"""
    source = str(Path(__file__).parents[3] / ".src")
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [[], []]
