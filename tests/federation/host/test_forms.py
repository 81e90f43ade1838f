"""Forms of our own pages: each answered once, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.requests import Request

from sovfed.federation.host.forms import FIELDS, FORM_BYTES, FORM_S, HANDED_OUT, ForbiddenError, Forms, read_form


def posted(body: bytes, **headers: str) -> dict[str, str]:
    """What is read of a form that a browser sends to 127.0.0.1:8449 with these `headers`."""
    named: Mapping[str, str] = {"host": "127.0.0.1:8449", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    pieces = [body[at : at + 1024] for at in range(0, max(1, len(body)), 1024)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return asyncio.run(read_form(Request({"type": "http", "method": "POST", "headers": raw}, receive)))


def test_a_form_is_read_from_this_page_alone() -> None:
    assert posted(b"a=1&b=%C3%BC+%26&a=2&c=") == {"a": "2", "b": "ü &"}
    assert posted(b"a=1", origin="http://127.0.0.1:8449", sec_fetch_site="same-origin") == {"a": "1"}
    for origin in ("https://attacker.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:8448", "http://["):
        with pytest.raises(ForbiddenError):
            posted(b"a=1", origin=origin)
    for site in ("cross-site", "same-site", ""):
        with pytest.raises(ForbiddenError):
            posted(b"a=1", sec_fetch_site=site)


def test_a_form_that_is_too_long_or_has_too_many_fields_is_none() -> None:
    assert len(posted(b"a=" + b"x" * (FORM_BYTES - 2))["a"]) == FORM_BYTES - 2
    for body in (b"a=" + b"x" * FORM_BYTES, b"&".join([b"a=1"] * (FIELDS + 1))):
        with pytest.raises(ForbiddenError):
            posted(body)


def test_a_form_is_answered_once_and_only_while_it_is_new() -> None:
    now = [0.0]
    forms = Forms[str](lambda: now[0])
    token, old = forms.hand_out("order 1"), forms.hand_out("order 2")
    assert token != old and len(token) >= 43  # 256 bits
    assert forms.take(token) == "order 1"
    assert forms.take(token) is None and forms.take("") is None and forms.take("x" * 10_000) is None
    now[0] = FORM_S + 1
    assert forms.take(old) is None


def test_forms_that_nobody_answers_are_forgotten_the_oldest_first() -> None:
    forms = Forms[int]()
    tokens = [forms.hand_out(number) for number in range(HANDED_OUT + 2)]
    assert [forms.take(token) for token in tokens] == [None, None, *range(2, HANDED_OUT + 2)]
