"""The federation in one process, and how its records are cut into institutions."""

from __future__ import annotations

from dataclasses import dataclass

from sovfed.federation.schema import bounded, choice, named


@dataclass(frozen=True)
class PartitionConfig:
    """How a simulation cuts a task's records into institutions; sources in simulations/partition.py."""

    name: str = named(
        "natural",
        doc="natural: as the data connector has it; iid; dirichlet: label skew; quantity: size skew; feature: feature "
        "shift; shards: few labels each; or one that a package brings",
    )
    alpha: float = bounded(0.5, 1e-3, 1e6, doc="concentration of 'dirichlet' and 'quantity'; small is uneven")
    shards: int = bounded(2, 1, 1_000, doc="label shards of each institution; 'shards' only")
    noise: float = bounded(
        1.0, 0.0, 100.0, unit="standard deviations of a feature", doc="of the noisiest institution; 'feature' only"
    )
    fade: float = bounded(
        0.0,
        0.0,
        0.99,
        doc="contrast that the most faded institution has lost to the features' upper bound; 'feature' only",
    )


@dataclass(frozen=True)
class SimulationConfig:
    """The federation in one process."""

    institutions: int = bounded(4, 1, 1_000_000, doc="simulated institutions: the population")
    cohort: int = bounded(0, 0, 100_000, unit="institutions", doc="institutions sampled for a round; 0 = all of them")
    engine: str = choice(
        "auto",
        ("auto", "inprocess", "vectorised", "ray"),
        doc="inprocess: the deployed code, one institution after the other; vectorised: many stacked into one "
        "computation, summed in the clear; auto tries both in round 1 and takes the faster; ray: Flower's own "
        "simulation, for many machines and GPUs",
    )
    workers: int | None = bounded(
        None,
        0,
        256,
        unit="processes",
        doc="that train for 'inprocess', one CPU thread each; 0 = none but this "
        "process; null = one a CPU, where an institution's training takes long enough to be worth it",
    )
