"""What a person is asked: a yes or no, and secrets, typed unseen or come by a pipe."""

from __future__ import annotations

import sys

import click

from sovfed.federation.errors import ConfigError


def ask_secret(what: str, otherwise: str, *, twice: bool = False) -> str:
    """What is typed for `what`, or the next line of a pipe. Raises ConfigError, with `otherwise`, if none."""
    if sys.stdin.isatty():
        return str(click.prompt(what.capitalize(), hide_input=True, confirmation_prompt=twice))
    words = sys.stdin.readline()
    if not words.rstrip("\r\n"):
        raise ConfigError(f"nobody is here to type the {what}: {otherwise}")
    if twice and (again := sys.stdin.readline()) and again.rstrip("\r\n") != words.rstrip("\r\n"):
        raise ConfigError(f"the two lines given for the {what} differ")
    return words.rstrip("\r\n")


def confirmed(question: str, otherwise: str = "--yes") -> bool:
    """Whether somebody says yes. Raises ConfigError, with what to do `otherwise`, if nobody is here to answer."""
    try:
        return click.confirm(question)
    except click.Abort as stopped:
        if isinstance(stopped.__context__, EOFError):  # no terminal, and an empty pipe
            raise ConfigError(f"nobody is here to answer that: {otherwise}, or a terminal") from stopped
        raise
