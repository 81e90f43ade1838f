"""What an institution's policy says of requests, as the trainer asks it: without a policy nothing is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.config import LEAST_SPREAD
from sovfed.federation.errors import BoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.home.policy import Policy
    from sovfed.federation.messages import Request, RunRequest

BESIDE_BYTES: Final = 1 << 14  # of a message, beside the model


@dataclass(frozen=True)
class Rules:
    """The defaults are a simulation's, where nothing is refused.

    `check` raises PolicyError for a request that is forbidden; `check_values` too, once it is known how many of the
    model's first values are parameters. `check_run` says what of a whole run would be refused. `least_spread` is the
    smallest standard deviation of a feature, as a share of its range. `most_epochs` bounds the passes over the records
    in one round. `reproducible` trains in the same order when the same is asked in another sum.
    """

    check: Callable[[Request], None] = lambda _request: None
    check_values: Callable[[Request, int], None] = lambda _request, _trained: None
    check_run: Callable[[RunRequest], list[BoundError]] = lambda _request: []
    least_spread: float = LEAST_SPREAD
    most_epochs: int | None = None
    reproducible: bool = False

    @classmethod
    def of(cls, policy: Policy, most_bytes: int) -> Rules:
        """Those of `policy`, and that a message with a run's model is no longer than this node takes.

        `most_bytes` is `client.max_message_bytes`: else such a message would be cut off on its way, again and again,
        and nobody at the agency would know why.
        """

        def check_run(request: RunRequest) -> list[BoundError]:
            bounds, size = policy.check_run(request), 4 * request.parameters + BESIDE_BYTES
            if size > most_bytes:
                text = f"messages of {size} bytes are above client.max_message_bytes {most_bytes}"
                bounds.append(BoundError(text, "client.max_message_bytes"))
            return bounds

        return cls(
            policy.check, policy.check_values, check_run, policy.least_spread, policy.max_local_epochs,
            policy.reproducible,
        )  # fmt: skip


NO_RULES: Final = Rules()
