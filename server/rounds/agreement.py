"""What every institution says of the whole run before it is asked for anything of it.

A bound of a policy that only the last round would meet, or the model's length, is known before a model is sent or a
record read. Whoever would not answer all of the run is left out of it from the start.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.codec import encode
from sovfed.federation.errors import BoundError, DeclinedError, IdentityError, ProtocolError
from sovfed.federation.messages import EvaluateRequest, LastRequest, PrivateRequest, RunReply, RunRequest
from sovfed.federation.orders.answers import read_answer
from sovfed.federation.orders.shown import word
from sovfed.federation.sums import FORM
from sovfed.federation.text import NAME, visible
from sovfed.server.rounds.aggregation import Answer, ask
from sovfed.server.rounds.refusals import ADVICE, APPROVERS, FINAL, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sovfed.federation.config import Config
    from sovfed.federation.wire.grids import StreamingGrid

log = logging.getLogger(__name__)
EVALUATIONS: Final = 2  # of the last model, and of the best
SUMS: Final = 1 + EVALUATIONS  # beside the rounds: the profile of the columns
SIGNATURES: Final = "the signature of their data officers (where there is none: `sovfed client orders officer NAME`)"
UNSIGNED: Final = "its data officer has not signed"
MAX_ANSWER_BYTES: Final = 16_384
LOOK_S: Final = 0.5
AGAIN_S: Final = 2.0  # between two questions whether an officer has signed, before round 1
LATER_S: Final = 30.0  # and once the run goes on without
ANSWER_S: Final = 15.0  # longest wait for one answer
NEVER: Final = (*FINAL, ProtocolError.code)  # of a run: who cannot read its order answers nothing under it
TRIES: Final = 4  # who is silent so often is asked for its first sum unasked, and refuses there


class Agreement:
    """Asks each institution whether it would answer the run that `request` describes, until it has said so."""

    def __init__(
        self,
        grid: StreamingGrid,
        request: RunRequest,
        least: int,
        wait_s: float = 0.0,
        only: Collection[str] = (),
        withdrawn: Callable[[], Collection[str]] = tuple,
        said: Callable[[Mapping[int, bytes]], None] = lambda answers: None,
    ) -> None:
        """`wait_s` is how long officers who have not answered yet are waited for; asked are `only` these institutions,
        if any are named, and none that has `withdrawn` by now. `said` takes all words on the order when one is new.
        """
        self._said, self._told_of = said, dict[int, bytes]()
        self._only, self._withdrawn = only, withdrawn
        self._grid, self._request, self._least, self._wait_s = grid, request, least, wait_s
        self._tries: Counter[int] = Counter()  # by node: how often it was asked
        self._heard: set[int] = set()
        self._next = 0.0  # when (monotonic) those that are awaited are asked again
        self.beyond: dict[int, tuple[str, ...]] = {}  # by node that would refuse: settings of its policy, or a code
        self.awaiting: set[int] = set()  # nodes whose officer has not answered
        self.answers: dict[int, bytes] = {}  # the institutions' signed words on the order, as they came

    def require(self, nodes: Callable[[], Sequence[int]]) -> None:
        """Wait for the officers of `nodes`, which is asked again meanwhile.

        Raises DeclinedError, which names who would refuse and why, if too few are willing.
        """
        since, begun = time.time(), time.monotonic()
        while True:
            asked = nodes()
            willing = self.willing(asked, AGAIN_S)
            left_s = begun + self._wait_s - time.monotonic()
            if self.awaiting.intersection(asked) and left_s > 0:
                self._grid.awaits(SIGNATURES, since, self.awaiting, len(asked), time.time() + left_s)
            elif not self._unheard(self._invited(asked)):
                break
            time.sleep(LOOK_S)
        self._grid.awaits("", since, (), 0, 0.0)
        if len(willing) < self._least:
            raise DeclinedError(self._told(len(asked), self._names()))

    def willing(self, nodes: Sequence[int], again_s: float = LATER_S) -> Sequence[int]:
        """Those of `nodes` that do not say no; asks those not heard of, and again those whose officer is awaited."""
        nodes = self._invited(nodes)
        new = self._unheard(nodes)
        if self.awaiting and time.monotonic() >= self._next:
            new += [node for node in nodes if node in self.awaiting and node not in new]
            self._next = time.monotonic() + again_s
        self.hear(new)
        if not self.beyond and not self.awaiting:
            return nodes
        for node in new:
            if node in self.beyond:
                log.warning("%s would not answer the whole run: %s", self._names().get(node, node), self._why(node))
        return [node for node in nodes if node not in self.beyond and node not in self.awaiting]

    def hear(self, nodes: Sequence[int]) -> None:
        """Ask `nodes`, also those that have answered before: an officer may have said otherwise since, and why."""
        for answer in ask(self._grid, dict.fromkeys(nodes, self._request), RunReply, ANSWER_S) if nodes else ():
            self._take(answer)
        self._tries.update(nodes)
        if self.answers != self._told_of:
            self._told_of = dict(self.answers)
            self._said(self._told_of)

    def _unheard(self, nodes: Sequence[int]) -> list[int]:
        """Those of `nodes` that have said nothing, and may yet: in a stall the first question is answered by nobody."""
        return [node for node in nodes if node not in self._heard and self._tries[node] < TRIES]

    def _invited(self, nodes: Sequence[int]) -> Sequence[int]:
        """Those of `nodes` whom the run is for."""
        gone = self._withdrawn()
        if not gone and not self._only:
            return nodes
        names = self._names()
        return [
            node for node in nodes
            if (name := names.get(node, "")) not in gone and (not self._only or name in self._only)
        ]  # fmt: skip

    def refusals(self, nodes: Collection[int]) -> dict[int, str]:
        """The code of each of `nodes` that would refuse."""
        return {node: says[0] if says[0] in NEVER else BoundError.code
                for node, says in self.beyond.items() if node in nodes}  # fmt: skip

    def _take(self, answer: Answer[RunReply]) -> None:
        node = answer.node_id
        self._heard.add(node)
        if says := _says(answer):
            self.beyond[node] = says
        if answer.reply is None:
            return
        self.awaiting.discard(node)
        if answer.reply.order == "awaiting":
            self.awaiting.add(node)
        if 0 < answer.reply.answer.size <= MAX_ANSWER_BYTES:
            self.answers[node] = answer.reply.answer.tobytes()

    def _names(self) -> dict[int, str]:
        return {node.node_id: node.name or str(node.node_id) for node in self._grid.get_nodes()}

    def _told(self, asked: int, names: Mapping[int, str]) -> str:
        reasons = {node: self._why(node) for node in self.beyond} | dict.fromkeys(self.awaiting, UNSIGNED)
        whose = listed(sorted(f"{names.get(node, str(node))}: {why}" for node, why in reasons.items()))
        codes = {says[0] for says in self.beyond.values() if says[0] in (*NEVER, APPROVERS, FORM)}
        advice = "; ".join(ADVICE[code] for code in sorted(codes & ADVICE.keys())) or ADVICE["bound"]
        return (
            f"{len(reasons)} of {asked} institutions would not answer this run to its end, minimum cohort is "
            f"{self._least}: {whose}; {advice}"
        )

    def _why(self, node: int) -> str:
        why = ", ".join(self.beyond[node])
        return f"{why} ({_word(self.answers[node])})" if why == "order" and node in self.answers else why


def _says(answer: Answer[RunReply]) -> tuple[str, ...]:
    """The settings that the run is beyond, or the code of a refusal that would come again; else nothing."""
    if answer.reply is None:
        return (answer.refusal,) if answer.refusal in NEVER else ()
    if answer.reply.order in ("refused", "withdrawn"):
        return ("order",)
    return tuple(name for name in answer.reply.beyond.split(",") if NAME.fullmatch(name))


def _word(answer: bytes) -> str:
    """What an institution said, and why, with nothing in it that could forge a line."""
    try:
        return visible(word(read_answer(answer, "answer")))
    except IdentityError:
        return "its answer cannot be read"


def run_request(config: Config, last: LastRequest, parameters: int) -> RunRequest:
    """The whole run, of which `last` is the last round's request and whose model has so many `parameters`."""
    kind, scalars, _ = encode(last)
    private, scored, secagg = isinstance(last, PrivateRequest), isinstance(last, EvaluateRequest), config.secagg
    request = np.frombuffer(json.dumps(scalars).encode(), np.uint8)
    return RunRequest(
        run=last.run, request_kind=kind, request=request, parameters=parameters,
        sums=0 if private else config.rounds + (0 if scored else SUMS),
        evaluations=config.rounds if scored else 0 if private else EVALUATIONS, masked=secagg.enabled,
        min_cohort=config.server.min_cohort, bits=secagg.bits, clip=secagg.clip, max_weight=secagg.max_weight,
    )  # fmt: skip
