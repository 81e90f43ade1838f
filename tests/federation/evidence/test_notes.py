"""Notes are those of C2SP: a published checkpoint and cosignature are read, and any change to one is refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence.notes import (
    COSIGNATURE,
    LOG,
    Checkpoint,
    check_cosignature,
    check_note,
    cosign,
    public,
    read_checkpoint,
    read_key,
    sign,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HEAD = Checkpoint("sovfed/agency/example", 7, bytes(32))
# The example of golang.org/x/mod/sumdb/note, which C2SP signed-note took its form from.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_the_key_of_gos_checksum_database_is_read() -> None:
    key = read_key(GO_KEY)

    assert (key.name, key.kind, key.key_id.hex()) == ("PeterNeumann", LOG, "c74f20a3")
    assert str(key) == GO_KEY


def test_a_note_is_its_logs_and_a_cosignature_its_witnesss() -> None:
    note = sign(HEAD, KEY)
    cosigned = note + cosign(HEAD, "sovfed/institution/h/witness", KEY, 1_700_000_000)

    assert check_note(cosigned, public(HEAD.origin, LOG, KEY)) == HEAD
    assert check_cosignature(cosigned, public("sovfed/institution/h/witness", COSIGNATURE, KEY)) == 1_700_000_000
    assert note.decode().splitlines()[:3] == ["sovfed/agency/example", "7", "A" * 43 + "="]


def test_no_bit_of_a_cosigned_note_can_be_turned() -> None:
    log, witness = public(HEAD.origin, LOG, KEY), public("w/witness", COSIGNATURE, KEY)
    note = sign(HEAD, KEY) + cosign(HEAD, "w/witness", KEY, 1_700_000_000)
    for position in range(len(note)):
        for bit in (1, 16):
            changed = bytearray(note)
            changed[position] ^= bit
            with pytest.raises(EvidenceError):
                _check(bytes(changed), log, witness)


def _check(note: bytes, *keys: object) -> None:
    check_note(note, keys[0])  # type: ignore[arg-type]
    check_cosignature(note, keys[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "note",
    [b"", b"a\n1\n", b"a\n01\nAAAA\n\n", b"a\n-1\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 a AAAA\n", b"\xff" * 9],
)
def test_what_is_no_checkpoint_is_refused(note: bytes) -> None:
    with pytest.raises(EvidenceError):
        read_checkpoint(note)
