"""One person moves the sum by one clip at most, at every edge in the quick form; what is broken on purpose is found."""

from __future__ import annotations

from sovfed.simulations.audit.report import run_sensitivity
from sovfed.simulations.audit.sensitivity import ALLOWED, ENGINES, KINDS, Movement, audit_broken


def test_no_engine_is_moved_by_more_than_the_clip_and_the_controls_are() -> None:
    findings = run_sensitivity(quick=True)
    assert all(fine for _, _, fine in findings.cases)
    assert 0.999 < findings.ratios["worst_over_clip"] <= ALLOWED  # some gradients are cut: the bound is reached
    rows = [row for row, _, _ in findings.cases if isinstance(row, Movement)]
    assert {row.engine for row in rows} >= set(ENGINES)
    assert {row.kind for row in rows} == set(KINDS)
    assert {row.edge for row in rows if row.refused} == {"table that names no person", "data.limit"}


def test_what_is_broken_is_broken_by_far() -> None:
    assert [control.worst_over_clip > 5 for control in audit_broken()] == [True, True]
