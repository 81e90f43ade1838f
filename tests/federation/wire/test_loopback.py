"""The loopback secret: made private, shown exactly, compared whole."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.wire.loopback import SECRET_HEADER, ensure_secret, read_secret, require_secret

SECRET = "a" * 64


def test_secret_is_private_from_its_first_byte_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "loopback.secret"
    secret = ensure_secret(path)
    assert len(bytes.fromhex(secret)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_secret(path) == secret
    assert [entry.name for entry in path.parent.iterdir()] == ["loopback.secret"]


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: ensure_secret(tmp_path / "s" / "secret"), range(32)))
    assert len(found) == 1


def test_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    ensure_secret(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="0640, expected 0600"):
        read_secret(path)


def test_short_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text("abc")
    with pytest.raises(ServiceError, match="3 characters"):
        read_secret(path)


def _status(
    headers: list[tuple[bytes, bytes]], path: str = "/v1/runtime/acquire-task", kind: str = "http"
) -> int | str:
    """What a caller with `headers` gets: the app behind the wrapper answers 200."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("the body was read before the secret was shown")

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    scope = {"type": kind, "path": path, "headers": headers}

    async def call() -> None:
        await require_secret(app, SECRET)(scope, receive, send)

    asyncio.run(call())
    first: int | str = sent[0].get("status", sent[0]["type"])
    return first


NAME = SECRET_HEADER.encode()


@pytest.mark.parametrize(
    "headers",
    [[], [(NAME, b"")], [(NAME, b"b" * 64)], [(NAME, b"a" * 63)], [(NAME, b"a" * 65)], [(NAME, "é".encode("latin-1"))],
     [(NAME, b"a" * 64), (NAME, b"a" * 64)]],
)  # fmt: skip
def test_request_without_the_exact_secret_is_forbidden(headers: list[tuple[bytes, bytes]]) -> None:
    assert _status(headers) == 403


def test_request_with_the_secret_passes_and_health_needs_none() -> None:
    assert _status([(NAME, SECRET.encode())]) == 200
    assert _status([], "/health") == 200
    assert _status([], "/health/../v1") == 403


def test_websockets_are_closed() -> None:
    assert _status([], kind="websocket") == "websocket.close"
