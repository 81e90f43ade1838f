"""An officer's word on the institution's page over real HTTP: as the command's, and by nobody else's means."""

from __future__ import annotations

import contextlib
import html
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from click.testing import CliRunner
from tests.clients.orders.house import CONFIG, House, whole
from tests.server.agency import free_port, process, wait_until

from sovfed.clients.cli.institution import cli
from sovfed.clients.console.app import PASSWORD, USER
from sovfed.clients.console.signing import Signing
from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import POLICY, Policy, load_policy
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.naming import allow_officer
from sovfed.clients.orders.rules import OrderRules
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import IdentityError, OrderError, PolicyError, TooManyTriesError
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.files import write_atomic
from sovfed.federation.host.forms import FORM_BYTES, TRIES
from sovfed.federation.host.processes import listening
from sovfed.federation.host.status import Status, supervising, write_status
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.answers import create_officer, read_answer

WORDS = "correct horse battery & staple=ü"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Console(NamedTuple):
    """A page that is served, and by whom."""

    address: str
    pid: int


def make_signing_house(folder: Path, officers: tuple[str, ...] = ("ito", "mori"), words: str = WORDS) -> House:
    """h1 in `folder`, whose officers may all sign on its page."""
    house = House(folder)
    home = folder / "h1"
    create(home, ClientConfig(home=str(home)), Policy(allowed_tasks=("breast_cancer",), orders=OrderRules("required")))
    house.home("h1")
    names = {"name": "h1", "fleet_address": "127.0.0.1:1", "lane_address": "127.0.0.1:2"}
    write_atomic(home / "identity" / "institution.json", json.dumps(names).encode())
    for name in officers:
        allow_officer(home, name, create_officer(folder / f"{name}.pem", words.encode()))
    let_sign(home, {name: folder / f"{name}.pem" for name in officers})
    return house


def let_sign(home: Path, keys: Mapping[str, Path]) -> None:
    """Have policy.yaml let these officers sign on the page."""
    entries = json.dumps([f"{name}={path}" for name, path in keys.items()])
    text = re.sub(r"(?m)^  sign_in_console: .*$", f"  sign_in_console: {entries}", (home / POLICY).read_text())
    write_atomic(home / POLICY, text.encode(), 0o600)


def asked(house: House, name: str, **changes: Any) -> str:
    """The digest of an order for run `name` that waits."""
    proposal = house.proposal(whole(CONFIG), CONFIG, name, **changes)
    OrderBook(house.folder / "h1").make().file(proposal, house.now)
    return proposal.order.digest


@contextlib.contextmanager
def served(home: Path) -> Iterator[Console]:
    """The page as a real process."""
    port = free_port()
    argv = [sys.executable, "-m", "sovfed", "client", "console", "--port", str(port), "--home", str(home)]
    with process(argv, home, home.parent / "console.log") as child:
        answers = listening(("127.0.0.1", port))
        wait_until(lambda: answers() or child.poll() is not None, what="the page")
        assert child.poll() is None, (home.parent / "console.log").read_text()
        yield Console(f"http://127.0.0.1:{port}", child.pid)


@contextlib.contextmanager
def browser(home: Path, address: str) -> Iterator[httpx.Client]:
    secret = (home / PASSWORD).read_text()
    with httpx.Client(base_url=address, auth=(USER, secret), trust_env=False, timeout=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return make_signing_house(tmp_path_factory.mktemp("signing"), ("ito", "mori", "eve"))


@pytest.fixture(scope="module")
def home(house: House) -> Path:
    return house.folder / "h1"


@pytest.fixture(scope="module")
def console(home: Path) -> Iterator[Console]:
    with served(home) as running:
        yield running


@pytest.fixture
def page(home: Path, console: Console) -> Iterator[httpx.Client]:
    with browser(home, console.address) as client:
        yield client


def form(page: httpx.Client, digest: str, **changes: str) -> dict[str, str]:
    """The form for an order as an officer fills it in, with a token that nobody has used."""
    token = re.search(r'name="csrf" value="([^"]+)"', text := page.get("/orders").text)
    assert token and f'value="{digest}"' in text, text
    filled = {"csrf": token[1], "order": digest, "decision": "signed", "officer": "ito", "passphrase": WORDS}
    return filled | changes


def word(home: Path, digest: str) -> tuple[str, str, str] | None:
    answer = OrderBook(home).answer(digest)
    return None if answer is None else (answer.decision, answer.officer, answer.reason)


def log_of(home: Path, digest: str) -> list[dict[str, Any]]:
    return [entry for entry in LogReader(home).newest() if entry.get("order") == digest]


def told(answer: httpx.Response) -> str:
    problem = re.search(r'role="alert" class="alert" id="problem">([^<]*)<', answer.text)
    assert problem, answer.text
    return html.unescape(problem[1])


def command(home: Path, *words: str, text: str = WORDS + "\n") -> Any:
    return CliRunner().invoke(cli, ["orders", *words, "--home", str(home)], input=text)


def test_an_officer_reads_what_the_command_shows_and_signs_or_refuses_as_by_the_command(
    house: House, home: Path, page: httpx.Client
) -> None:
    key = ("--key", str(house.folder / "ito.pem"))
    digests = {name: asked(house, name) for name in ("page", "typed", "no", "never")}
    text = html.unescape(re.sub(r"<[^>]+>", "\n", page.get("/orders").text))
    for line in command(home, "show", "page").output.splitlines():
        assert line in text
    answer = page.post("/orders", data=form(page, digests["page"]))
    assert (answer.status_code, answer.headers["location"]) == (303, f"/orders?said={digests['page'][:12]}")
    assert f"Order {digests['page'][:12]} of run page: signed by ito" in page.get(answer.headers["location"]).text
    assert command(home, "sign", "typed", "--yes", *key).exit_code == 0
    refused = form(page, digests["no"], decision="refused", reason=HOSTILE)
    assert page.post("/orders", data=refused).status_code == 303
    assert command(home, "refuse", "never", "--reason", HOSTILE, *key).exit_code == 0
    assert word(home, digests["page"]) == word(home, digests["typed"]) == ("signed", "ito", "")
    assert word(home, digests["no"]) == word(home, digests["never"]) == ("refused", "ito", HOSTILE)
    assert "<script>alert" not in page.get("/orders").text
    for here, there in (("page", "typed"), ("no", "never")):
        (mine,), (theirs,) = log_of(home, digests[here]), log_of(home, digests[there])
        differ = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
        assert mine["event"] == theirs["event"] and differ <= {"name", "order", "at", "time", "before"}, differ
    waiting = page.get("/orders").text.partition("Taking a word back")[0]
    assert not any(f'value="{digest}"' in waiting for digest in digests.values())  # they wait no more


def test_the_page_refuses_in_the_words_of_the_command(house: House, home: Path, page: httpx.Client) -> None:
    key = ("--key", str(house.folder / "ito.pem"))
    digest, other = asked(house, "late"), asked(house, "other")
    with supervising(home):  # a node that was started before any of them was an officer
        write_status(home, Status(1, 0.0, ()))
        said = told(page.post("/orders", data=form(page, digest)))
        typed = command(home, "sign", "late", "--yes", *key)
        assert isinstance(typed.exception, PolicyError) and said == str(typed.exception) and "nothing was" in said
    first, second = form(page, digest), form(page, digest, decision="refused")
    assert page.post("/orders", data=first).status_code == 303
    assert "was answered since it was shown (signed by ito" in told(page.post("/orders", data=second))
    assert word(home, digest) == ("signed", "ito", "")
    filled = form(page, other)
    path = home / "orders/state/proposed" / f"{other}.json"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"study", b"stady"))  # another order than was read
    assert "not here any more as it was shown" in told(page.post("/orders", data=filled))
    path.write_bytes(kept)
    assert word(home, other) is None


def test_a_form_of_elsewhere_without_its_token_or_sent_again_writes_nothing(
    house: House, home: Path, console: Console, page: httpx.Client
) -> None:
    digest, later = asked(house, "elsewhere"), house.proposal(whole(CONFIG), CONFIG, "later")
    elsewhere: list[dict[str, str]] = [
        {"Origin": "https://attacker.example"}, {"Origin": "null"}, {"Origin": "http://["}, {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ]  # fmt: skip
    for headers in elsewhere:
        assert page.post("/orders", data=form(page, digest), headers=headers).status_code == 403, headers
    with httpx.Client(base_url=console.address, trust_env=False, timeout=60.0) as stranger:
        assert stranger.post("/orders", data=form(page, digest)).status_code == 401
    assert page.post("/orders", data=form(page, digest), headers={"Host": "attacker.example"}).status_code == 421
    for wrong in ("", "x" * 43, str(PASSWORD)):
        assert "too old" in told(page.post("/orders", data=form(page, digest, csrf=wrong)))
    before = form(page, digest)
    OrderBook(home).file(later, house.now)
    assert "was not on the page" in told(page.post("/orders", data=before | {"order": later.order.digest}))
    for order in ("", "0" * 64, "../../policy", digest[:12]):
        assert "was not on the page" in told(page.post("/orders", data=form(page, digest, order=order)))
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert page.request(method, "/orders", params=form(page, digest)).status_code in (200, 405)
    assert word(home, digest) is None and word(home, later.order.digest) is None
    once = form(page, digest)
    assert page.post("/orders", data=once).status_code == 303
    assert "answered already" in told(page.post("/orders", data=once))
    shown = page.get("/orders").headers
    assert shown["x-frame-options"] == "DENY" and "frame-ancestors 'none'" in shown["content-security-policy"]
    assert "set-cookie" not in shown


def test_no_officer_but_one_of_the_policy_with_their_own_key_signs(
    house: House, home: Path, page: httpx.Client
) -> None:
    digest = asked(house, "strange")
    for name in ("", "nobody", "../ito", str(house.folder / "ito.pem"), "ito.pem", "ITO", "\u202eito", "x" * 3000):
        answer = page.post("/orders", data=form(page, digest, officer=name))
        assert answer.status_code == 409 and "no officer" in told(answer), name
    for changes, why in (
        ({"decision": "withdrawn"}, "neither signed nor refused"), ({"decision": ""}, "neither signed nor refused"),
        ({"reason": "but why"}, "a reason is for a refusal"), ({"decision": "refused", "reason": "x" * 501}, "reason"),
    ):  # fmt: skip
        assert why in told(page.post("/orders", data=form(page, digest, **changes)))
    let_sign(home, {"mori": house.folder / "ito.pem"})  # the key of somebody else
    try:
        answer = page.post("/orders", data=form(page, digest, officer="mori"))
        assert "this key is that of no officer" in told(answer)
    finally:
        let_sign(home, {name: house.folder / f"{name}.pem" for name in ("ito", "mori", "eve")})
    assert word(home, digest) is None


def test_a_passphrase_is_guessed_a_few_times_and_then_no_more_even_rightly(
    house: House, home: Path, page: httpx.Client
) -> None:
    digest = asked(house, "guessed")
    forms = [form(page, digest, officer="eve", passphrase=f"guess {number}") for number in range(2 * TRIES)]
    with ThreadPoolExecutor(len(forms)) as pool:
        answers = list(pool.map(lambda filled: page.post("/orders", data=filled), forms))
    assert sorted(answer.status_code for answer in answers) == [409] * TRIES + [429] * TRIES
    assert any("no readable key, or another passphrase" in told(answer) for answer in answers)
    right = page.post("/orders", data=form(page, digest, officer="eve"))
    assert right.status_code == 429 and "too many wrong passphrases for eve" in told(right)
    assert word(home, digest) is None
    assert page.post("/orders", data=form(page, digest, officer="mori")).status_code == 303  # whom nobody guessed at


def test_of_many_words_at_once_one_is_written(house: House, home: Path, page: httpx.Client) -> None:
    digest = asked(house, "at-once")
    decisions = ("signed", "refused") * 3
    forms = [form(page, digest, decision=decision) for decision in decisions]
    with ThreadPoolExecutor(2 * len(forms)) as pool:  # each of them twice
        answers = list(pool.map(lambda filled: page.post("/orders", data=filled), forms * 2))
    assert sorted(answer.status_code for answer in answers) == [303] + [409] * 11
    assert len(log_of(home, digest)) == 1


def test_a_body_beyond_its_size_or_that_is_no_form_is_not_read(house: House, home: Path, page: httpx.Client) -> None:
    digest = asked(house, "large")

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 4096

    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    assert page.post("/orders", data=form(page, digest, reason="x" * FORM_BYTES)).status_code == 403
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # hung up on while sending
        assert page.post("/orders", content=endless(), headers=urlencoded).status_code == 403
    for odd in (b"&".join(b"a=1" for _ in range(99)), b"\xff\xfe=%ff", b"{}", b"order=" + digest.encode()):
        assert page.post("/orders", content=odd, headers=urlencoded).status_code in (403, 409)
    assert word(home, digest) is None


def test_the_page_of_another_home_takes_no_form_of_this_one(house: House, page: httpx.Client, tmp_path: Path) -> None:
    """Not even with its password, for the same order and the same officer."""
    digest = asked(house, "shared")
    elsewhere = make_signing_house(tmp_path)
    OrderBook(tmp_path / "h1").make().file(OrderBook(house.folder / "h1").named("shared"), elsewhere.now)
    with served(tmp_path / "h1") as console, browser(tmp_path / "h1", console.address) as other:
        filled = form(page, digest)
        assert "too old" in told(other.post("/orders", data=filled))
        password = (tmp_path / "h1" / PASSWORD).read_text()
        assert page.post("/orders", data=form(page, digest), auth=(USER, password)).status_code == 401
    assert word(tmp_path / "h1", digest) is None and word(house.folder / "h1", digest) is None


def test_where_the_policy_does_not_let_the_page_sign_or_the_key_is_elsewhere_it_says_what_to_type(
    house: House, home: Path, page: httpx.Client, tmp_path: Path
) -> None:
    digest, keys = asked(house, "off"), load_policy(home).orders.console_keys
    filled = form(page, digest)
    bare, open_to_all = tmp_path / "bare.pem", tmp_path / "open.pem"
    create_officer(bare)
    create_officer(open_to_all, b"x")
    open_to_all.chmod(0o644)
    try:
        for allowed, why in (
            ({}, "does not let this page use their key"), ({"zoe": bare}, "does not let this page use their key"),
            ({"ito": tmp_path / "stick/ito.pem"}, "their key is not here"), ({"ito": open_to_all}, "mode 0644"),
            ({"ito": bare}, "has no passphrase"),
        ):  # fmt: skip
            let_sign(home, allowed)
            shown = page.get("/orders").text
            assert "<form" not in shown and 'name="csrf"' not in shown and why in shown
            assert f"sovfed client orders sign {digest[:12]} --key KEY --home {home}" in shown
        assert "no officer" in told(page.post("/orders", data=filled))  # a form from before it was turned off
    finally:
        let_sign(home, keys)
    assert word(home, digest) is None


def test_without_a_setting_no_institution_s_page_signs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    create(home, ClientConfig(home=str(home)), Policy())
    assert "  sign_in_console: []\n" in (home / POLICY).read_text()
    for entry in ("ito", "ito=", "=/key", "ito=key.pem", "ito=~/key.pem"):
        with pytest.raises(ValueError, match="sign_in_console"):
            OrderRules(sign_in_console=(entry,))
    assert OrderRules(sign_in_console=("ito=/key",)).console_keys == {}  # of no officer


def test_an_order_that_ends_while_it_is_read_is_not_signed(tmp_path: Path) -> None:
    house = make_signing_house(tmp_path)
    digest = asked(house, "short", expires=int(house.now) + 60)
    now = [house.now]
    signing = Signing(tmp_path / "h1", lambda: now[0])
    desk = signing.desk()
    assert [each.run for each in desk.waiting] == ["short"]
    filled = {"csrf": desk.token, "order": digest, "decision": "signed", "officer": "ito", "passphrase": WORDS}
    now[0] += 61
    with pytest.raises(OrderError, match="ended on"):
        signing.answer(filled)
    assert signing.desk().waiting == () and word(tmp_path / "h1", digest) is None


def test_a_key_without_a_passphrase_or_one_that_is_guessed_at_signs_for_nobody_who_has_the_page(tmp_path: Path) -> None:
    house, now = make_signing_house(tmp_path), [time.time()]
    home, digest = tmp_path / "h1", asked(house, "study")
    signing = Signing(home, lambda: now[0])

    def refusal(passphrase: str, officer: str) -> IdentityError:
        filled = {"csrf": signing.desk().token, "order": digest, "decision": "signed", "officer": officer}
        with pytest.raises(IdentityError) as caught:
            signing.answer(filled | {"passphrase": passphrase})
        return caught.value

    for number in range(TRIES):
        assert "another passphrase" in str(refusal(f"guess {number}", "ito"))
    assert isinstance(refusal(WORDS, "ito"), TooManyTriesError)
    bare = tmp_path / "bare.pem"
    allow_officer(home, "mori", create_officer(bare))
    let_sign(home, {"mori": bare, "ito": tmp_path / "ito.pem"})
    assert signing.desk().signers == ["ito"]
    assert "no officer 'mori' can sign" in str(refusal("", "mori"))
    assert word(home, digest) is None


def test_a_passphrase_is_in_no_answer_log_or_file_and_the_process_is_not_looked_into(
    house: House, home: Path, console: Console, page: httpx.Client
) -> None:
    digest = asked(house, "secret")
    wrong = "a passphrase of another key"
    shown = page.post("/orders", data=form(page, digest, passphrase=wrong, decision="refused", reason="kept <b>"))
    assert 'value="kept &lt;b&gt;"' in shown.text and wrong not in shown.text  # the rest need not be typed anew
    assert page.post("/orders", data=form(page, digest)).status_code == 303
    time.sleep(0.2)
    secrets = [word.encode() for word in (WORDS, wrong)]
    for path in house.folder.rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in secrets), path
    log = (house.folder / "console.log").read_text()
    assert "a wrong passphrase for the key of officer ito" in log and "Traceback" not in log
    if sys.platform == "linux":
        proc = Path(f"/proc/{console.pid}")
        assert re.search(r"Max core file size +0 +0 ", (proc / "limits").read_text())
        assert re.search(r"CapEff:\t0+\n", (proc / "status").read_text())  # by the call that forbids to trace it


def test_every_field_has_its_label_and_nothing_is_chosen_beforehand(house: House, page: httpx.Client) -> None:
    asked(house, "labelled-1"), asked(house, "labelled-2")
    text = page.get("/orders").text
    ids = re.findall(r'<(?:input|select) id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) >= 6 and all(f'<label for="{each}">' in text for each in ids)
    assert text.count("<fieldset>") == text.count("<legend>") == text.count("<form") >= 2
    assert "checked" not in text and 'type="password" maxlength="1024" autocomplete="off"' in text
    assert not re.search(r"<script(?! src=)|<style|<[^>]*\s(style|on\w+)=", text)


def test_a_signed_order_is_refused_or_withdrawn_from_on_the_page_as_by_the_command(
    house: House, home: Path, page: httpx.Client
) -> None:
    key, roots = str(house.folder / "ito.pem"), load_roots(home / "identity" / "root.pem")
    digests = {name: asked(house, name) for name in ("back-page", "back-typed", "gone-page", "gone-typed")}
    for digest in digests.values():
        assert page.post("/orders", data=form(page, digest)).status_code == 303
    assert page.get(f"/orders/{digests['gone-page']}.withdrawal").status_code == 404  # it stands yet
    refused = form(page, digests["back-page"], decision="refused", reason="not any more")
    assert page.post("/orders", data=refused).status_code == 303
    assert command(home, "refuse", "back-typed", "--reason", "not any more", "--key", key).exit_code == 0
    assert word(home, digests["back-page"]) == word(home, digests["back-typed"]) == ("refused", "ito", "not any more")
    withdrawn = form(page, digests["gone-page"], decision="withdrawn", reason="a patient asked")
    assert page.post("/orders", data=withdrawn).status_code == 303
    out = house.folder / "typed.withdrawal"
    words = ("withdraw", "gone-typed", "--reason", "a patient asked", "--out", str(out), "--key", key)
    assert command(home, *words).exit_code == 0
    assert word(home, digests["gone-page"]) == word(home, digests["gone-typed"])
    assert log_of(home, digests["gone-page"])[0]["event"] == log_of(home, digests["gone-typed"])[0]["event"]
    assert OrderBook(home).withdrawn_tasks() == {house.proposal(whole(CONFIG), CONFIG).order.task_digest}
    statement = page.get(f"/orders/{digests['gone-page']}.withdrawal")
    assert statement.headers["content-disposition"] == 'attachment; filename="gone-page.withdrawal"'
    said = read_answer(statement.content, "statement")
    said.check_origin(roots)  # what the agency records it by
    assert (said.order, said.decision) == (digests["gone-page"], "withdrawn")
    assert f'href="/orders/{digests["gone-page"]}.withdrawal"' in page.get("/orders").text
    again = form_of(page, digests["back-page"], "withdrawn")
    assert page.post("/orders", data=again).status_code == 303  # also from one that was refused


def test_nothing_is_taken_back_without_an_officers_passphrase_or_where_nothing_was_said(
    house: House, home: Path, console: Console, page: httpx.Client
) -> None:
    digest, waiting = asked(house, "kept"), asked(house, "not-yet")
    assert page.post("/orders", data=form(page, digest)).status_code == 303
    assert "neither signed nor refused" in told(page.post("/orders", data=form(page, waiting, decision="withdrawn")))
    assert [each.choices for each in Signing(home).desk().waiting if each.digest == waiting] == [("signed", "refused")]
    for changes, why in (
        ({"passphrase": "guess"}, "another passphrase"), ({"passphrase": ""}, "another passphrase"),
        ({"officer": ""}, "no officer"), ({"officer": "zoe"}, "no officer"),
        ({"decision": "signed"}, "neither refused"), ({"decision": "standing"}, "neither refused"),
        ({"csrf": ""}, "too old"),
    ):  # fmt: skip
        filled = form_of(page, digest, "withdrawn") | changes
        assert why in told(page.post("/orders", data=filled)), changes
    once = form_of(page, digest, "withdrawn")
    elsewhere = {"Origin": "https://attacker.example"}
    assert page.post("/orders", data=once, headers=elsewhere).status_code == 403
    with httpx.Client(base_url=console.address, trust_env=False, timeout=60.0) as stranger:
        assert stranger.post("/orders", data=once).status_code == 401
        assert stranger.get(f"/orders/{digest}.withdrawal").status_code == 401
    for path in (f"{digest[:12]}", "..%2f..%2fpolicy", "0" * 64, digest.upper(), f"{digest}%00"):
        assert page.get(f"/orders/{path}.withdrawal").status_code == 404, path
    assert word(home, digest) == ("signed", "ito", "") and word(home, waiting) is None
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda filled: page.post("/orders", data=filled), [once] * 4))
    assert sorted(answer.status_code for answer in answers) == [303, 409, 409, 409]
    assert [entry["event"] for entry in log_of(home, digest)] == ["withdrawn", "signed"]
    assert f'value="{digest}"' not in page.get("/orders").text  # nothing more is said to it


def form_of(page: httpx.Client, digest: str, decision: str) -> dict[str, str]:
    return form(page, digest, decision=decision, reason="")
