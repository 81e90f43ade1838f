"""An institution's tasks that are archives: added by its operator, imported by the trainer alone, checked each time.

Whoever else must know of them, as the look at the records of every study, knows what the manifest says.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sovfed.federation.archive.adding import add, kept_task
from sovfed.federation.archive.kept import folders, read_kept
from sovfed.federation.archive.outline import outline
from sovfed.federation.archive.review import Rule
from sovfed.federation.errors import SovfedError
from sovfed.federation.tasks import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sovfed.clients.home.policy import Policy
    from sovfed.federation.archive.manifest import Manifest
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)


def rule_of(policy: Policy) -> Rule:
    """Whose reviews, and how many, the institution wants to see."""
    return Rule(
        policy.min_reviewers, policy.min_reviewing_organisations, policy.trusted_reviewers, policy.review_task_files
    )


def added_archive(home: Path, file: Path, policy: Policy) -> Iterator[str]:
    """Check the archive `file` and unpack it in `home`; lines for the operator. Raises SovfedError."""
    yield from add(home, file, rule_of(policy), policy.allows_own, unsealed=policy.allow_open_network)


def make_packages_known(home: Path, policy: Policy) -> list[Task]:
    """Import the archives in `home` that `policy` allows, once all of each is checked; their tasks, the newest first.

    For the sealed trainer. Of two versions of a package the newer is taken. What is left out is told in the log.
    """

    def imported(folder: Path, _manifest: Manifest) -> Task:
        return kept_task(folder, home / "identity", rule_of(policy))

    return _known(home, policy, imported)


def make_outlines_known(home: Path, policy: Policy) -> list[Task]:
    """Make known what the manifests say of the archives in `home` that `policy` allows; nothing is imported."""
    return _known(home, policy, lambda _folder, manifest: outline(manifest))


def _known(home: Path, policy: Policy, make: Callable[[Path, Manifest], Task]) -> list[Task]:
    tasks = []
    for folder in reversed(folders(home)):
        try:
            manifest = read_kept(folder).manifest
            if policy.allows_own(manifest):
                tasks.append(make(folder, manifest))
            else:
                log.info("task %s is left out: no entry of allowed_tasks has its name and digest", folder.name)
        except Exception as error:  # the package's own among them
            log.warning(
                "task %s is left out: %s", folder.name, error if isinstance(error, SovfedError) else repr(error)
            )
    for task in reversed(tasks):
        registry.add(task)
    return tasks
