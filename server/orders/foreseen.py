"""Why institutions will not answer a run, as far as the agency can tell before anybody is asked for a signature.

Each institution decides by its own policy, of which the agency knows nothing: here are the defaults of all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.config import ANNUAL_EPSILON, SHARE_PER_RUN, USUAL_DELTA
from sovfed.federation.privacy.accounting import epsilon
from sovfed.server.orders.apart import refusals_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.orders.order import RunOrder
    from sovfed.server.rounds.privacy import PrivacyPlan

MOST: Final = SHARE_PER_RUN * ANNUAL_EPSILON
NEAR: Final = 1e-3  # as two machines compute ε


def foreseen(home: Path, order: RunOrder) -> list[str]:
    """Why institutions will refuse the run of `order`, in plain words; [] if nothing speaks against it."""
    private = order.kind == "private"
    return [*refusals_of(home, order), *(_beyond(order.epsilon, order.delta) if private else ())]


def beyond_usual(plan: PrivacyPlan) -> list[str]:
    """What of the cost of `plan` is beyond the budget that a policy begins with, in plain words."""
    delta = plan.config.privacy.delta
    return list(_beyond(epsilon([plan.event], delta), delta))


def _beyond(epsilon: float, delta: float) -> Iterator[str]:
    """What of a private run's cost is beyond the budget that a policy begins with."""
    if delta != USUAL_DELTA:
        yield (
            f"institutions will refuse this, unless their policies say otherwise: its δ is {delta:g}, and a policy "
            f"begins with privacy.delta {USUAL_DELTA:g}: privacy.delta={USUAL_DELTA:g}, or ask each of them first"
        )
    if epsilon > MOST * (1 + NEAR):
        yield (
            f"institutions will refuse this, unless their policies say otherwise: it costs a person ε {epsilon:.3g}, "
            f"and one run may take {MOST:g} (privacy.max_share_per_run {SHARE_PER_RUN:g} of annual_epsilon "
            f"{ANNUAL_EPSILON:g}): privacy.epsilon={MOST:g} or less, or ask each of them first"
        )
