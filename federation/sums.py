"""The form of what institutions add up beside the model: a number a kind, which both sides agree on before round 1.

Two versions of sovfed whose sums mean something else, say by other bins of a histogram, add up to figures that nobody
has: neither the task's digest nor a vector's length tells. So an order says the form of the sums that its run asks for,
as the agency's version has it, and an institution whose own is another refuses. Who changes what a value of such a
vector counts raises its number here; `tests/federation/test_sums.py` holds the vectors of fixed records to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PROFILE: Final = "profile"  # of the columns: `Transform.profile`
METRICS: Final = "metrics"  # of held-out records: `Metric.sums` of sovfed's own; a task's own are in its digest
SCORES: Final = "scores"  # of single records, for private sums: `metrics.bounded`
TABLE: Final = "table"  # of statistics: `statistics.question`
FORM: Final = "order.form"  # what an institution names as it refuses
FIRST: Final = 1  # what is said of by nobody: so orders of before it are spelled, and read, as they were
FORMS: Final[Mapping[str, int]] = {PROFILE: 1, METRICS: 2, SCORES: 1, TABLE: 1}  # metrics 2: bins by arsinh(logit)


def sums_of(kind: str, *, statistics: bool, candidates: bool) -> tuple[str, ...]:
    """The kinds of sums that a run asks for whose last request is of `kind`: none of a private run that trains."""
    if kind == "private":
        return (TABLE,) * statistics or (SCORES,) * candidates
    return (METRICS,) if kind == "evaluate" else (METRICS, PROFILE)


def form_of(kinds: tuple[str, ...], forms: Mapping[str, int] = FORMS) -> str:
    """Their form, in words for an order; "" where all are as they were first."""
    return ", ".join(f"{kind} {forms[kind]}" for kind in kinds if forms[kind] != FIRST)
