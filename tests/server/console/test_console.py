"""The agency's console over real HTTP, by a browser's means and by an attacker's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import ssl
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from filelock import FileLock
from tests.clients.orders.house import CONFIG, whole
from tests.server.agency import free_port, process, wait_until
from tests.server.seen_home import NAMES, add_run, changed_settings, make_seen_home, with_refusal

from sovfed.federation.files import private_directory
from sovfed.federation.host.forms import TRIES, Throttle
from sovfed.federation.host.processes import listening
from sovfed.federation.orders.answers import Answer
from sovfed.federation.orders.order import Proposal
from sovfed.server.console.sessions import IDLE_S, LONGEST_S, Sessions
from sovfed.server.console.users import add_user, remove_user
from sovfed.server.orders.making import make_order, write_answers, write_order
from sovfed.server.runs.awaiting import FILE

PASSWORD = "correct horse battery"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J\u202e"
PAGES = ("/", "/institutions", "/runs", "/runs/heart-1", "/orders", "/budgets", "/releases", "/requests")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An agency with a run of every kind; one of them is in a process's hands and waits for hospital-3."""
    folder = tmp_path_factory.mktemp("console")
    made = make_seen_home(folder)
    add_run(made, "heart-1", "finished", 20)
    add_run(made, "heart-private", "finished", 20, "privacy=distributed", metrics={}, train_loss=None)
    with_refusal(made, add_run(made, "hostile", "failed", 3), HOSTILE)
    running = add_run(made, "heart-2", "running", 7)
    waiting = {"stage": "training of round 8", "since": 1.0, "asked": 3, "missing": ["hospital-3"], "refused": {}}
    (running / FILE).write_text(json.dumps({**waiting, "until": 0.0}))
    for name, purpose in (("heart-1", "risk of infarction, study 12"), ("heart-3", HOSTILE.replace("\x1b", ""))):
        order = dataclasses.replace(make_order(CONFIG, "study", whole(CONFIG), time.time()), run=name)
        hostile = dataclasses.replace(order, purpose=purpose.replace("\u202e", ""))
        write_order(private_directory(made / "runs" / name), Proposal(hostile))
    write_answers(made / "runs" / "heart-1", {"hospital-2": Answer(order.digest, "hospital-2", "refused").to_bytes()})
    add_user(made, "anna", "operator", PASSWORD)
    add_user(made, "vera", "viewer", PASSWORD)
    changed_settings(made, console_port=free_port())
    with FileLock(running / "lock"):
        yield made


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with served(home) as where:
        yield where


@contextlib.contextmanager
def served(home: Path, scheme: str = "http") -> Iterator[str]:
    """The console as a real process; its address."""
    port = json.loads((home / "server.json").read_text())["server"]["console_port"]
    argv = [sys.executable, "-m", "sovfed.server.console.process", "--home", str(home)]
    log = home / "logs" / "console.log"
    with process(argv, home, log) as child:
        answers = listening(("127.0.0.1", port))
        wait_until(lambda: answers() or child.poll() is not None, what="the console")
        assert child.poll() is None, log.read_text()
        yield f"{scheme}://127.0.0.1:{port}"


def browser(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, trust_env=False, timeout=30.0)


def log_in(client: httpx.Client, name: str = "anna", password: str = PASSWORD) -> httpx.Response:
    entry = field(client.get("/login").text, "entry")
    return client.post("/login", data={"name": name, "password": password, "entry": entry})


def field(text: str, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]+)"', text)
    assert match, text
    return match[1]


@pytest.fixture
def anna(address: str) -> Iterator[httpx.Client]:
    with browser(address) as client:
        assert log_in(client).headers["location"] == "/"
        yield client


def test_nothing_is_shown_to_whoever_is_not_logged_in(address: str) -> None:
    with browser(address) as client:
        for path in (*PAGES, "/runs/hostile?still=1", "/runs/none"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
        for path in ("/runs/heart-2/stop", "/runs/heart-2/resume", "/logout"):
            assert client.post(path).headers["location"] == "/login"
        assert client.get("/", headers={"HX-Request": "true"}).headers["hx-redirect"] == "/login"
        for path in ("/docs", "/openapi.json", "/redoc", "/static/base.html", "/static/..%2fbase.html"):
            assert client.get(path).status_code == 404


def test_every_page_has_what_it_is_for(anna: httpx.Client) -> None:
    text = {path: anna.get(path).text for path in PAGES}
    assert all(name in text["/institutions"] for name in NAMES) and ", soon" in text["/institutions"]
    assert "awaiting 1 of 3 for training of round 8" in text["/"] and "hospital-3" in text["/"]
    assert "1 request to admit" in text["/"] and "hospital-5" in text["/requests"]
    assert "sovfed authority sign" in text["/requests"]
    assert text["/runs/heart-1"].count("<svg") == 3 and "Held-out metrics" in text["/runs/heart-1"]
    assert "privacy" in text["/runs/heart-1"].partition("Refusals")[2]
    assert "heart-private" in text["/budgets"] and "heart-1" not in text["/budgets"]
    assert "5f2c5f2c" in text["/releases"]
    asked, proposed = text["/orders"].split("<h2>heart-1</h2>")[1], text["/orders"].split("<h2>heart-3</h2>")[1]
    assert "purpose    risk of infarction, study 12" in asked and "hospital-2: refused" in asked
    assert "<code>sovfed client orders sign heart-1</code>" in asked and "sovfed run start" not in asked
    assert "<code>sovfed run start --proposed heart-3</code>" in proposed and "sovfed run approve" in proposed
    assert "No run begins before" not in text["/orders"]
    assert anna.get("/runs/none").status_code == 409
    assert anna.get("/runs/..%2f..%2fserver.json").status_code in (404, 409)


def test_a_bound_agency_s_pages_say_which_approvals_are_missing(home: Path, anna: httpx.Client) -> None:
    changed_settings(home, min_approvers=2)
    try:
        orders, run = anna.get("/orders").text, anna.get("/runs/heart-2").text
        ended = anna.get("/runs/heart-1").text
    finally:
        changed_settings(home, min_approvers=0)
    assert "No run begins before: approved by nobody, of 2 people of agency" in orders.split("<h2>heart-3</h2>")[1]
    assert "once its order is approved: approved by nobody, of 2 people" in run
    assert "once its order is approved" not in ended


def test_every_page_is_made_for_keyboard_and_screen_reader(anna: httpx.Client) -> None:
    for path in PAGES:
        text = anna.get(path).text
        assert '<html lang="en">' in text and text.count("<h1>") == 1 and '<main id="main"' in text
        assert 'href="#main"' in text and '<nav aria-label="Pages">' in text and "<title>" in text
        assert text.count("<table") == text.count("<caption>")
        assert "<th>" not in text
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            assert 'role="img"' in svg and re.search(r"<title id=.*from [0-9.]+ to [0-9.]+", svg)
        if "hx-trigger" in text:  # what moves can be held still
            assert "?still=1" in text and "hx-trigger" not in anna.get(f"{path}?still=1").text
    with browser(str(anna.base_url)) as stranger:
        form = stranger.get("/login").text
    assert '<label for="name">' in form and '<label for="password">' in form


def test_hostile_text_is_text(anna: httpx.Client) -> None:
    assert "&lt;script&gt;alert(1)" in anna.get("/orders").text
    for path in ("/", "/runs", "/runs/hostile"):
        text = anna.get(path).text
        assert "&lt;script&gt;alert(1)" in text and "\\x1b[2J\\u202e" in text
        assert "<script>alert" not in text and "<img" not in text and "\x1b" not in text and "\u202e" not in text


def test_no_page_loads_or_runs_anything_of_others(anna: httpx.Client) -> None:
    for path in PAGES:
        answer = anna.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert not re.search(r'(src|href|action)="(https?:)?//', answer.text)
        assert not re.search(r"<script(?! src=)|<style|<[^>]*\s(style|on\w+)=", answer.text)
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-frame-options"] == "DENY"
    assert anna.get("/static/htmx.min.js").status_code == 200


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(address: str) -> None:
    with browser(address) as client:
        cookie = log_in(client).headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie


def test_an_act_needs_the_token_of_this_session_this_origin_and_an_operator(home: Path, address: str) -> None:
    with browser(address) as anna, browser(address) as vera:
        log_in(anna), log_in(vera, "vera")
        stolen = field(vera.get("/").text, "csrf")
        token = field(anna.get("/").text, "csrf")
        for form in ({}, {"csrf": ""}, {"csrf": stolen}):
            assert anna.post("/runs/heart-2/stop", data=form).status_code == 403
        for headers in ({"Origin": "https://attacker.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert anna.post("/runs/heart-2/stop", data={"csrf": token}, headers=headers).status_code == 403
        assert vera.post("/runs/heart-2/stop", data={"csrf": stolen}).status_code == 403
        assert "Stop this run" not in vera.get("/runs/heart-2").text
        assert anna.post("/runs/heart-2/delete", data={"csrf": token}).status_code == 403
        assert anna.get("/runs/heart-2/stop").status_code == 405
        assert anna.post("/runs/heart-2/stop", data={"csrf": token, "x": "a" * 10_000}).status_code == 403
        assert json.loads((home / "runs" / "heart-2" / "run.json").read_text())["status"] == "running"
        assert anna.post("/runs/heart-2/resume", data={"csrf": token}).status_code == 409  # it runs


def test_a_login_is_not_forged_from_elsewhere_nor_tells_of_names_nor_is_tried_for_ever(home: Path) -> None:
    changed_settings(home, console_port=free_port())
    with served(home) as address, browser(address) as client:
        assert client.post("/login", data={"name": "anna", "password": PASSWORD}).status_code == 403
        names = ("anna", "nobody", "\u202e<b>", "", "vera")
        answers = [log_in(client, name, "wrong password") for name in names]
        assert len(names) == TRIES and {answer.status_code for answer in answers} == {401}
        tokens = re.compile(r'value="[^"]{20,}"')
        assert len({tokens.sub("", answer.text) for answer in answers}) == 1
        assert log_in(client).status_code == 429
        assert client.get("/").status_code == 303


def test_many_tries_at_once_and_own_logins_in_between_are_no_more_tries(home: Path) -> None:
    changed_settings(home, console_port=free_port())
    with served(home) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(browser(address)) for _ in range(3 * TRIES)]
        with ThreadPoolExecutor(len(clients)) as pool:
            statuses = [answer.status_code for answer in pool.map(lambda one: log_in(one, "anna", "wrong"), clients)]
    assert sorted(statuses) == [401] * TRIES + [429] * 2 * TRIES
    throttle = Throttle()
    for address in ["192.0.2.1"] * (TRIES - 1):
        assert throttle.begin(address) == 0
        assert throttle.begin(address) == 0
        throttle.right(address)  # a viewer's own, between guesses of an operator's
    assert throttle.begin("192.0.2.1") == 0 and throttle.begin("192.0.2.1") > 0
    waits = [throttle.begin(f"2001:db8::{number:x}") for number in range(1, TRIES + 2)]
    assert waits[:-1] == [0] * TRIES and waits[-1] > 0


def test_whoever_is_removed_or_logs_out_is_out_with_the_next_request(home: Path, address: str) -> None:
    add_user(home, "otto", "operator", PASSWORD)
    with browser(address) as otto, browser(address) as anna:
        log_in(otto, "otto"), log_in(anna)
        assert "otto (operator)" in otto.get("/").text
        add_user(home, "otto", "viewer", PASSWORD)
        assert otto.get("/").status_code == 303
        log_in(otto, "otto")
        assert "otto (viewer)" in otto.get("/").text
        remove_user(home, "otto")
        assert otto.get("/").status_code == 303
        secret = anna.cookies["sovfed"]
        anna.post("/logout", data={"csrf": field(anna.get("/").text, "csrf")})
        anna.cookies.set("sovfed", secret, domain="127.0.0.1")
        assert anna.get("/").status_code == 303


def test_a_session_that_was_stolen_ends_with_the_password_that_it_was_begun_with(home: Path, address: str) -> None:
    add_user(home, "mara", "operator", PASSWORD)
    with browser(address) as thief, browser(address) as mara:
        log_in(thief, "mara")
        token = field(thief.get("/runs/heart-2").text, "csrf")
        add_user(home, "mara", "operator", PASSWORD + " anew")
        assert thief.post("/runs/heart-2/stop", data={"csrf": token}).headers["location"] == "/login"
        assert thief.get("/").headers["location"] == "/login"
        assert log_in(mara, "mara", PASSWORD + " anew").headers["location"] == "/"
        remove_user(home, "mara")
        add_user(home, "mara", "viewer", PASSWORD + " of another Mara")
        assert mara.get("/").status_code == 303
    remove_user(home, "mara")


def test_sessions_end_when_they_are_idle_or_old() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    idle, busy = sessions.begin("anna", "d"), sessions.begin("anna", "d")
    for now[0] in range(0, int(LONGEST_S), int(IDLE_S)):
        assert sessions.get(busy)
    assert sessions.get(idle) is None and sessions.get("") is None
    now[0] = LONGEST_S + 1
    assert sessions.get(busy) is None


def test_a_name_that_is_not_the_pages_own_gets_nothing(address: str) -> None:
    with browser(address) as client:
        for host in ("attacker.example", "127.0.0.1.attacker.example:80", ""):
            assert client.get("/login", headers={"Host": host}).status_code in (400, 421)


def test_off_the_loopback_it_has_tls_and_cookies_that_need_it(home: Path) -> None:
    changed_settings(home, console_port=free_port(), console_host="0.0.0.0")
    try:
        with served(home, "https") as address:
            trust = ssl.create_default_context(cafile=str(home / "identity" / "root.pem"))
            with httpx.Client(base_url=address, verify=trust, trust_env=False, timeout=30.0) as client:
                cookies = log_in(client).headers["set-cookie"]
                assert cookies.startswith("__Host-") and "secure" in cookies.lower()
                assert client.get("/").status_code == 200
                assert "max-age" in client.get("/").headers["strict-transport-security"]
            with pytest.raises(httpx.HTTPError):
                httpx.get(address.replace("https", "http"), trust_env=False)
    finally:
        changed_settings(home, console_host="127.0.0.1")


def test_passwords_are_kept_as_slow_digests_in_a_private_file(home: Path) -> None:
    path = home / "console-users.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in path.read_text()
    digests = [entry["digest"] for entry in json.loads(path.read_text()).values()]
    assert len(set(digests)) == len(digests)


def test_permits_whose_runs_were_not_purged_are_told_on_the_first_page(home: Path, anna: httpx.Client) -> None:
    order = make_order(CONFIG, "study", whole(CONFIG), 1e9)
    old = dataclasses.replace(order, run="old", permit="p-12")
    write_order(private_directory(home / "runs" / "old"), Proposal(old))
    assert "permit p-12: its last order ended on" in anna.get("/").text
