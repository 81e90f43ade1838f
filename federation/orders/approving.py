"""People's approvals of an order: given by each, counted by whoever waits for them, an institution or the agency."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sovfed.federation.archive.signing import REVIEWER, check_signature, sign
from sovfed.federation.errors import ConfigError
from sovfed.federation.orders.order import DOMAIN, MAX_APPROVALS
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.archive.signer import SigningKey
    from sovfed.federation.archive.signing import Signature
    from sovfed.federation.config import ServerConfig
    from sovfed.federation.identity import SignerIdentity, Trust
    from sovfed.federation.orders.order import Proposal, RunOrder

USUAL: Final = 2  # people, where an order needs any
PEOPLE: Final = ("agency",)  # whose, unless a policy or a setting says otherwise


def approve(proposal: Proposal, person: SigningKey) -> Proposal:
    """`proposal` with the approval of `person` added, once. Raises ConfigError beyond MAX_APPROVALS."""
    signature = sign(proposal.order.text, REVIEWER, person.certificate, person.key, domain=DOMAIN)
    if signature in proposal.approvals:
        return proposal
    if len(proposal.approvals) >= MAX_APPROVALS:
        raise ConfigError(f"{MAX_APPROVALS} people have approved this order already")
    return replace(proposal, approvals=(*proposal.approvals, signature))


def signer_of(approval: Signature, order: RunOrder, trust: Trust) -> SignerIdentity | None:
    """Whose `approval` of `order` this is; None if it counts no longer, or is no approval.

    Raises IdentityError or ConfigError where it cannot be read, was changed, or is a stranger's.
    """
    signer, lapsed = check_signature(approval, order.text, trust, "approval of the order", domain=DOMAIN)
    return None if lapsed or approval.role != REVIEWER else signer


def counted(signers: Iterable[SignerIdentity], allowed: Iterable[str]) -> frozenset[str]:
    """PERSON@ORGANISATION of each of `signers` whom `allowed` names, so or by organisation.

    A person with two certificates or keys is one, and so are two persons with one key.
    """
    people, keys, names = set[str](), set[str](), frozenset(allowed)
    for signer in signers:
        person = f"{signer.person}@{signer.organisation}"
        if names & {signer.organisation, person} and signer.key not in keys:
            people.add(person)
            keys.add(signer.key)
    return frozenset(people)


def bound_line(server: ServerConfig) -> str:
    """Whether the agency has bound itself, in words."""
    if not server.min_approvers:
        return (
            "orders: the server alone may begin a run; server.min_approvers in server.json asks for people's approvals"
        )
    return visible(
        f"orders: no run begins before {server.min_approvers} people of {', '.join(server.approvers)} have approved it"
    )
