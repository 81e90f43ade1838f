"""An officer's commands: a key of their own, an order read, signed or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.clients.orders.house import CONFIG, House, whole

from sovfed.clients.cli.doctor import officer_findings
from sovfed.clients.cli.institution import cli
from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import POLICY, Policy, load_policy
from sovfed.clients.orders.answering import Shown, answer_order
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.naming import allow_officer, nobody
from sovfed.clients.orders.rules import OrderRules, Standing
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import IdentityError, OrderError, PolicyError, SovfedError
from sovfed.federation.files import write_atomic
from sovfed.federation.host.status import Status, read_status, supervising, write_status
from sovfed.federation.orders.approving import approve


@pytest.fixture
def house(tmp_path: Path) -> House:
    """h1 has a home and a policy that waits for officers, and was shown an order."""
    house = House(tmp_path)
    home = tmp_path / "h1"
    create(home, ClientConfig(home=str(home)), Policy(allowed_tasks=("breast_cancer",), orders=OrderRules("required")))
    house.home("h1")
    names = {"name": "h1", "fleet_address": "127.0.0.1:1", "lane_address": "127.0.0.1:2"}
    write_atomic(home / "identity" / "institution.json", json.dumps(names).encode())
    return house


def shown(house: House) -> str:
    """What the trainer says of the order now, under the policy as it is by now."""
    request = whole(CONFIG)
    gate = house.gate("h1", load_policy(house.folder / "h1").orders)
    return gate.consider(house.show(request, house.proposal(request, CONFIG)))[0]


def client(house: House, *words: str, text: str = "", code: int = 0) -> Result:
    done = CliRunner().invoke(cli, [*words, "--home", str(house.folder / "h1")], input=text)
    assert (done.exit_code == 0) == (code == 0), done.output
    return done


def test_an_officer_makes_a_key_reads_an_order_and_signs_it(house: House) -> None:
    key = str(house.folder / "card" / "ito.pem")
    assert "no officer yet, and every run waits" in client(house, "orders", "list").output
    assert shown(house) == "awaiting"
    client(house, "orders", "officer", "ito", "--key", key, text="secret words\nsecret words\n")
    assert "ENCRYPTED" in Path(key).read_text()
    assert list(load_policy(house.folder / "h1").orders.keys) == ["ito"]
    assert "waits for an officer" in client(house, "orders", "list").output
    assert "would leave: up to 13 masked" in client(house, "orders", "show", "study").output
    assert "up to 252 answers in all" in client(house, "orders", "show", "study").output
    signed = client(house, "orders", "sign", "study", "--key", key, text="y\nsecret words\n")
    assert "signed by ito" in signed.output
    assert shown(house) == "signed"
    (row,) = json.loads(client(house, "orders", "list", "--json").output)
    assert row["word"] == "signed"
    client(house, "orders", "refuse", "study", "--reason", "not for this", "--key", key, text="secret words\n")
    assert shown(house) == "refused"
    assert "not for this" in client(house, "orders", "show", row["order"][:8]).output


def test_the_word_of_an_officer_whom_the_running_node_does_not_know_is_refused_with_the_way_to_make_it_hold(
    house: House,
) -> None:
    """`refuse` said "refused by ito", `list` agreed, and the agency waited on for a day."""
    home, key = house.folder / "h1", str(house.folder / "ito.pem")
    restart = f"`sovfed client down --home {home}`, `sovfed client up --detach --home {home}`"
    assert shown(house) == "awaiting"
    with supervising(home):
        write_status(home, Status(1, 0.0, ()))
        made = f"every run waits for one: `sovfed client orders officer NAME --home {home}`, {restart}"
        assert (
            made in client(house, "orders", "list").output and made in client(house, "orders", "show", "study").output
        )
        told = client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase").output
        assert f"the node that runs does not know it yet; next: {restart}" in told
        for words in (("sign", "study", "--yes"), ("refuse", "study")):
            done = client(house, "orders", *words, "--key", key, code=3)
            assert isinstance(done.exception, PolicyError) and restart in str(done.exception)
        waits = client(house, "orders", "list").output
        assert "waits for an officer" in waits and "officer NAME" not in waits
        assert shown(house) == "awaiting"  # a trainer that starts anew
        client(house, "orders", "refuse", "study", "--key", key)
    assert shown(house) == "refused"


def test_status_and_doctor_say_that_no_officer_is_named_or_that_one_is_not_in_force_yet(house: House) -> None:
    home, key = house.folder / "h1", str(house.folder / "ito.pem")
    nobody_yet, changed = "no officer yet, and every run waits for one", "not in force yet: ito"
    assert shown(house) == "awaiting"

    def told() -> tuple[str, list[str]]:
        status = client(house, "status", code=4).output if read_status(home) is None else client(house, "status").output
        return status, [finding.found for finding in officer_findings(home, load_policy(home).orders)]

    status, found = told()
    assert nobody_yet in status and nobody_yet in found[0]
    with supervising(home):
        write_status(home, Status(1, 0.0, ()))
        client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase")
        status, found = told()
        assert nobody_yet not in status and changed in status and "`sovfed client down --home" in status
        assert changed in found[0] and json.loads(client(house, "status", "--json").output)["officers"] == found
        assert shown(house) == "awaiting"  # a trainer that starts anew
        assert found != (found := told()[1]) and found == ["ito"]
        policy = (home / POLICY).read_text()
        (home / POLICY).write_text(policy.replace("ito=", "eve="))
        assert "eve; ito, who is no longer in it and still holds" in told()[0]


def test_without_a_node_that_runs_an_officer_signs_for_the_next_one(house: House) -> None:
    assert shown(house) == "awaiting"
    key = str(house.folder / "ito.pem")
    told = client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase").output
    assert "it holds from the next `sovfed client up`" in told
    client(house, "orders", "sign", "study", "--yes", "--key", key)
    assert shown(house) == "signed"


def test_a_home_without_an_officer_is_told_that_statistics_wait_for_one(tmp_path: Path) -> None:
    for statistics, said in ((False, "no officer yet, and statistics wait for one"), (True, "")):
        home = tmp_path / str(statistics)
        rules = OrderRules(standing=Standing(statistics=statistics))
        create(home, ClientConfig(home=str(home)), Policy(allowed_tasks=("breast_cancer",), orders=rules))
        assert nobody(home, rules).startswith(said) and bool(nobody(home, rules)) == bool(said)


def test_no_other_key_and_no_wrong_passphrase_signs(house: House) -> None:
    assert shown(house) == "awaiting"
    key, other = str(house.folder / "ito.pem"), str(house.folder / "other.pem")
    client(house, "orders", "officer", "ito", "--key", key, text="secret words\nsecret words\n")
    policy = (house.folder / "h1" / POLICY).read_text()
    client(house, "orders", "officer", "eve", "--key", other, "--no-passphrase")
    (house.folder / "h1" / POLICY).write_text(policy)  # eve is no officer any more
    for words, text in (
        (("--key", other), ""), (("--key", key), "wrong\n"), (("--key", key, "--officer", "eve"), "secret words\n"),
        (("--key", str(house.folder / "none.pem")), ""), (("--key", str(house.folder / "h1" / POLICY)), ""),
    ):  # fmt: skip
        done = client(house, "orders", "sign", "study", "--yes", *words, text=text, code=3)
        assert isinstance(done.exception, IdentityError), done.output
    Path(key).chmod(0o644)  # others could read it
    assert isinstance(
        client(house, "orders", "sign", "study", "--yes", "--key", key, text="secret words\n", code=3).exception,
        SovfedError,
    )
    assert shown(house) == "awaiting"


def test_where_no_officer_is_named_nobody_is_asked_whether_to_sign(house: House) -> None:
    """Seen: the question was put, and only its yes was answered by the lack of a key."""
    assert shown(house) == "awaiting"
    done = client(house, "orders", "sign", "study", "--key", str(house.folder / "ito.pem"), text="y\n", code=3)
    assert "Have you read it" not in done.output
    assert "nobody can sign here: no officer yet" in str(done.exception) and "orders officer NAME" in str(
        done.exception
    )


def test_an_order_that_is_not_confirmed_or_not_there_is_not_signed(house: House) -> None:
    key = str(house.folder / "ito.pem")
    client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase")
    assert shown(house) == "awaiting"
    client(house, "orders", "sign", "study", "--key", key, text="n\n", code=3)
    client(house, "orders", "sign", "another", "--yes", "--key", key, code=3)
    client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase", code=2)  # a key is there already
    client(house, "orders", "officer", "a=b", "--key", key + "2", "--no-passphrase", code=2)
    assert shown(house) == "awaiting"


def test_what_is_signed_without_anybody_is_said_in_words(house: House) -> None:
    assert "each order waits for an officer (nobody yet" in client(house, "orders", "consent").output
    path = house.folder / "h1" / POLICY
    path.write_text(path.read_text().replace('mode: "required"', 'mode: "standing"'))
    told = client(house, "orders", "consent").output
    assert "scoring of models that others have trained; a table of statistics waits for an officer" in told
    assert "asked by     anybody" in told and "tasks        breast_cancer" in told
    assert shown(house) == "standing"
    assert "standing consent, signed by this node" in client(house, "orders", "show", "study").output


def test_an_answer_too_long_to_be_read_again_is_not_written(house: House) -> None:
    """A reason of 501 letters was written, did not hold, and `list` could not be used again."""
    assert shown(house) == "awaiting"
    key = str(house.folder / "ito.pem")
    client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase")
    for reason in ("x" * 501, "\udcff"):
        done = client(house, "orders", "refuse", "study", "--reason", reason, "--key", key, code=2)
        assert isinstance(done.exception, SovfedError), done.output
    client(house, "orders", "refuse", "study", "--reason", "x" * 500, "--key", key)
    assert shown(house) == "refused"


def test_a_damaged_answer_or_order_is_told_and_hides_no_other(house: House) -> None:
    assert shown(house) == "awaiting"
    state = house.folder / "h1" / "orders"
    (path,) = (state / "state" / "proposed").glob("*.json")
    answer = state / "answers" / path.name
    answer.write_text("{")
    assert "cannot be read" in client(house, "orders", "list").output
    assert "cannot be read" in client(house, "orders", "show", "study").output
    answer.unlink()
    (path.parent / f"{'0' * 64}.json").write_text("{")
    assert "waits for an officer" in client(house, "orders", "list").output


def test_an_officer_whose_name_is_refused_can_try_again(house: House) -> None:
    """The key was made before the name was looked at, and then was in the way."""
    key = str(house.folder / "ito.pem")
    done = client(house, "orders", "officer", "Dr Ito", "--key", key, "--no-passphrase", code=2)
    assert isinstance(done.exception, SovfedError) and not Path(key).exists()
    client(house, "orders", "officer", "dr-ito", "--key", key, "--no-passphrase")


def test_a_second_key_of_an_officer_and_one_within_the_home_are_told(house: House) -> None:
    """The first key was replaced without a word, and one in the home is in reach of the node's processes."""
    home = house.folder / "h1"
    one, two = str(house.folder / "ito.pem"), str(home / "ito.pem")
    first = client(house, "orders", "officer", "ito", "--key", one, "--no-passphrase").output
    before = load_policy(home).orders.keys["ito"]
    second = client(house, "orders", "officer", "ito", "--key", two, "--no-passphrase").output
    assert "in the place of" not in first and "warning" not in first
    assert f"in the place of {before}" in second and "warning: the key is in the home" in second


def test_a_key_that_is_not_there_is_told_with_the_option_that_names_one(house: House) -> None:
    shown(house)
    client(house, "orders", "officer", "ito", "--key", str(house.folder / "ito.pem"), "--no-passphrase")
    for words in (("sign", "study", "--yes"), ("refuse", "study"), ("withdraw", "study")):
        done = client(house, "orders", *words, "--key", str(house.folder / "none.pem"), code=3)
        assert isinstance(done.exception, IdentityError) and "--key FILE" in str(done.exception)


def test_an_officer_sees_who_of_the_agency_has_approved(house: House) -> None:
    request = whole(CONFIG)
    proposal = approve(house.proposal(request, CONFIG), house.person("ann"))
    house.gate("h1", load_policy(house.folder / "h1").orders).consider(house.show(request, proposal))
    assert "approved by ann of agency" in client(house, "orders", "show", "study").output


def test_a_word_that_stands_is_not_said_twice_and_one_by_a_key_that_is_gone_is_said_anew(house: House) -> None:
    assert shown(house) == "awaiting"
    old, new = str(house.folder / "old.pem"), str(house.folder / "new.pem")
    client(house, "orders", "officer", "ito", "--key", old, "--no-passphrase")
    client(house, "orders", "sign", "study", "--yes", "--key", old)
    done = client(house, "orders", "sign", "study", "--yes", "--key", old, code=3)
    assert isinstance(done.exception, OrderError) and "answered already (signed by ito" in str(done.exception)
    client(house, "orders", "officer", "ito", "--key", new, "--no-passphrase")
    assert shown(house) == "awaiting"
    assert "it holds as none" in client(house, "orders", "show", "study").output
    client(house, "orders", "sign", "study", "--yes", "--key", new)
    assert shown(house) == "signed"


def test_no_order_is_signed_that_has_ended_or_from_which_the_institution_withdrew(house: House) -> None:
    """To sign took the signed withdrawal away, and the next message of the run was answered."""
    key, out = str(house.folder / "ito.pem"), str(house.folder / "h1.withdrawal")
    client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase")
    request = whole(CONFIG)
    ended = house.proposal(request, CONFIG, "ended", proposed=int(house.now) - 100, expires=int(house.now) - 1)
    OrderBook(house.folder / "h1").make().file(ended, house.now)
    done = client(house, "orders", "sign", "ended", "--yes", "--key", key, code=3)
    assert isinstance(done.exception, OrderError) and "ended on" in str(done.exception)
    client(house, "orders", "refuse", "ended", "--key", key)
    assert shown(house) == "awaiting"
    client(house, "orders", "withdraw", "study", "--out", out, "--key", key)
    for words in (("sign", "study", "--yes"), ("refuse", "study")):
        done = client(house, "orders", *words, "--key", key, code=3)
        assert isinstance(done.exception, OrderError) and "withdrawn by ito" in str(done.exception)
    assert shown(house) == "withdrawn"


def test_an_answer_since_the_order_was_shown_is_not_overturned_unread(house: House) -> None:
    assert shown(house) == "awaiting"
    book, now = OrderBook(house.folder / "h1"), house.now
    home, (public, sign) = house.folder / "h1", house.officer("h1")
    allow_officer(home, "ito", public)
    read = Shown(book.named("study"), None)

    def say(decision: str) -> None:
        answer_order(book, read, decision, lambda: (public, sign), officer="", reason="", now=now)

    with book.answering(), pytest.raises(OrderError, match="at this moment"):
        say("refused")
    say("refused")
    with pytest.raises(OrderError, match="was answered since it was shown"):
        say("signed")
    (home / "orders/state/proposed" / f"{read.order.digest}.json").unlink()
    with pytest.raises(OrderError, match="not here any more"):
        say("signed")
    answer = book.answer(read.order.digest)
    assert answer is not None and answer.decision == "refused"
