"""Algorithms of which institutions know nothing: only what the server makes of their updates is another.

Their optimizers are in `server/strategies/`: `adaptive.py`, Flower's own classes that compare updates (`robust.py`)
and, for `fedsgd`, the task's optimizer (`central.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from sovfed.federation.algorithms.algorithm import Settings


class AtTheServer(Algorithm):
    """FedAvg at the institutions, and an optimizer that only the agency has."""

    def server(self, settings: Settings, trained: int | None) -> None:
        return None


class Krum(AtTheServer):
    def least_cohort(self, settings: Settings) -> int:
        return max(2 * settings.malicious + 3, settings.selected + settings.malicious)


class Bulyan(AtTheServer):
    def least_cohort(self, settings: Settings) -> int:
        return 4 * settings.malicious + 3


FEDSGD: Final = AtTheServer("fedsgd", gradient=True)
ADAPTIVE: Final = tuple(AtTheServer(name) for name in ("fedadam", "fedyogi", "fedavgm", "fedadagrad"))
COMPARING: Final = (
    AtTheServer("fedmedian", masked=False, stacked=False),
    AtTheServer("fedtrimmedavg", masked=False, stacked=False),
    Krum("krum", masked=False, stacked=False),
    Bulyan("bulyan", masked=False, stacked=False),
    AtTheServer(
        "qfedavg", masked=False, stacked=False, constant_rate=True,
        assumes="it takes an update for a gradient times the learning rate",
    ),
)  # which no sum is enough for  # fmt: skip
