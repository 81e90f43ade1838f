"""Who was not in a run's sums, and what whoever runs the agency does about it."""

from __future__ import annotations

from sovfed.server.runs.attendance import absences, attendance


def test_who_refused_every_round_is_named_with_what_to_do() -> None:
    rounds = [{"participants": ["a", "b"], "late": [], "left_out": [], "refused": {"c": "bound"}}] * 3
    (told,) = absences(attendance(rounds), 3)
    assert told.startswith("c: in 0 of 3 rounds; refused 3 (bound); ask their operators")
    assert told.endswith("`sovfed run logs` at the agency names the setting too")


def test_who_came_late_and_who_refused_otherwise_are_told_so_and_no_more() -> None:
    rounds = [
        {"participants": ["a"], "late": ["b"], "left_out": [], "refused": {"c": "order"}},
        {"participants": ["a", "b", "c"], "late": [], "left_out": [], "refused": {}},
    ]
    assert absences(attendance(rounds), 2) == [
        "b: in 1 of 2 rounds; late in 1",
        "c: in 1 of 2 rounds; refused 1 (order); ask their data officers, who see it in `sovfed client orders list`",
    ]
