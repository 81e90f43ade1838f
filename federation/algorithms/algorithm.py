"""An algorithm as both sides agree on it: what may be said of it in advance, and its two halves.

`Algorithm` is FedAvg as it stands. Others differ in its fields, which settings, messages, ledgers of personal models
and simulation engines ask, and override the halves. Neither half touches a record, a network or a disk: an
institution's directs `LocalRound`, and the server's is a `ServerOptimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from sovfed.federation.algorithms.server_half import Averaging, ServerOptimizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.federation.plan import LocalPlan
    from sovfed.federation.tasks.layout import Layout
    from sovfed.federation.vectors import Vector

SGD: Final = "sgd"  # what messages call local training of which nothing is left to an algorithm
MODEL: Final = "personal"  # kept: a model that predicts
VARIATE: Final = "variate"  # kept: what only a run that goes on can use


class Settings(Protocol):
    """What algorithms read of the settings `strategy.*` (`StrategyConfig`)."""

    @property
    def server_learning_rate(self) -> float: ...

    @property
    def malicious(self) -> int: ...

    @property
    def selected(self) -> int: ...


class LocalRound(Protocol):
    """An institution's local training in one round, as its half of an algorithm directs it; vectors have shape [d]."""

    @property
    def model(self) -> Vector:
        """The federation's."""

    @property
    def control(self) -> Vector:
        """What the server's half sent beside it; empty unless the algorithm has a `variate`."""

    @property
    def layout(self) -> Layout: ...

    @property
    def steps(self) -> int:
        """Gradient steps of the round here."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def settings(self) -> Mapping[str, float]:
        """The algorithm's `settings`, as the request has them."""

    def train(
        self, start: Vector | None = None, *, correction: Vector | None = None, anchor: Vector | None = None,
        proximal_mu: float | None = None,
    ) -> tuple[Vector, float]:  # fmt: skip
        """The update of training from `start`, else from `model`, and the mean loss of the last epoch.

        `correction` is added to each gradient, and the pull towards `anchor` (else `start`) is of `proximal_mu`, else
        the request's. Raises TrainingError.
        """

    def only_trained(self, vector: Vector) -> Vector:
        """`vector` with zeros at the places of buffers, which no gradient moves."""


@dataclass(frozen=True)
class Learning:
    """What local training came to: the update as it is sent, the mean loss, and the `state` [d] that stays."""

    update: Vector
    loss: float
    state: Vector | None = None


@dataclass(frozen=True)
class Algorithm:
    """FedAvg, McMahan et al. 2017, arXiv:1602.05629, Algorithm 1, unless its fields and methods say otherwise.

    `local` is what messages call what institutions do. `settings` of `strategy.*` go to them with every request.
    `keeps` is what each of them carries from round to round: nothing, a VARIATE or a MODEL. With a `variate`, a control
    variate goes out beside the model and another comes back behind the update, which is so twice as long; the server's
    half is then `Combining` and `Controlling`. Under a `partial` one, parts of the model stay at each institution.

    `masked`: sums are all that the server's half needs. `private`: the privacy mechanisms account for the local half.
    `stacked`: the vectorised engine trains it. `gradient`: institutions send the gradient of one step. `assumes` says
    why local steps must be plain SGD, "" if they need not; with `constant_rate`, at one learning rate in a round.
    """

    name: str
    local: str = SGD
    settings: tuple[str, ...] = ()
    keeps: str = ""
    variate: bool = False
    partial: bool = False
    masked: bool = True
    private: bool = True
    stacked: bool = True
    gradient: bool = False
    assumes: str = ""
    constant_rate: bool = False

    def why_not(self, plan: LocalPlan) -> str:
        """Why institutions cannot train by `plan`, with what to do; "" if they can."""
        if self.assumes and not plan.plain:
            return (
                f"'{self.name}' assumes plain SGD, since {self.assumes}: take task.optimizer=sgd without momentum, "
                "weight_decay and gradient_clip, or strategy=fedavg"
            )
        if self.constant_rate and plan.learning_rate != plan.final_rate:
            return (
                f"'{self.name}' assumes one learning rate in a round, since {self.assumes}: take "
                "task.schedule=constant without warmup, or strategy=fedavg"
            )
        return ""

    def refusal(self, layout: Layout) -> str:
        """Why a model of this layout cannot be trained so, "" if it can: what is personal must never travel."""
        if layout.personal and not self.partial:
            shown = ", ".join(sorted(layout.personal)[:3])
            why = "which no other strategy does and no privacy accounts for: take strategy=fedper"
            return f"keeps {shown} at each institution, {why}"
        return ""

    def least_cohort(self, settings: Settings) -> int:
        """Updates without which the guarantee is void."""
        return 1

    def own(self, layout: Layout) -> npt.NDArray[np.bool_]:
        """Which places of the model stay at each institution, shape [d]."""
        return layout.places(layout.personal)

    # The institution's half.

    def in_use(self, model: Vector, state: Vector | None, layout: Layout) -> Vector:
        """The model that an institution uses and evaluates, given the federation's and what it kept last."""
        return model

    def learn(self, local: LocalRound, state: Vector | None) -> Learning:
        """Train for a round, given what was kept last. Raises TrainingError."""
        update, loss = local.train()
        return Learning(update, loss)

    def idle(self, model: Vector, state: Vector | None) -> Vector:
        """What an institution sends that did not move."""
        return np.zeros_like(model)

    # The server's half.

    def server(self, settings: Settings, trained: int | None) -> ServerOptimizer | None:
        """The server's optimizer, whose first `trained` places are parameters (None: all); None: the agency's own.

        Those lie in `server/strategies/`, since an institution has none of the libraries that they need.
        """
        return Averaging()
