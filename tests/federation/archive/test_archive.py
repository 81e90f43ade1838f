"""A byte that is changed anywhere in an archive is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from sovfed.federation.archive import zipped
from sovfed.federation.archive.archive import Archive, parse, read_archive
from sovfed.federation.archive.manifest import read_manifest
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signer import SigningKey
from sovfed.federation.errors import ConfigError, IdentityError, SovfedError

FLIPS = 3_000


def test_packing_twice_gives_the_same_bytes(packed: Archive, wheel: Path, publisher: SigningKey) -> None:
    again, _ = pack(wheel, publisher)
    assert again.to_bytes() == packed.to_bytes()
    assert packed.file_name == "sepsis-1.sovtask"


def test_any_flipped_bit_is_refused_and_nothing_but_a_refusal_comes_of_it(packed: Archive) -> None:
    """Anywhere: contents, manifest, signature, certificate, the zip file's own records."""
    whole, drawn = packed.to_bytes(), random.Random(13)
    assert parse(zipped.read(whole)) == packed
    for _ in range(FLIPS):
        changed = bytearray(whole)
        changed[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
        with pytest.raises(SovfedError):
            parse(zipped.read(bytes(changed)))


def test_bytes_that_are_cut_out_put_in_or_moved_are_refused(packed: Archive) -> None:
    whole, drawn = packed.to_bytes(), random.Random(14)
    for _ in range(300):
        start, length = drawn.randrange(len(whole)), drawn.randrange(1, 200)
        piece = whole[start : start + length]
        other = drawn.randrange(len(whole))
        for changed in (whole[:start] + whole[start + length :], whole[:other] + piece + whole[other:]):
            if changed != whole:
                with pytest.raises(SovfedError):
                    parse(zipped.read(changed))


def test_a_file_that_the_manifest_does_not_list_or_that_is_missing_is_refused(packed: Archive) -> None:
    entries = packed.entries()
    with pytest.raises(ConfigError, match="not in its manifest"):
        parse({**entries, "content/wardnet/more.py": b""})
    with pytest.raises(ConfigError, match="has no place"):
        parse({**entries, "more.py": b""})
    del entries["content/wardnet/net.py"]
    with pytest.raises(ConfigError, match="not in the archive"):
        parse(entries)


def test_contents_and_manifest_changed_together_no_longer_have_a_signature(packed: Archive) -> None:
    """Whoever changes the code and the manifest with it cannot sign it for the publisher."""
    from sovfed.federation.archive.manifest import listed

    content = {**packed.content, "wardnet/net.py": packed.content["wardnet/net.py"].replace(b"tanh", b"relu")}
    forged = replace(packed, content=content, manifest=replace(packed.manifest, files=listed(content)))
    with pytest.raises(IdentityError, match=r"publisher\.json: not the signature of this manifest"):
        parse(forged.entries())


def test_a_signature_is_for_its_role_and_its_person(packed: Archive, publisher: SigningKey) -> None:
    entries = packed.entries()
    signature = entries.pop("signatures/publisher.json")
    with pytest.raises(IdentityError, match="not the signature"):
        parse({**entries, "signatures/reviewer-pat.json": signature.replace(b'"publisher"', b'"reviewer"')})
    with pytest.raises(ConfigError, match=r"belongs in 'publisher\.json'"):
        parse({**entries, "signatures/reviewer-ann.json": signature})


@pytest.mark.parametrize(
    "change", [lambda text: text + b" ", lambda text: text.replace(b'": "', b'":"', 1), lambda text: text[:-1]]
)
def test_a_manifest_has_one_spelling(packed: Archive, change: object) -> None:
    with pytest.raises(ConfigError, match=r"spelling|JSON"):
        read_manifest(change(packed.text))  # type: ignore[operator]


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"name": 1}', bytes(5 << 20)])
def test_a_manifest_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        read_manifest(data)


def test_an_archive_that_is_no_file_or_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_archive(tmp_path / "none.sovtask")
    (tmp_path / "text.sovtask").write_text("name: birth\n" * 10)
    with pytest.raises(ConfigError, match=r"text\.sovtask: not an archive"):
        read_archive(tmp_path / "text.sovtask")
