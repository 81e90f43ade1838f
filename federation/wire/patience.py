"""Fetching that ends: a message whose pieces stop coming, or that nobody waits for any more, is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sovfed.federation.errors import ProtocolError

STALL_S: Final = 60.0  # without one object arriving; Flower waits for hours


def patient(
    pull: Callable[[str], bytes],
    *,
    limit_s: float = STALL_S,
    over: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[str], bytes]:
    """Flower's `pull`, which raises ProtocolError once nothing has arrived for `limit_s`, or `over` says so.

    Flower calls it again and again for an object that the other side has announced and not brought.
    """
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

    last = clock()

    def ended(object_id: str) -> bytes:
        nonlocal last
        try:
            content = pull(object_id)
        except ObjectUnavailableError:
            if over():
                raise ProtocolError("the message is not waited for any more") from None
            if clock() - last > limit_s:
                raise ProtocolError(f"no object of the message has come for {limit_s:g} s") from None
            raise
        last = clock()
        return content

    return ended
