"""One real federation, watched: metrics of both sides, logs of JSON, whom a run waits for, and the agency's console."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.deploy.conftest import make_config, wait_for, wait_for_run

from sovfed.federation.files import write_private
from sovfed.server.console.users import add_user
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation
from sovfed.simulations.federation import institution_names, sites
from sovfed.simulations.ports import free_ports

pytestmark = pytest.mark.deploy
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalFederation, int, int]]:
    """Four hospitals that allow one task; the ports of the agency's and of hospital-1's metrics."""
    agency_port, house_port, console_port = free_ports(3)
    settings = (f"server.watch_port={agency_port}", f"server.console_port={console_port}", "server.log_format=json")
    config = make_config(*settings, "client.log_format=json", "server.round_deadline_s=60")
    data = sites(config)
    hospitals = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
    policy = dataclasses.replace(POLICY, allowed_tasks=("breast_cancer",), max_rounds=1_000_000, max_sums_per_run=10**9)
    federation = LocalFederation(tmp_path_factory.mktemp("watched"), hospitals, config, policy)
    try:
        federation.build_agency()
        add_user(federation.home, "anna", "operator", PASSWORD)
        federation.start_agency()
        federation.enrol()
        path = federation.client_home("hospital-1") / "client.yaml"
        write_private(path, path.read_text().replace("watch_port: 0", f"watch_port: {house_port}").encode())
        federation.start_institutions()
        yield federation, agency_port, house_port
    finally:
        federation.stop()


def metrics(port: int) -> dict[tuple[str, ...], float]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=30.0).text
    families = text_string_to_metric_families(text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def command(federation: LocalFederation, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sovfed", *words, "--home", str(federation.home)]
    narrow = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "latin-1"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False, env=narrow)


def test_both_sides_tell_a_monitor_how_they_are(watched: tuple[LocalFederation, int, int]) -> None:
    federation, agency, house = watched
    wait_for(lambda: metrics(agency).get(("sovfed_institution_online", "hospital-4")) == 1, "hospital-4 to be online")
    for port, process in ((agency, "superlink"), (house, "trainer")):
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        assert metrics(port)["sovfed_process_ready", process] == 1
    assert ("sovfed_certificate_end_seconds", "institution") in metrics(house)
    for log in (federation.home / "logs" / "registry.log", federation.client_home("hospital-1") / "logs/trainer.log"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert lines and all({"time", "process", "message"} <= set(line) for line in lines)


def test_a_task_that_no_policy_allows_is_refused_before_round_1_with_what_to_ask_for(
    watched: tuple[LocalFederation, int, int],
) -> None:
    federation, _, _ = watched
    done = command(federation, "run", "start", "task=digits", "server.min_cohort=3", "run_name=refused")
    assert done.returncode == 1
    words = " ".join(done.stderr.split())
    assert re.search(r"[34] of 4 institutions (would not answer this run|refuse)", words), words
    assert "allowed_tasks" in words or "bound (" in words  # who was slow to say which setting says so by its code
    assert "sovfed run resume refused" in words  # which helps, once the policies allow it


def test_a_run_says_whom_it_waits_for_and_the_console_shows_and_stops_it(
    watched: tuple[LocalFederation, int, int],
) -> None:
    federation, agency, _ = watched
    long = dataclasses.replace(federation.config, rounds=100_000)
    federation.start_run("long", long)
    wait_for(lambda: metrics(agency).get(("sovfed_run_rounds_done", "long"), 0) > 3, "rounds")
    gateway = federation.pid("hospital-3", "gateway")
    os.kill(gateway, signal.SIGSTOP)
    try:
        waiting: dict[str, Any] = {}

        def named() -> bool:
            waiting.update(json.loads(command(federation, "server", "status", "--json").stdout)["runs_waiting"])
            return any("awaiting" in line and "hospital-3" in line for line in waiting.get("long", []))

        wait_for(named, "hospital-3 to be named as awaited")
        assert "hospital-3" in command(federation, "run", "show", "long").stdout

        def noticed() -> bool:  # waited for, or by then left out of the rounds
            told = metrics(agency)
            missed = told["sovfed_institution_rounds_missed", "hospital-3"]
            return told["sovfed_run_awaited", "long"] >= 1 or missed >= 1

        wait_for(noticed, "a monitor to be told of hospital-3")
    finally:
        os.kill(gateway, signal.SIGCONT)
    with httpx.Client(base_url=f"http://127.0.0.1:{federation.config.server.console_port}", trust_env=False) as anna:
        entry = field(anna.get("/login").text, "entry")
        anna.post("/login", data={"name": "anna", "password": PASSWORD, "entry": entry})
        page = anna.get("/runs/long", timeout=60.0).text
        assert "<svg" in page and "online" in anna.get("/institutions").text
        answer = anna.post("/runs/long/stop", data={"csrf": field(page, "csrf")}, timeout=60.0)
        assert answer.status_code == 303
    assert wait_for_run(federation, "long")["status"] == "stopped"


def field(text: str, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]+)"', text)
    assert match, text
    return match[1]
