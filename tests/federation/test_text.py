"""What somebody else wrote as JSON is read, or refused in the words of whoever reads it, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from sovfed.federation.archive.manifest import read_manifest
from sovfed.federation.archive.signing import read_signature
from sovfed.federation.errors import DataError, SovfedError
from sovfed.federation.evidence.keys import read_voucher
from sovfed.federation.models.facts import from_json, from_told
from sovfed.federation.orders.answers import Answer, read_answer
from sovfed.federation.orders.order import Proposal, read_proposal
from sovfed.federation.orders.receipts import read_receipt
from sovfed.federation.privacy import statement
from sovfed.federation.release.content import read_declaration
from sovfed.federation.renewal import read_renewal
from sovfed.federation.roots import read_handover
from sovfed.federation.text import json_object
from sovfed.federation.wire.enrolment import Invitation

READERS: Final[dict[str, Callable[[Any], object]]] = {
    "answer": partial(read_answer, where="answer"),
    "archive's manifest": read_manifest,
    "archive's signature": partial(read_signature, where="signature"),
    "declaration": partial(read_declaration, where="declaration"),
    "facts of a model": partial(from_json, where="model"),
    "facts of a run": from_told,
    "handover of roots": read_handover,
    "invitation": Invitation.from_json,
    "keys of a log": read_voucher,
    "order": read_proposal,
    "privacy statement": statement.from_json,
    "receipt": partial(read_receipt, roots=()),
    "renewal": read_renewal,
}
HOSTILE: Final = {
    "nested lists": b"[" * 3000, "nested objects": b'{"run":' * 3000, "no text": b"\xff\xfe\xff", "nothing": b"",
    "a list": b"[]", "not a number": b'{"epsilon": NaN}', "a number of many digits": b'{"at": 1' + b"0" * 5000 + b"}",
    "a number beyond a float": b'{"run": {"epsilon": 1%0400d}, "epsilon": 1%0400d}' % (0, 0),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_nothing_that_somebody_else_wrote_ends_its_reader(read: Callable[[Any], object], content: bytes) -> None:
    with pytest.raises(SovfedError):
        read(content)


def test_an_object_is_read_and_what_is_too_long_is_not() -> None:
    assert json_object(b'{"a": [1, 2.5]}', "file", DataError, 15) == {"a": [1, 2.5]}
    with pytest.raises(DataError, match="file: 15 bytes, at most 14 are read"):
        json_object(b'{"a": [1, 2.5]}', "file", DataError, 14)


def test_bytes_that_are_said_to_be_base64_and_are_no_ascii_are_refused() -> None:
    """Seen: a certificate "é" in an institution's word ended the agency's command with a traceback."""
    word = read_answer(Answer("0" * 64, "hospital-1", "refused", key="é", node="é").to_bytes(), "answer")
    with pytest.raises(SovfedError, match="not base64"):
        word.check_origin(())
    with pytest.raises(SovfedError, match="not base64"):
        _ = Proposal(order=None, certificate="é").server  # type: ignore[arg-type]  # not looked at
