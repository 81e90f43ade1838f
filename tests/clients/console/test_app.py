"""The institution's page over real HTTP: what left, to whoever knows the password; nothing but a word is changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.clients.ledger.crash import POPULATION
from tests.clients.seen_home import make_seen_house
from tests.federation.models.made_tasks import BINARY, RUN, model_of
from tests.server.agency import free_port, process, wait_until

from sovfed.clients.console.app import PASSWORD, USER
from sovfed.clients.ledger.file import ledger_path
from sovfed.clients.models.received import FOLDER, ReceivedModels
from sovfed.federation.host.processes import listening
from sovfed.federation.models.facts import facts_of

VECTOR, SCALE = model_of(BINARY)
PAGES = ("/", "/orders", "/status", "/studies")
FORM = ("POST", "/orders")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seen_house(tmp_path_factory.mktemp("house") / "home")


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "sovfed", "client", "console", "--port", str(port), "--home", str(home)]
    with process(argv, home, home / "console.log") as child:
        answers = listening(("127.0.0.1", port))
        wait_until(lambda: answers() or child.poll() is not None, what="the page")
        assert child.poll() is None, (home / "console.log").read_text()
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page(home: Path, address: str) -> Iterator[httpx.Client]:
    secret = (home / PASSWORD).read_text()
    with httpx.Client(base_url=address, auth=(USER, secret), trust_env=False, timeout=30.0) as client:
        yield client


def test_every_page_needs_the_password_and_the_right_name(home: Path, address: str, page: httpx.Client) -> None:
    assert (home / PASSWORD).stat().st_mode & 0o777 == 0o600
    for path in (*PAGES, "/static/console.css"):
        assert httpx.get(address + path, trust_env=False).status_code == 401
        assert httpx.get(address + path, auth=(USER, "wrong"), trust_env=False).status_code == 401
        assert page.get(path).status_code == 200
        assert page.get(path, headers={"Host": "attacker.example"}).status_code == 421


def test_it_tells_run_by_run_what_left_and_what_it_cost(page: httpx.Client) -> None:
    text = re.sub(r"<[^>]+>", " ", page.get("/").text)
    assert re.search(r"heart-private\s+train\s+\S+.*?2 of 5", text, re.DOTALL)
    assert "heart-open" in text and POPULATION in text
    assert "heart-greedy" in text.partition("Refused by the ledger")[2]
    assert "breast_cancer" in page.get("/studies").text and "Not running" in page.get("/status").text


def test_a_run_has_its_name_once_its_model_came_back(home: Path, page: httpx.Client) -> None:
    """Until then all that there is of it is Flower's number, which is `owner` here."""
    assert RUN.name not in page.get("/").text
    models = ReceivedModels(home / FOLDER)
    models.keep(BINARY, VECTOR, facts_of(BINARY, SCALE, RUN), owner="heart-open", plan={})
    assert f"{RUN.name}, heart-open" in page.get("/").text
    models.remove(RUN.name)


def test_it_says_what_runs_asked_and_what_is_signed_without_anybody(page: httpx.Client) -> None:
    text = re.sub(r"<[^>]+>", " ", page.get("/orders").text)
    assert re.search(r"study\s.*?waits for an officer", text, re.DOTALL)
    assert "asked by     anybody" in text and "&lt;script&gt;alert(1)" in text


def test_hostile_names_of_runs_are_text(page: httpx.Client) -> None:
    text = page.get("/").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in text
    assert "<script>alert" not in text and "\u202e" not in text
    assert "default-src 'none'" in page.get("/").headers["content-security-policy"]


def test_it_is_read_only_but_for_a_form_of_its_own(home: Path, page: httpx.Client) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "console.log"}
    for path in (*PAGES, "/x", "/static/base.html"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert page.request(method, path).status_code in ((409,) if (method, path) == FORM else (404, 405))
        page.get(path)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "console.log"}
    assert after == before


def test_a_damaged_ledger_is_told_and_ends_no_page(home: Path, page: httpx.Client) -> None:
    path = ledger_path(home, POPULATION)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"heart", b"herat"))
    try:
        answer = page.get("/")
        assert answer.status_code == 200 and 'role="alert"' in answer.text
    finally:
        path.write_bytes(whole)


def test_the_server_s_own_lines_are_not_in_its_output(home: Path, page: httpx.Client) -> None:
    assert page.get("/").status_code == 200
    assert "uvicorn" not in (told := (home / "console.log").read_text().lower()) and "server process" not in told


def test_a_home_that_is_none_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sovfed", "client", "console", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "client init" in done.stderr


def test_permits_that_ended_unpurged_and_officers_who_are_missing_are_told(home: Path, page: httpx.Client) -> None:
    entry = {"order": "0" * 64, "name": "study", "permit": "p-12", "answered": {}}
    (home / "orders" / "state" / "runs.json").write_text(json.dumps({"7": entry}))
    policy = home / "policy.yaml"
    before = policy.read_text()
    assert "permits: {}\n" in before
    policy.write_text(before.replace("permits: {}\n", 'permits: {p-12: {expires: "2020-12-31"}}\n'))
    try:
        for path in ("/status", "/orders"):
            text = page.get(path).text
            assert "permit p-12 ended on 2020-12-31: `sovfed client purge p-12`" in text
            assert "no officer yet, and statistics wait for one" in text
    finally:
        policy.write_text(before)
