"""The verifier as one file says no as `sovfed verify` does."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sovfed.federation.certificates import create_root, to_pem
from sovfed.federation.release.standalone import write_verifier

CLEARS = "\x1b[2J\x1b[H✓ signed by the agency"


@pytest.mark.parametrize("bundle", [b"PK\5\6", json.dumps({"permit": "p", CLEARS: 1}).encode()])
def test_what_does_not_hold_is_one_line_that_steers_no_terminal_and_code_3(bundle: bytes, tmp_path: Path) -> None:
    """It was a traceback and code 1, with words of the file as they are: to clear the screen and say that all holds."""
    write_verifier(tmp_path / "verify.pyz")
    (tmp_path / "root.pem").write_bytes(to_pem(create_root("Authority", datetime.now(UTC))[1]))
    (tmp_path / "bundle").write_bytes(bundle)

    words = [str(tmp_path / name) for name in ("verify.pyz", "bundle", "root.pem")]
    done = subprocess.run([sys.executable, "-I", *words[:2], "--root", words[2]], capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (3, b"", 1), done.stderr
    assert done.stderr.startswith(b"error: ") and b"\x1b" not in done.stderr
