"""What every institution says of the whole run before it is asked for anything of it.

A bound of a policy that only the last round would meet, or the model's length, is known before a model is sent or a
record read. Whoever would not answer all of the run is left out of it from the start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.codec import encode
from sovfed.federation.errors import DeclinedError
from sovfed.federation.messages import PrivateRequest, RunReply, RunRequest, TrainRequest
from sovfed.federation.text import NAME
from sovfed.server.rounds.aggregation import Answer, ask
from sovfed.server.rounds.refusals import ADVICE, FINAL, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.config import Config
    from sovfed.federation.wire.flower import StreamingGrid

log = logging.getLogger(__name__)
EVALUATIONS: Final = 2  # of the last model, and of the best
SUMS: Final = 1 + EVALUATIONS  # beside the rounds: the profile of the columns
ANSWER_S: Final = 15.0  # who is silent for so long is asked for its first sum unasked, and refuses there


class Agreement:
    """Asks each institution once whether it would answer the run that `request` describes."""

    def __init__(self, grid: StreamingGrid, request: RunRequest, least: int) -> None:
        self._grid, self._request, self._least = grid, request, least
        self._asked: set[int] = set()
        self.beyond: dict[int, tuple[str, ...]] = {}  # by node that would refuse: settings of its policy, or a code

    def require(self, nodes: Sequence[int]) -> None:
        """Raise DeclinedError, which names who would refuse and why, if too few of `nodes` are willing."""
        if len(self.willing(nodes)) < self._least:
            raise DeclinedError(self._told(len(nodes), self._names()))

    def willing(self, nodes: Sequence[int]) -> Sequence[int]:
        """Those of `nodes` that do not say no; asks those that are new."""
        new = [node for node in nodes if node not in self._asked]
        self._asked.update(new)
        for answer in ask(self._grid, dict.fromkeys(new, self._request), RunReply, ANSWER_S) if new else ():
            if says := _says(answer):
                self.beyond[answer.node_id] = says
        if not self.beyond:
            return nodes
        for node in new:
            if node in self.beyond:
                log.warning("%s would not answer the whole run: %s", self._names().get(node, node), self._why(node))
        return [node for node in nodes if node not in self.beyond]

    def _names(self) -> dict[int, str]:
        return {node.node_id: node.name or str(node.node_id) for node in self._grid.get_nodes()}

    def _told(self, asked: int, names: Mapping[int, str]) -> str:
        whose = listed(sorted(f"{names.get(node, str(node))}: {self._why(node)}" for node in self.beyond))
        codes = {says[0] for says in self.beyond.values() if says[0] in FINAL}
        advice = "; ".join(ADVICE[code] for code in sorted(codes & ADVICE.keys())) or ADVICE["bound"]
        return (
            f"{len(self.beyond)} of {asked} institutions would not answer this run to its end, minimum cohort is "
            f"{self._least}: {whose}; {advice}"
        )

    def _why(self, node: int) -> str:
        return ", ".join(self.beyond[node])


def _says(answer: Answer[RunReply]) -> tuple[str, ...]:
    """The settings that the run is beyond, or the code of a refusal that would come again; else nothing."""
    if answer.reply is None:
        return (answer.refusal,) if answer.refusal in FINAL else ()
    return tuple(name for name in answer.reply.beyond.split(",") if NAME.fullmatch(name))


def run_request(config: Config, last: TrainRequest | PrivateRequest, parameters: int) -> RunRequest:
    """The whole run, of which `last` is the last round's request and whose model has so many `parameters`."""
    kind, scalars, _ = encode(last)
    private, secagg = isinstance(last, PrivateRequest), config.secagg
    request = np.frombuffer(json.dumps(scalars).encode(), np.uint8)
    return RunRequest(
        run=last.run, request_kind=kind, request=request, parameters=parameters,
        sums=0 if private else config.rounds + SUMS, evaluations=0 if private else EVALUATIONS, masked=secagg.enabled,
        min_cohort=config.server.min_cohort, bits=secagg.bits, clip=secagg.clip, max_weight=secagg.max_weight,
    )  # fmt: skip
