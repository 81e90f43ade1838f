"""An officer is told before signing what the institution's own policy will refuse for earlier sums."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.clients.cli.test_orders import client, house, shown
from tests.clients.orders.house import House, planned, whole

from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.differing import differing
from sovfed.federation.errors import PolicyError
from sovfed.federation.files import private_directory
from sovfed.federation.orders.order import RunOrder
from sovfed.federation.secagg.files import FOLDER, JOURNAL
from sovfed.federation.secagg.history import Joined, Pinned, Revealed, Spent, name_tag
from sovfed.federation.secagg.journal import Journal
from sovfed.federation.secagg.opened import check_differencing, day_of
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.terms import RECORD, Terms

__all__ = ["house"]
FIVE = ("h1", "h2", "h3", "h4", "h5")
TERMS = Terms(min_cohort=3, colluders=0)
REFUSES = "signed or not, this institution's own policy will refuse it: "
NEAR = "the institutions of this sum and of run earlier, sum 1 (train) differ by h5, fewer than 3"


def summed(home: Path, names: tuple[str, ...], *, opened: bool = True) -> Path:
    """The journal of `home` after one training sum over `names`, which was masked at least."""
    path = private_directory(home / FOLDER) / JOURNAL
    Journal.create(path)
    journal, run, zeros = Journal(path), b"r" * 16, bytes(32)
    revealed = Revealed(run, 1, zeros, Purpose.TRAIN, zeros, zeros, 3, tuple(map(name_tag, names)))
    journal.commit([
        Joined(run, 1, zeros, "earlier", names), Spent(run, zeros, 1, 0, Purpose.TRAIN, *[zeros] * 4),
        Pinned(zeros, 8.0, 10_000), *([revealed] if opened else []),
    ])  # fmt: skip
    journal.close()
    return path


def order(house: House, *words: str) -> RunOrder:
    config = planned(*words)
    return house.proposal(whole(config), config).order


def test_an_order_over_almost_the_institutions_of_an_earlier_sum_is_told_of_by_the_trainers_own_rule(
    house: House,
) -> None:
    home = house.folder / "h1"
    path = summed(home, FIVE)
    (line,) = differing(home, order(house, "order.cohort=[h1,h2,h3,h4]"), TERMS, house.now)
    assert line.startswith(REFUSES) and NEAR in line
    journal, names = Journal(path), frozenset(map(name_tag, FIVE[:4]))  # as the trainer has it when the sum begins
    with pytest.raises(PolicyError, match=r"differ by h5, fewer than 3") as refused:
        check_differencing(journal.history, TERMS, names, 3, "a sum over its cohort", day_of(house.now))
    journal.close()
    assert line == f"{REFUSES}{refused.value}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("order.cohort=[h1,h2,h3,h4,h5]",), ""),
        (("order.cohort=[h1,h2,h3,h4,h5]", "secagg.clip=4"), "our records were trained on with clip 8"),
        (("order.cohort=[h1,h6,h7]",), "would single out 1 institutions"),
        ((), "it names no cohort: this institution's own policy answers it only over the very institutions of run "
             "earlier, sum 1 (train), h1, h2, h3, h4, h5, or over ones that differ by 3 or more"),
    ],
)  # fmt: skip
def test_each_of_the_trainers_rules_is_asked(house: House, words: tuple[str, ...], said: str) -> None:
    home = house.folder / "h1"
    summed(home, FIVE)
    lines = [*differing(home, order(house, *words), TERMS, house.now)]
    assert said in lines[0] if said else lines == [], lines


def test_a_roster_that_shares_too_few_holders_is_told_of_though_no_sum_was_opened(house: House) -> None:
    summed(house.folder / "h1", FIVE, opened=False)
    (line,) = differing(house.folder / "h1", order(house, "order.cohort=[h1,h6,h7]"), TERMS, house.now)
    assert line.startswith(REFUSES) and "shares too few holders" in line


def test_nothing_is_said_where_nothing_is_refused(house: House) -> None:
    home, near = house.folder / "h1", order(house, "order.cohort=[h1,h2,h3,h4]")
    assert [*differing(home, near, TERMS, house.now)] == []  # nothing was ever summed here
    path = summed(home, FIVE)
    recording = Terms(min_cohort=3, colluders=0, differencing=RECORD)
    assert [*differing(home, near, recording, house.now)] == []
    path.write_bytes(b"not a journal")
    (line,) = differing(home, near, TERMS, house.now)
    assert "cannot be told" in line


def test_show_and_sign_tell_an_officer_before_the_word(house: House) -> None:
    home = house.folder / "h1"
    assert shown(house) == "awaiting"
    summed(home, FIVE)
    key = str(house.folder / "ito.pem")
    client(house, "orders", "officer", "ito", "--key", key, "--no-passphrase")
    assert load_policy(home).secure_aggregation.differencing == "refuse"
    for words, answer in ((("show", "study"), ""), (("sign", "study", "--key", key), "y\n")):
        told = client(house, "orders", *words, text=answer).output
        assert "it names no cohort: this institution's own policy answers it only over" in told
