"""What agency and institution agree on for enrolment: the invitation file, the calls, and their limits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from sovfed.federation.errors import IdentityError
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import json_object

ENROLMENT_SERVICE: Final = "sovfed.Enrolment"
REGISTRY_SERVICE: Final = "sovfed.Registry"
MAX_ENROLMENT_BYTES: Final = 64 * 1024  # of one message on the enrolment port
MAX_REGISTRY_BYTES: Final = 16 * 1024 * 1024  # of a roster or revocation list
MAX_INVITATION_BYTES: Final = 16 * 1024
TOLD: Final = "enrolment: "  # begins a refusal that says its reason: to whoever holds a token


@dataclass(frozen=True)
class Invitation:
    """What the agency hands to one institution. The token is a secret until it is spent.

    The institution should compare the root's fingerprint with the authority, not with the agency that sent this file.
    """

    institution: str = bounded(low=1, high=63)
    address: str = bounded(low=3, high=262, doc="host:port of the enrolment port")
    root: str = bounded(low=1, high=8192, doc="the authority's root certificate, PEM", lines=True)
    token: str = bounded(low=64, high=64, doc="256 bits, hexadecimal; good for one signing request")
    expires: int = bounded(low=0, doc="when the token ends, seconds since 1970 UTC")
    min_cohort: int = bounded(0, 0, 1_000_000, doc="fewest institutions of the agency's runs; 0: it does not say")

    def to_json(self) -> str:
        """The invitation file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Invitation:
        """The invitation in `text`; raises IdentityError if it is not exactly one."""
        values = json_object(text, "invitation", IdentityError, MAX_INVITATION_BYTES)
        return bind(cls, values, "invitation", IdentityError)
