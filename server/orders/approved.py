"""Whether people of the agency have approved an order, where `server.min_approvers` binds the agency to that.

What binds is `server.json`: words of a run's command line may ask for more people, and for no others and no fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ConfigError, IdentityError, PolicyError
from sovfed.federation.identity import Trust
from sovfed.federation.orders.approving import counted, signer_of
from sovfed.server.home import SETTINGS, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.identity import SignerIdentity
    from sovfed.federation.orders.order import Proposal


@dataclass(frozen=True)
class Approved:
    """Who of `approvers` has approved an order, of the `least` people who must."""

    people: frozenset[str]
    least: int
    approvers: tuple[str, ...]

    @property
    def lacking(self) -> str:
        """What is missing, in words; "" if nothing."""
        if len(self.people) >= self.least:
            return ""
        who = ", ".join(sorted(self.people)) or "nobody"
        return f"approved by {who}, of {self.least} people of {', '.join(self.approvers)} (server.min_approvers)"


def approved(home: Path, proposal: Proposal | None, least: int = 0) -> Approved:
    """Who has approved `proposal`, of as many people as the agency's settings ask for, or `least` if that is more.

    An approval that cannot be read, was changed, has ended or is a stranger's is none, and so is a missing proposal.
    """
    server = load_settings(home).server if (home / SETTINGS).exists() else ServerConfig()
    most = max(server.min_approvers, least)
    signers = _holding(home, proposal) if most and proposal is not None else ()
    return Approved(counted(signers, server.approvers), most, server.approvers)


def require_approved(home: Path, name: str, proposal: Proposal | None, least: int = 0) -> None:
    """Raise PolicyError, with what is next, unless enough people have approved the order of run `name`."""
    lacking = approved(home, proposal, least).lacking
    if not lacking:
        return
    approve = f"`sovfed run approve {home / 'runs' / name / 'order.json'}` by each of them"
    if proposal is None:
        raise PolicyError(
            f"run '{name}' has no order that people have read: {lacking}; `sovfed run propose … run_name={name}` "
            f"(`sovfed evaluate … --propose`), {approve}, then `sovfed run start --proposed {name}`"
        )
    raise PolicyError(f"the order of run '{name}' is {lacking}; next: {approve}")


def _holding(home: Path, proposal: Proposal) -> Iterator[SignerIdentity]:
    """Whose approvals hold now."""
    for approval in proposal.approvals:
        try:
            signer = signer_of(approval, proposal.order, Trust(home / "identity"))
        except (IdentityError, ConfigError, OSError):  # the other approvals may hold
            continue
        if signer is not None:
            yield signer
