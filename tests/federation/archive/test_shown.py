"""What a reviewer is shown is what Python runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.packages import NET, write_wheel

from sovfed.federation.archive.archive import Archive
from sovfed.federation.archive.manifest import listed
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.shown import difference
from sovfed.federation.archive.signer import SigningKey

COMMENT = "        # outputs are bounded below:"
BOUNDED = NET.replace("        return", f"{COMMENT}\n        x = x.clamp(-1, 1)\n        return")


@pytest.mark.parametrize("end", ["\u2028", "\x0c", "\x1c", "\x85", "\x0b"])
def test_a_line_end_that_python_takes_for_none_is_shown(packed: Archive, end: str) -> None:
    """The step that stood in a line of its own is a part of the comment now."""
    versions = []
    for net in (BOUNDED, BOUNDED.replace(f"{COMMENT}\n", COMMENT + end)):
        content = {**packed.content, "wardnet/net.py": net.encode()}
        manifest = replace(packed.manifest, files=listed(content))
        versions.append(Archive(manifest, content, {}))
    told = [line for line in difference(*versions) if line.startswith("+ ")]
    escape = end.encode("unicode_escape").decode()
    assert told == [f"+{COMMENT}{escape}        x = x.clamp(-1, 1)"]


def test_a_source_is_compiled_as_it_is_read_whatever_it_says_of_its_coding(
    publisher: SigningKey, tmp_path: Path
) -> None:
    """In UTF-7 the comment would end and raise."""
    hidden = f"# -*- coding: utf_7 -*-\n# +AAo-raise SystemExit(3)\n{NET}"
    archive, _ = pack(write_wheel(tmp_path, net=hidden), publisher)
    assert archive.manifest.name == "sepsis"
