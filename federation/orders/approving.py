"""A person's approval of an order, before the agency may show it to institutions that ask for one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sovfed.federation.archive.signing import REVIEWER, sign
from sovfed.federation.errors import ConfigError
from sovfed.federation.orders.order import DOMAIN, MAX_APPROVALS

if TYPE_CHECKING:
    from sovfed.federation.archive.signer import SigningKey
    from sovfed.federation.orders.order import Proposal


def approve(proposal: Proposal, person: SigningKey) -> Proposal:
    """`proposal` with the approval of `person` added, once. Raises ConfigError beyond MAX_APPROVALS."""
    signature = sign(proposal.order.text, REVIEWER, person.certificate, person.key, domain=DOMAIN)
    if signature in proposal.approvals:
        return proposal
    if len(proposal.approvals) >= MAX_APPROVALS:
        raise ConfigError(f"{MAX_APPROVALS} people have approved this order already")
    return replace(proposal, approvals=(*proposal.approvals, signature))
