"""The one exception tree, and the fixed sentences that may cross the wire.

    SovfedError
    ├── ConfigError       a configuration value is unknown, of the wrong type or out of range
    ├── IdentityError     a certificate, key, token or signature does not hold
    │   ├── EvidenceError     a log, its head or a release was changed, or is not what was shown before
    │   ├── InvitationError   an invitation's token does
    │   ├── NotValidNowError  by the clock: it did, or will, or the clock is wrong
    │   ├── NotReadNowError   cannot be read, for want of what comes back: a descriptor, a disk's answer
    │   └── TooManyTriesError several passphrases in a row did not: whoever tries waits
    ├── ProtocolError     a message from another process is malformed, oversized or out of place
    │   └── WholeModelError   it is a change of a model that is not here
    ├── PolicyError       the institution's own policy forbids what was asked
    │   ├── BoundError        a setting of it does, which `limit` names: to ask again changes nothing
    │   ├── OrderError        it has signed no order for that, or for another run
    │   ├── NotPrivateError   it answers runs with differential privacy only
    │   └── WrongTaskError    its task of that name is another one
    ├── DataError         an institution's data is missing or does not fit the task's schema
    ├── PrivacyError      a privacy rule would be broken
    ├── TrainingError     local training failed (non-finite values, device out of memory)
    │   └── DeviceLostError   the process of one of several devices ended, or hangs
    ├── CohortError       too few institutions took part
    │   ├── DeclinedError     and to ask again would change nothing
    │   ├── LostError         that were there a moment ago, and may be back
    │   └── NoRosterError     for secure aggregation's keys; `refused` says why
    └── ServiceError      a process of ours is not running, or would start unsafely
        ├── AwayError         that its supervisor starts again
        └── UnknownRunError   or it has no run of that number (any more)

What an institution tells the coordinator about a failure is a `code` and the sentence in `WIRE_SENTENCES`; exception
text stays in the institution's own log. Every code but `failed` is decided before a record is touched, from the
request, the policy, the ledger and public constants alone. Whatever goes wrong with the records themselves has no code:
nothing tells missing data from a full disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_TEXT: Final = 500  # of what an error says of a message


class SovfedError(Exception):
    """Base of every error raised on purpose. `code` is what crosses the wire."""

    code = "internal"


class ConfigError(SovfedError):
    code = "config"


class IdentityError(SovfedError):
    code = "identity"


class TooManyTriesError(IdentityError):
    """Whoever guesses a passphrase waits, also with the right one."""


class NotValidNowError(IdentityError):
    """What does not hold by the clock alone may hold later: whoever meets it waits, and is not over."""


class NotReadNowError(IdentityError):
    """A file is there and may be read, but not now: nothing is said of it, and whoever needs it tries again."""


class EvidenceError(IdentityError):
    """A log, its head or a release was changed, or is another than was shown before."""


class InvitationError(IdentityError):
    """An invitation does not hold; whoever shows its token is told why."""


class ProtocolError(SovfedError):
    """What another process sent is in the text at times, and what it sent may be long: the log is not."""

    code = "protocol"

    def __init__(self, text: str = "") -> None:
        super().__init__(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…")


class WholeModelError(ProtocolError):
    """A change came of a model that this institution does not hold: the whole one does."""

    code = "whole-model"


class PolicyError(SovfedError):
    code = "policy"


class BoundError(PolicyError):
    """`limit` is the setting of the policy that a request is beyond."""

    code = "bound"

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class OrderError(PolicyError):
    code = "order"


class NotPrivateError(PolicyError):
    code = "needs-privacy"


class WrongTaskError(PolicyError):
    code = "wrong-task"


class DataError(SovfedError):
    code = "data"


class PrivacyError(SovfedError):
    code = "privacy"


class TrainingError(SovfedError):
    code = "training"


class DeviceLostError(TrainingError):
    """Of several devices, that of one ended, failed or hangs: the round may be tried again."""


class CohortError(SovfedError):
    code = "cohort"


class DeclinedError(CohortError):
    """Asking again would change nothing."""


class NoRosterError(CohortError):
    """Too few institutions agree on keys for secure aggregation; `refused` says by node why those left out were."""

    def __init__(self, message: str, refused: Mapping[int, str]) -> None:
        super().__init__(message)
        self.refused = refused


class LostError(CohortError):
    """Institutions that had joined were lost on the way: when they are back, it may be tried again."""


class ServiceError(SovfedError):
    code = "service"


class AwayError(ServiceError):
    """A process of the agency's own is away: its supervisor starts it again, and then it may be tried again."""


class UnknownRunError(ServiceError):
    """Flower's database has no run of that number: it was never there, or was lost with the database."""


WIRE_SENTENCES: Final[dict[str, str]] = {
    "failed": "The institution could not do the work; see its own log.",
    "config": "The institution's configuration does not allow this request.",
    "identity": "The institution could not verify an identity.",
    "protocol": "The institution refused a malformed message.",
    "whole-model": "The institution does not hold the model that this changes; it takes the whole one.",
    "policy": "The institution's policy forbids this request.",
    "bound": "The run is beyond a bound of the institution's policy.",
    "order": "The institution has signed no order for this (`sovfed client orders`, there).",
    "privacy": "The institution refused to break a privacy rule.",
    "needs-privacy": "The institution answers runs with differential privacy only (require_privacy in its policy).",
    "wrong-task": "The institution has no task of that name and digest (`sovfed task show` tells it).",
    "cohort": "Too few institutions took part.",
    "service": "A process of the institution is not available.",
}


def wire_code(error: BaseException) -> str:
    """The code that may cross the wire for `error`: its own if it is one of `WIRE_SENTENCES`, else `failed`."""
    code = error.code if isinstance(error, SovfedError) else "failed"
    return code if code in WIRE_SENTENCES else "failed"
