"""Can this task be trained with a person's gradient clipped? Its model, its loss, and the engine that would serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.clients.dpsgd.step import PrivateStep
from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.compatibility import EXAMPLES, Finding, examine

if TYPE_CHECKING:
    from sovfed.federation.tasks import Task


def examine_task(task: Task, *, several_records: bool = True) -> list[Finding]:
    """Findings on a task's model and loss, engine included; empty if there is nothing to say."""
    if task.build is None or task.loss is None:
        return [Finding(task.name, "has no model to train", "choose a task that trains one")]
    features, labels = task.made_up(EXAMPLES)
    module = task.model()
    findings = examine(module, task.loss, features, labels)
    if not any(finding.refused for finding in findings):
        try:
            PrivateStep(module, task.loss, 1.0, example=(features, labels), several_records=several_records)
        except PrivacyError as error:
            findings.append(Finding(task.name, str(error), "build the model of other layers"))
    return findings
