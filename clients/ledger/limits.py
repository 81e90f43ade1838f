"""A limit on ε, what of it is used, and what a refusal says about it: the cost, and what would fit."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sovfed.clients.ledger.entries import merged
from sovfed.federation.privacy.accounting import Accountant, gathered
from sovfed.federation.privacy.events import Event

_MOST_NOISE: Final = 1e6
_LOOK_S: Final = 5.0  # of processor time for what would fit: a refusal must not keep the trainer from its work


@dataclass(frozen=True)
class Limit:
    """A limit on ε, by its name in policy.yaml, and what is spent or reserved of it."""

    name: str
    span: str
    epsilon: float
    used: Accountant

    events: tuple[Event, ...]
    each: float = 0.0  # the least that a release counts: accounting ends at a million of them, however cheap they are

    def after(self, event: Event, delta: float) -> float:
        """ε with `event` on top, as it will be counted from then on."""
        with_it = merged([*self.events, event])
        together = gathered(with_it)
        epsilon = (self.used.plus(event) if together == with_it else Accountant().plus(*together)).epsilon(delta)
        return max(epsilon, self.each * sum(merged_event.count for merged_event in with_it))


def too_much(
    limit: Limit, limits: list[Limit], event: Event, delta: float, clock: Callable[[], float] = time.thread_time
) -> str:
    """What `event` would cost under `limit`, which has no room for it, and what would fit."""
    before, after = limit.used.epsilon(delta), limit.after(event, delta)
    other_limits = ", ".join(
        f"{other_limit.name} {other_limit.epsilon:.2f}" for other_limit in limits if other_limit is not limit
    )
    return (
        f"this run would take the population from ε={before:.2f} to {after:.2f} at δ={delta:g}{limit.span}, over the "
        f"limit {limit.name} {limit.epsilon:.2f} of policy.yaml ({other_limits}); "
        f"{_what_fits(limits, event, delta, clock)}"
    )


def _what_fits(limits: list[Limit], event: Event, delta: float, clock: Callable[[], float]) -> str:
    """How many steps of `event`, or which noise multiplier for all of them, every limit has room for.

    As far as it is found out within `_LOOK_S`, but for the step that is being computed then.
    """
    end = clock() + _LOOK_S

    def fits(**change: Any) -> bool:
        changed = dataclasses.replace(event, **change)
        return all(limit.after(changed, delta) <= limit.epsilon for limit in limits)

    few, many = 0, event.count  # 0 fit, all do not
    while many - few > 1 and clock() < end:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(count=middle) else (few, middle)
    if many - few > 1:
        return f"at least {few} and fewer than {many} more steps fit"
    steps = f"at most {few} more steps fit" if few else "nothing more fits"
    if clock() >= end or not fits(noise_multiplier=_MOST_NOISE):
        return steps
    low, high = event.noise_multiplier, _MOST_NOISE
    while high / low > 1.001 and clock() < end:
        middle_z = math.sqrt(low * high)
        low, high = (low, middle_z) if fits(noise_multiplier=middle_z) else (middle_z, high)
    return f"at most {few} more steps fit, or all of them with a noise multiplier of at least {high * 1.0005:.4g}"
