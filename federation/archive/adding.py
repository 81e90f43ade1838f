"""An archive taken into a home: signatures, reviews, every byte, its code tried apart, what changed since the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.archive.archive import read_archive
from sovfed.federation.archive.kept import folders, keep, read_kept
from sovfed.federation.archive.manifest import PACKAGE
from sovfed.federation.archive.opened import task_in
from sovfed.federation.archive.packing import trial_of
from sovfed.federation.archive.review import Vouched, require_reviews, vouched
from sovfed.federation.archive.shown import difference, shown
from sovfed.federation.archive.unpacked import content_of
from sovfed.federation.archive.wheel import check_modules, check_requirements, modules_of
from sovfed.federation.errors import ConfigError, IdentityError, SovfedError
from sovfed.federation.identity import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sovfed.federation.archive.archive import Archive
    from sovfed.federation.archive.manifest import Manifest
    from sovfed.federation.archive.review import Rule
    from sovfed.federation.tasks import Task


def checked(archive: Archive, identity: Path, rule: Rule) -> Vouched:
    """Who vouches for `archive` under the root in `identity`, once that is enough. Raises SovfedError."""
    vouchers = vouched(archive, trust_of(identity))
    require_reviews(archive, vouchers, rule)
    return vouchers


def trust_of(identity: Path) -> Trust:
    """Raises IdentityError with what to do where no root is known yet."""
    if not (identity / "root.pem").exists():
        raise IdentityError(f"{identity} holds no root of the authority yet, under which an archive would be signed")
    return Trust(identity)


def add(
    home: Path, file: Path, rule: Rule, approved: Callable[[Manifest], bool], *, unsealed: bool = False
) -> Iterator[str]:
    """Check the archive `file` and unpack it in `home`; lines for the operator. Raises SovfedError.

    `approved` are versions that were allowed before: what differs from the last of them is shown.
    """
    archive = read_archive(file)
    vouchers = checked(archive, home / "identity", rule)
    if archive.manifest.kind == PACKAGE:
        check_modules(modules_of(archive.content))
        check_requirements(requirement.text for requirement in archive.manifest.requires)
    description = trial_of(archive, unsealed=unsealed)
    if not description.held:
        wrong = next(check for check in description.checks if not check.held)
        raise ConfigError(f"{file}: {wrong.what}: {wrong.detail}")
    before = _last(home, archive, approved)
    yield from shown(archive)
    yield from vouchers.lines()
    yield from (f"ok  {check.what}: {check.detail}" for check in description.checks)
    if before is not None:
        yield f"what differs from version {before.manifest.version}, {before.manifest.digest[:16]}…:"
        yield from difference(before, archive)
    yield f"kept in {keep(home, archive)}"


def kept_task(folder: Path, identity: Path, rule: Rule) -> Task:
    """The task of the archive in `folder`, imported once all of it was checked again. Raises SovfedError."""
    archive = read_kept(folder)
    checked(archive, identity, rule)
    check_requirements(requirement.text for requirement in archive.manifest.requires)
    return task_in(content_of(folder), archive)


def _last(home: Path, archive: Archive, approved: Callable[[Manifest], bool]) -> Archive | None:
    """The newest other version that was approved; where none was, the newest."""
    candidates = []
    for folder in folders(home):
        try:
            candidate = read_kept(folder)
        except SovfedError:  # told where it would be used
            continue
        if candidate.manifest.name == archive.manifest.name and candidate.manifest.digest != archive.manifest.digest:
            candidates.append(candidate)
    return next(
        (candidate for candidate in reversed(candidates) if approved(candidate.manifest)),
        candidates[-1] if candidates else None,
    )
