"""Why a run is made, for whom and how long it may last: what its order says beside the figures."""

from __future__ import annotations

from dataclasses import dataclass

from sovfed.federation.schema import bounded, named


@dataclass(frozen=True)
class OrderConfig:
    """What the institutions' officers read of a run that no other setting says."""

    purpose: str = bounded("to train the task's model", 1, 500, doc="what the model is for, in a sentence")
    population: str = bounded("", 0, 200, doc="whose records are meant, in words")
    recipients: str = bounded("the agency, and the institutions", 1, 200, doc="who receives the model")
    proposer: str = bounded("the agency", 1, 128, doc="who asks for the run")
    permit: str = named("", 0, 64, doc="the permit that it is made under, as the institutions' policies name it")
    cohort: tuple[str, ...] = bounded((), 1, 63, doc="the only institutions that are asked; []: all certified ones")
    valid_days: int = bounded(30, 1, 3_660, unit="days", doc="how long institutions answer under the order")
    wait_s: float = bounded(
        86_400.0, 0.0, 30 * 86_400.0, unit="s", doc="how long the run waits for officers who have not answered yet"
    )
