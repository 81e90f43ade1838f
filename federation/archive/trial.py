"""An archive's code, tried where it can harm nobody: a child without network that may open its own files alone.

`described` asks the child, which seals itself before it imports anything, and has it tell what the task is and whether
it works. What it says is what the code wants to be said: a reviewer reads the code, and the trainer compares digests.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.archive.manifest import Tensor, Tried
from sovfed.federation.errors import ConfigError, ServiceError, SovfedError
from sovfed.federation.host import landlock
from sovfed.federation.host.apart import MIB, Bounds, Completed, run_apart
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import die_with_parent
from sovfed.federation.host.sandbox import reaches_network, seal, system_rules
from sovfed.federation.schema import bind, bounded
from sovfed.federation.tasks.columns import Schema
from sovfed.federation.text import json_object, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.tasks import Task

BOUNDS: Final = Bounds(seconds=300.0, printed=8 * MIB)
SHOWN: Final = 4_000  # characters of what it complains
LONGEST: Final = 4_000  # of a sentence


@dataclass(frozen=True)
class Description:
    """What a task is, and how its checks came out; as `manifest.Manifest` has it."""

    schema: Schema
    name: str = bounded(low=1, high=64)
    title: str = bounded(low=1, high=200)
    version: str = bounded(low=1, high=64)
    digest: str = bounded(low=64, high=64)
    headline: str = bounded(low=1, high=64)
    values: int = bounded(low=0)
    evaluation_size: int = bounded(low=0)
    parameters: tuple[Tensor, ...] = ()
    metrics: tuple[str, ...] = ()
    checks: tuple[Tried, ...] = ()
    privacy: tuple[str, ...] = ()
    licence: str = bounded("", 0, 200)
    citation: str = bounded("", 0, 4_096, lines=True)
    text: str = bounded("", 0, 1 << 20, lines=True)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every check held."""
        return all(check.held for check in self.checks)


def described(folder: Path, digests: Mapping[str, str], entry: str, *, unsealed: bool = False) -> Description:
    """What the task is whose files lie in `folder`, as a sealed child tells that imports it.

    Raises ConfigError if the child cannot load it, and ServiceError where nothing can take network and files from the
    child, unless that is accepted (`unsealed`).
    """
    request = json.dumps({"folder": str(folder), "digests": dict(digests), "entry": entry, "unsealed": unsealed})
    with tempfile.TemporaryDirectory(prefix="sovfed-trial-", ignore_cleanup_errors=True) as scratch:
        return _answer(
            run_apart(
                "sovfed.federation.archive.trial", request.encode(), Path(scratch), BOUNDS, {"OMP_NUM_THREADS": "1"}
            )
        )


def _answer(done: Completed) -> Description:
    complaint = visible(done.complained[-SHOWN:].decode(errors="replace").strip(), keep="\n")
    ended = f"the task's code ended with {done.returncode} and no answer: {complaint}"
    answer = json_object(done.printed, ended, ConfigError, len(done.printed))
    if "error" in answer:
        kind = ServiceError if answer.get("sealed") is False else ConfigError
        raise kind(visible(str(answer["error"])[:LONGEST], keep=""))
    return bind(Description, answer, "what the task's code says")


def describe(task: Task) -> dict[str, Any]:
    """The description of `task` as plain values."""
    from sovfed.federation.tasks.conformance import conform
    from sovfed.federation.tasks.sizes import require_room

    if task.build is not None:
        require_room(task.name, task.build, task.trained)
    tensors = [] if task.build is None else task.layout.parts
    checks = conform(task)
    return {
        "name": task.name, "title": task.title, "version": task.version, "digest": task.digest,
        "schema": task.schema.to_dict(), "headline": task.headline, "values": task.parameters,
        "evaluation_size": task.evaluation_size, "metrics": list(task.metrics.names),
        "parameters": [
            {"name": tensor.name, "shape": list(tensor.shape), "trained": tensor.trained} for tensor in tensors
        ],
        "checks": [
            {"what": check.what, "held": check.held, "detail": visible(check.detail, keep="")[:LONGEST]}
            for check in checks
        ],
        "privacy": _against_privacy(task) if all(check.held for check in checks) else [],
        "licence": task.licence, "citation": task.citation, "text": task.text, "settings": _settings(task),
    }  # fmt: skip


def _against_privacy(task: Task) -> list[str]:
    from sovfed.federation.privacy.compatibility import why_not_private

    reason = why_not_private(task)
    return [visible(reason, keep="")[:LONGEST]] if reason else []


def _settings(task: Task) -> dict[str, str]:
    """What a task.yaml recommends to a run."""
    from sovfed.federation.tasks.declared import DeclaredTask

    values = dict(task.training) if isinstance(task, DeclaredTask) else {}
    return {name: json.dumps(value) for name, value in values.items()}


def main() -> int:
    """Seal this process, load the task that standard input names, and describe it on standard output."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the task's code prints is no answer
    request = json.loads(sys.stdin.buffer.read())
    folder, scratch = Path(request["folder"]), Path(os.environ["TMPDIR"])
    rules = [landlock.Rule(folder, landlock.READ), landlock.Rule(scratch, landlock.WRITE)]
    isolation = seal([*system_rules(), *rules], network=False)
    if (not isolation.network or reaches_network() or not isolation.files) and not request["unsealed"]:
        answer: dict[str, Any] = {"error": f"code of others is not tried here: {isolation.sentence()}", "sealed": False}
    else:
        answer = _tried(folder, request["digests"], request["entry"])
    out.write(json.dumps(answer).encode())
    out.close()
    return 0


def _tried(folder: Path, digests: Mapping[str, str], entry: str) -> dict[str, Any]:
    from sovfed.federation.archive.loading import load_task

    try:
        return describe(load_task(folder, digests, entry))
    except SovfedError as error:
        return {"error": str(error)}
    except Exception as error:  # the task's own
        return {"error": f"the task's code fails: {error!r}"}


if __name__ == "__main__":
    leave(main)
