"""Whether training had come to rest when the rounds were over, and whether it had gone on for too long."""

from __future__ import annotations

import math
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any, Final

from sovfed.server.runs.curves import losses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHARE: Final = 5  # a window is this part of all rounds
SHORTEST: Final = 3  # rounds of a window
LEAST: Final = 0.02  # of the loss, by which a window's mean is below the one before it
ERRORS: Final = 2.0  # standard errors of that difference, below which it may be chance


def still_falling(lines: Sequence[dict[str, Any]], task: Mapping[str, Any]) -> str:
    """What to say of rounds at whose end the loss still fell, and what to try; "" if it did not, or none is told.

    Of the held-out loss where it was measured in enough rounds, else of that in training. `task` are the settings of
    that group: the last rounds of the schedule wsd, in which any loss falls, do not count.
    """
    steady = 1.0 - float(task.get("cooldown", 0.0)) if task.get("schedule") == "wsd" else 1.0
    for name, curve in reversed(losses(lines).items()):
        values = [value for number, value in curve if number <= steady * len(lines)]
        if len(values) < 2 * SHORTEST:
            continue
        window = max(SHORTEST, len(values) // SHARE)
        before, last = values[-2 * window : -window], values[-window:]
        fall, error = fmean(before) - fmean(last), math.sqrt((variance(before) + variance(last)) / window)
        if fall <= max(LEAST * abs(fmean(last)), ERRORS * error):
            return ""
        means = f"from {fmean(before):.4g} to {fmean(last):.4g} (means of {window} rounds)"
        more = f"try rounds={2 * len(lines)}, or a larger task.learning_rate or task.local_epochs"
        return f"not converged: the loss ({name}) still fell at the end, {means}; {more}"
    return ""


def risen(lines: Sequence[dict[str, Any]]) -> str:
    """What to say of rounds of which the held-out loss had its lowest long before the end; "" if it had not.

    Compared are means of windows: the lowest among all, and the last.
    """
    curve = losses(lines).get("held out", [])
    values = [value for _, value in curve]
    window = max(SHORTEST, len(values) // SHARE)
    if len(values) < 2 * window:
        return ""
    means = [fmean(values[first : first + window]) for first in range(len(values) - window + 1)]
    lowest = min(range(len(means)), key=means.__getitem__)
    low, last = values[lowest : lowest + window], values[-window:]
    rise, error = means[-1] - means[lowest], math.sqrt((variance(low) + variance(last)) / window)
    if lowest + window > len(values) - window or rise <= max(LEAST * abs(means[lowest]), ERRORS * error):
        return ""
    best = curve[lowest + window // 2][0]
    return (
        f"too long: the loss (held out) rose from {means[lowest]:.4g} about round {best} to {means[-1]:.4g} at the end "
        f"(means of {window} rounds); try rounds={max(1, best)}, or keep_best=true with patience, or weight decay"
    )
