"""Lane offers signed by the agency: who may ask an institution to open a stream, for which run, node and how long.

An offer takes the place of an older session, so whoever can make one can break a run. The signature is by the server's
key, over everything in the offer and the Flower ids of run and node: not another's, not an old one, not a changed one.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from sovfed.federation.errors import IdentityError
from sovfed.federation.messages import LaneOffer
from sovfed.federation.secagg.keys import Identity, check_signature, encode_fields, public_key

OFFER_LIFE_S: Final = 600.0  # Flower itself wants both clocks within five minutes


class ServerVerifier(Protocol):
    """Checks the agency's certificate (`federation/identity.py`: `Trust`)."""

    def verify_server(self, cert_der: bytes) -> object: ...


def make_offer(
    identity: Identity, *, run: str, run_id: int, node_id: int, address: str, token: str, now: float
) -> LaneOffer:
    """The offer of the lane at `address` to node `node_id`, signed by `identity` at Unix time `now`."""
    issued = int(now * 1000)
    signature = identity.sign(_signed(run, run_id, node_id, address, token, issued))
    return LaneOffer(
        run=run, address=address, token=token, issued=issued,
        certificate=np.frombuffer(identity.certificate, np.uint8), signature=np.frombuffer(signature, np.uint8),
    )  # fmt: skip


def check_offer(offer: LaneOffer, trust: ServerVerifier, *, run_id: int, node_id: int, now: float) -> None:
    """Raises IdentityError unless the agency has signed `offer` for this run and node less than `OFFER_LIFE_S` ago."""
    certificate = offer.certificate.tobytes()
    trust.verify_server(certificate)
    signed = _signed(offer.run, run_id, node_id, offer.address, offer.token, offer.issued)
    check_signature(public_key(certificate), signed, offer.signature.tobytes(), f"lane offer for run {offer.run}")
    if abs(now - offer.issued / 1000) > OFFER_LIFE_S:
        raise IdentityError(f"lane offer for run {offer.run}: {now - offer.issued / 1000:.0f} s old")


def _signed(run: str, run_id: int, node_id: int, address: str, token: str, issued: int) -> bytes:
    numbers = [number.to_bytes(8, "big") for number in (run_id, node_id, issued)]
    return encode_fields("lane offer", run.encode(), *numbers, address.encode(), token.encode())
