"""An archive has one form; whatever else a zip can be is refused before it is read."""

from __future__ import annotations

import io
import stat
import struct
import zipfile

import pytest

from sovfed.federation.archive import zipped
from sovfed.federation.errors import ConfigError

ENTRIES = {"manifest.json": b"{}", "content/lab/__init__.py": b"TASK = 1\n", "content/lab/empty.txt": b""}


def made(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file as others write it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compression)
    return content.getvalue()


def test_equal_entries_give_equal_bytes_in_whatever_order_and_are_read_again() -> None:
    written = zipped.write(ENTRIES)
    assert written == zipped.write(dict(reversed(ENTRIES.items())))
    assert zipped.read(written) == ENTRIES
    with zipfile.ZipFile(io.BytesIO(written)) as file:  # a plain zip for every tool
        assert file.testzip() is None and set(file.namelist()) == set(ENTRIES)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../x", "a//x", "a/./x", "a\\x", "C:x", "x\n", "x ", "", ".hidden", "a/", "ä", "-x", "x.",
     "n" * 201, "a/" * 12 + "x"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_neither_written_nor_read(name: str) -> None:
    with pytest.raises(ConfigError):
        zipped.write({name: b"x"})
    with pytest.raises(ConfigError):
        zipped.read(made((name, b"x")))


@pytest.mark.parametrize(
    "names", [("a/x.py", "A/x.py"), ("a.py", "A.py"), ("a", "a/x"), ("A", "a/x"), ("a/b/x", "a/B/y")]
)
def test_names_that_one_file_system_takes_for_the_same_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"case|called"):
        zipped.read(made(*((name, b"x") for name in names)))


def test_a_file_that_comes_twice_is_refused() -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = made(("a", b"1"), ("a", b"2"))
    with pytest.raises(ConfigError, match="twice"):
        zipped.read(twice)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PK", b"\0" * 40, zipped.write(ENTRIES) + b"\0", b"\0" + zipped.write(ENTRIES),
        zipped.write(ENTRIES)[:-1], zipped.write(ENTRIES)[1:], zipped.write(ENTRIES) * 2,
        made(("a", b"x"), compression=zipfile.ZIP_DEFLATED), made(("a", b"x")),
    ],
)  # fmt: skip
def test_any_other_form_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        zipped.read(data)


def test_a_link_is_refused() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        info = zipfile.ZipInfo("a", (1980, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ConfigError, match="another form"):
        zipped.read(content.getvalue())


def test_a_bomb_takes_no_memory() -> None:
    """A gigabyte of zeros in a megabyte; and a list that says there are 65,000 files."""
    import tracemalloc

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file, file.open("a", "w") as bomb:
        for _ in range(64):
            bomb.write(bytes(1 << 24))
    tracemalloc.start()
    with pytest.raises(ConfigError):
        zipped.read(content.getvalue())
    forged = bytearray(zipped.write(ENTRIES))
    struct.pack_into("<2H", forged, len(forged) - 14, 65_000, 65_000)
    with pytest.raises(ConfigError, match="65000 files"):
        zipped.read(bytes(forged))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_what_is_too_large_or_too_many_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="2001 files"):
        zipped.write({f"f{number}": b"" for number in range(2001)})
    monkeypatch.setattr(zipped, "MAX_BYTES", 3)
    with pytest.raises(ConfigError, match="MiB"):
        zipped.write({"a": b"1234"})
