"""What a person types to use a model: rows of a table are predicted, and a language model writes on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from sovfed.federation.models.facts import TaskFacts


def usage(task: TaskFacts | None, model: str, option: str = "") -> str:
    """The command that uses `model`, a path or a run's name, of `task` (None: not known), with `option` behind it."""
    name = shlex.quote(model)
    if not learns_text(task):
        return f"sovfed model predict {name} FILE.csv{option}"
    if not task.text:  # code of a package, which alone knows how its model writes
        return f"sovfed model show {name}{option}"
    return f"sovfed generate {name} --tokenizer TOKENIZER.json{option}"


def learns_text(task: TaskFacts | None) -> TypeGuard[TaskFacts]:
    """Whether the model of `task` predicts tokens of a text."""
    return task is not None and any(column.kind == "tokens" for column in task.schema.columns)
