"""Whether a request is well-formed for its task: decided from the request and the task's public constants alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.algorithms import FEDAVG, LOCAL
from sovfed.federation.errors import ConfigError, PolicyError, ProtocolError, WrongTaskError
from sovfed.federation.messages import (
    EvaluateRequest,
    PrivateRequest,
    ProfileRequest,
    ReleaseRequest,
    SumRequest,
    TrainRequest,
)
from sovfed.federation.statistics.question import question_of, read_question
from sovfed.federation.statistics.scores import scores_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sovfed.clients.training.personal import PersonalStates
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.tasks import Task


def resolve(request: SumRequest | ReleaseRequest, versions: Callable[[str], Sequence[Task]]) -> Task:
    """This institution's task of the request's name, with the model that the request asks for.

    Raises WrongTaskError if there is none, or if it is another than the coordinator's.
    """
    try:
        tasks = {
            task.digest: task
            for task in (task.with_normalisation(request.normalisation) for task in versions(request.task))
        }
    except ConfigError as error:
        raise WrongTaskError(f"task '{request.task[:64]}' cannot be had here: {error}") from error
    if request.digest not in tasks:
        raise WrongTaskError(
            f"task '{request.task}' has the digest {', '.join(f'{digest[:12]}…' for digest in tasks)} here and "
            f"{request.digest[:12] or 'none'}… at the agency: other columns, another model or another version"
        )
    return tasks[request.digest]


def check_shapes(request: SumRequest, task: Task) -> None:
    """Raise unless the vectors of `request` have the lengths that `task` declares.

    ProtocolError on another length, ConfigError on what the task cannot do. Nothing here looks at records: what they
    are like is found out too late for a refusal.
    """
    if isinstance(request, ProfileRequest):
        return
    if isinstance(request, PrivateRequest):
        if request.candidates:
            scores_of(request, task.metrics)
        _length("scale", request.scale, 2 * task.transform.size if request.candidates else 0)
        if request.statistics:
            _length("model", request.model, question_of(request, task.schema).size)
            return
    if task.build is not None:  # the echo takes vectors of every length
        _length("model", request.model, task.parameters)
    if task.build is not None and isinstance(request, TrainRequest | EvaluateRequest | PrivateRequest):
        algorithm = FEDAVG if isinstance(request, PrivateRequest) else LOCAL[request.algorithm]
        if reason := algorithm.refusal(task.layout):
            raise ConfigError(f"task '{task.name}' {reason}")
    if isinstance(request, PrivateRequest):
        return
    if task.build is None:
        if request.algorithm != FEDAVG.local:
            raise ConfigError(f"task '{task.name}' trains nothing, so no algorithm either")
        return
    _length("scale", request.scale, 2 * task.transform.size)
    if isinstance(request, TrainRequest):
        _length("control", request.control, request.model.size if LOCAL[request.algorithm].variate else 0)


def check_release(request: ReleaseRequest, task: Task) -> None:
    """Raise ProtocolError unless model and scale have the lengths that `task` declares, or its table."""
    if request.of_scores:
        _length("model", request.model, 0)
        _length("scale", request.scale, 0)
        return
    if request.statistics:
        _length("model", request.model, read_question(request.statistics, task.schema).size)
        _length("scale", request.scale, 1)
        return
    if task.build is not None:
        _length("model", request.model, task.parameters)
    _length("scale", request.scale, 2 * task.transform.size)


def check_scale(request: SumRequest | ReleaseRequest, task: Task, least_spread: float) -> None:
    """Raise PolicyError unless the scale is one that a federation's own columns could have."""
    if isinstance(request, ProfileRequest) or task.build is None:
        return
    if isinstance(request, PrivateRequest) and not request.candidates:
        return
    if reason := task.transform.admits(request.scale, least_spread):
        raise PolicyError(reason)


def require_room(request: SumRequest, states: PersonalStates | None) -> None:
    """Raise SovfedError if what the request would keep would have no name, or no place in `states`."""
    if isinstance(request, ProfileRequest | PrivateRequest):
        return
    if isinstance(request, TrainRequest) and request.keep_state:
        _require_state(request, states)
    if not LOCAL[request.algorithm].keeps:
        return
    if states is None or not request.keep:
        raise ProtocolError("an algorithm that keeps something, without a name, or a place, to keep it")
    states.check_room(request)


def _require_state(request: TrainRequest, states: PersonalStates | None) -> None:
    """Raise SovfedError if the optimizer of `request` has no state, or that no name or no place."""
    if request.algorithm != FEDAVG.local or request.plan.plain:
        raise ConfigError(f"'{request.optimizer}' under '{request.algorithm}' has no state to keep")
    if states is None or not request.keep:
        raise ProtocolError("an optimizer's state that is to be kept, without a name, or a place, to keep it")


def trained(task: Task) -> int:
    """How many of the model's first values are parameters; all of them, where nothing is trained."""
    return task.parameters if task.build is None else task.layout.trained


def require_question(request: PrivateRequest, task: Task, parameters: int) -> None:
    """Raise ProtocolError unless what `request` counts, if it does, are `parameters` sums over `task`'s records."""
    if not (request.statistics or request.candidates):
        return
    size = (scores_of(request, task.metrics) if request.candidates else question_of(request, task.schema)).size
    if parameters != size:
        raise ProtocolError(f"a table of {parameters} sums, expected {size}")


def sums_width(request: SumRequest, task: Task) -> int:
    """Length of the sums in the reply: the columns' totals, or the task's metrics."""
    return task.transform.profile_size if isinstance(request, ProfileRequest) else task.evaluation_size


def _length(name: str, vector: Vector | Sums, expected: int) -> None:
    if vector.size != expected:
        raise ProtocolError(f"{name} of shape {vector.shape}, expected ({expected},)")
