"""Whether a release is what was granted, and the next in order; if not, what differs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sovfed.clients.ledger.entries import Granted, Release


def mismatch(granted: Granted, release: Release) -> str:
    """What of `release` was not granted, with both values; nothing if it is the next step of the grant."""
    plan, last = granted.grant.plan, granted.last
    spent = granted.releases.get((release.round, release.attempt))
    if spent:
        return f"round {release.round} attempt {release.attempt} was spent before: {difference(release, spent)}"
    if granted.closed:
        return "the grant was closed"
    single = dataclasses.replace(plan.event, count=release.event.count)
    terms = dataclasses.replace(release, mechanism=plan.mechanism, event=single, clip=plan.clip, config=plan.config)
    if terms != release:
        return difference(release, terms)
    if release.round > plan.rounds:
        return f"round is {release.round}, granted up to {plan.rounds}"
    if last and (release.round, release.attempt) < (last.round, last.attempt):
        return (
            f"round is {release.round} (attempt {release.attempt}), "
            f"round {last.round} (attempt {last.attempt}) was spent already"
        )
    repeats = last is not None and release.round == last.round
    if last and repeats and (release.first_step, release.stop) != (last.first_step, last.stop):
        return (
            f"attempt {release.attempt} is for steps {_steps(release)}, attempt {last.attempt} was for {_steps(last)}"
        )
    if last and not repeats and release.first_step < last.stop:
        return f"first_step is {release.first_step}, steps up to {last.stop - 1} are spent"
    if release.stop > plan.event.count or release.event.count > granted.reserved:
        return f"steps are {_steps(release)}, granted {plan.event.count} in all, of which {granted.reserved} are left"
    return ""


def _steps(release: Release) -> str:
    return f"{release.first_step}–{release.stop - 1}"


def difference(asked: Any, granted: Any) -> str:
    """The first field in which two of the same dataclass differ, with both values; nothing if they are equal."""
    for field in dataclasses.fields(asked):
        left, right = getattr(asked, field.name), getattr(granted, field.name)
        if left != right:
            if dataclasses.is_dataclass(left):
                return difference(left, right)
            return f"{field.name} is {left}, granted {right}"
    return ""
