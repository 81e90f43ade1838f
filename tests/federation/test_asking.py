"""A secret is asked for where somebody can type it; at a pipe it is a line, or what to do instead is said."""

from __future__ import annotations

import io

import pytest

from sovfed.federation.asking import ask_secret, confirmed
from sovfed.federation.errors import ConfigError


@pytest.mark.parametrize("text", ["words\n", "words\nwords\n", "words"])
def test_a_pipe_brings_it_as_a_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert ask_secret("passphrase", "", twice=True) == "words"


@pytest.mark.parametrize(("text", "told"), [("", "--no-passphrase"), ("a\nb\n", "differ")])
def test_what_to_do_instead_is_said(monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(ConfigError, match=told):
        ask_secret("passphrase", "--no-passphrase", twice=True)


@pytest.mark.parametrize(("text", "said"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_pipe_answers_a_question(monkeypatch: pytest.MonkeyPatch, text: str, said: bool) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert confirmed("Really?") is said


def test_where_nobody_can_answer_it_is_said_how_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: "interrupted", of a script that signs a certificate."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="nobody is here to answer that: --yes, or a terminal"):
        confirmed("Really?")
