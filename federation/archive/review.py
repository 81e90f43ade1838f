"""Who published and who reviewed an archive, and whether these are enough for whoever adds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.federation.archive.manifest import YAML
from sovfed.federation.archive.signing import PUBLISHER, check_signature
from sovfed.federation.errors import IdentityError, PolicyError
from sovfed.federation.identity import SignerIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.archive.archive import Archive
    from sovfed.federation.identity import Trust


@dataclass(frozen=True)
class Rule:
    """How many must have reviewed a package. A task.yaml holds no code and needs none, unless `task_files`.

    `trusted` are ORGANISATION or PERSON@ORGANISATION; where it is not empty, reviews of others do not count.
    """

    min_reviewers: int = 1
    min_reviewing_organisations: int = 1
    trusted: tuple[str, ...] = ()
    task_files: bool = False


@dataclass(frozen=True)
class Vouched:
    """Whose signatures hold now; `lapsed` says of others why they count no longer."""

    publisher: SignerIdentity
    reviewers: tuple[SignerIdentity, ...] = ()
    lapsed: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """All of it for an operator."""
        yield f"published by {self.publisher}"
        yield from (f"reviewed by {signer}" for signer in self.reviewers)
        yield from (f"does not count: {reason}" for reason in self.lapsed)


def vouched(archive: Archive, trust: Trust) -> Vouched:
    """Who vouches for `archive` now. Raises IdentityError if nobody published it, or a signature does not hold."""
    publishers, reviewers, lapsed = list[SignerIdentity](), list[SignerIdentity](), list[str]()
    for name, signature in sorted(archive.signatures.items()):
        signer, reason = check_signature(signature, archive.text, trust, name)
        if reason:
            lapsed.append(f"{signature.role} {signer}: {reason}")
        else:
            (publishers if signature.role == PUBLISHER else reviewers).append(signer)
    if not publishers:
        raise IdentityError(f"no publisher whose certificate holds has signed it{_because(lapsed)}")
    return Vouched(publishers[0], tuple(reviewers), tuple(lapsed))


def require_reviews(archive: Archive, vouchers: Vouched, rule: Rule) -> None:
    """Raise PolicyError unless enough people of enough organisations, none of them the publisher, reviewed it."""
    if archive.manifest.kind == YAML and not rule.task_files:
        return
    counted = list(_counted(vouchers, rule))
    organisations = {signer.organisation for signer in counted}
    reviewers = ", ".join(map(str, counted)) or "nobody"
    if len(counted) < rule.min_reviewers:
        raise PolicyError(
            f"task {archive.manifest.name} was reviewed by {reviewers}{_because(vouchers.lapsed)}; min_reviewers is "
            f"{rule.min_reviewers}, the publisher {vouchers.publisher} does not count{_of_choice(rule)}"
        )
    if len(organisations) < rule.min_reviewing_organisations:
        raise PolicyError(
            f"task {archive.manifest.name} was reviewed by {reviewers}, of {len(organisations)} organisations; "
            f"min_reviewing_organisations is {rule.min_reviewing_organisations}{_of_choice(rule)}"
        )


def _counted(vouchers: Vouched, rule: Rule) -> Iterator[SignerIdentity]:
    """The reviewers that count: each person and each key once, and not the publisher."""
    persons, keys = {vouchers.publisher.person}, {vouchers.publisher.key}
    for signer in vouchers.reviewers:
        names = {signer.organisation, f"{signer.person}@{signer.organisation}"}
        if (not rule.trusted or names & set(rule.trusted)) and signer.person not in persons and signer.key not in keys:
            persons.add(signer.person)
            keys.add(signer.key)
            yield signer


def _of_choice(rule: Rule) -> str:
    return f"; only reviews of {', '.join(rule.trusted)} count" if rule.trusted else ""


def _because(lapsed: list[str] | tuple[str, ...]) -> str:
    return f" ({'; '.join(lapsed)})" if lapsed else ""
