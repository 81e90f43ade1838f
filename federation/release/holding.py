"""What somebody else wrote and signed either holds, or an EvidenceError says why: nothing in it ends the reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import InvalidVersion

from sovfed.federation.errors import EvidenceError, SovfedError


@contextmanager
def holding(what: str) -> Iterator[None]:
    """Read and check `what` within. Raises EvidenceError, and nothing else that its bytes can bring about."""
    try:
        yield
    except EvidenceError:
        raise
    except SovfedError as error:
        raise EvidenceError(str(error)) from error
    except (
        LookupError, ValueError, ArithmeticError, TypeError, AttributeError, RecursionError, UnsupportedAlgorithm,
        InvalidVersion,
    ) as error:  # fmt: skip
        raise EvidenceError(f"{what} is not of the form that is written") from error
