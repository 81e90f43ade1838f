"""The audit of differencing in a quick form: nothing opens twice, and what is broken on purpose is found."""

from __future__ import annotations

from sovfed.federation.secagg.terms import RECORD
from sovfed.simulations.audit.differencing import audit_near, audit_releases, bearable, recorded


def test_a_private_release_is_in_one_opened_sum_and_paid_for() -> None:
    """Ten institutions, one colluding holder: where 2t > n + c holds and 3t > 2n + c does not."""
    audits = audit_releases(10, 1, mechanisms=["silo"])
    assert {audit.way.split(",")[0] for audit in audits} == {
        "two cohorts", "three sums", "attempt after a reveal", "two epochs",
    }  # fmt: skip
    for audit in audits:
        opened = 0 if audit.way.startswith("attempt") else 1  # holders that answered differently open nothing
        assert (audit.opened, audit.sums_per_release, audit.uncharged) == (opened, opened, 0), audit.way


def test_releases_in_two_sums_and_unpaid_ones_are_found() -> None:
    for audit in audit_releases(10, 1, broken=True, mechanisms=["distributed"]):
        assert audit.uncharged > 0, audit.way
        if not audit.way.startswith("attempt"):
            assert audit.sums_per_release == 2, audit.way


def test_sums_over_almost_the_same_institutions_do_not_open_by_default() -> None:
    for audit in audit_near(6, 1):
        assert audit.near_answered == 0, audit.way


def test_sums_that_could_be_differenced_are_found_under_record() -> None:
    assert all(audit.near_answered > 0 for audit in audit_near(5, 0, differencing=RECORD))
    assert recorded(5) == 1


def test_the_bearable_colluders_leave_three_others() -> None:
    assert [max(bearable(count)) for count in (3, 4, 5, 10, 16)] == [0, 1, 2, 3, 5]
