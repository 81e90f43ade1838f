"""`sovfed server admit`: invitation, request, the authority's yes and acceptance of one institution, in one command."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.asking import confirmed
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from sovfed.server.registry.enrolment import Waiting

LOOK_S: Final = 1.0
TOLD_EVERY_S: Final = 60.0


def admit(
    home: Path, name: str, *, authority_home: Path | None, key: str | None, yes: bool, out: Path | None,
    timeout_s: float,
) -> None:  # fmt: skip
    """Take institution `name` from wherever it is to being enrolled; what is done, and by whom, is printed.

    With `timeout_s` 0 nothing is waited for. Raises IdentityError if the authority says no.
    """
    from sovfed.server.registry.enrolment import members
    from sovfed.server.up import require_certified

    require_certified(home)
    if any(member.institution == name for member in members(home)) and not _waits(home, name):
        click.echo(f"{name} is enrolled already")
        return
    if _waits(home, name) is None:
        _invite(home, name, out or Path(f"{name}.invitation"))
    request = _request(home, name, timeout_s)
    if request is None:
        click.echo(f"next, after `sovfed client join`: `sovfed server admit {name} --home {home}`")
        return
    _decide(home, request, authority_home, key, yes)


def _invite(home: Path, name: str, out: Path) -> None:
    from sovfed.federation.certificates import certificate_fingerprint
    from sovfed.federation.files import alone, check_writable
    from sovfed.federation.identity import parse_certificate
    from sovfed.federation.wire.enrolment import Invitation
    from sovfed.server.registry.joining import join_options

    check_writable(out)
    with alone(out.absolute().parent):  # of two at once, the first one's file would hold an invitation that is void
        _write_invitation(home, name, out)
    invited = Invitation.from_json(out.read_text(encoding="utf-8"))
    root = certificate_fingerprint(parse_certificate(invited.root.encode(), str(out)))
    options = join_options(home)
    click.echo(f"there: `sovfed client join {out.name} --data …{options}`")
    if "--officers" in options:
        click.echo("--officers: a person there signs each run, and people here have approved it; theirs to choose")
    click.echo(f"the authority tells them its fingerprint\n  {root}")


def _write_invitation(home: Path, name: str, out: Path) -> None:
    """Unless one that is still good was written there before."""
    from sovfed.federation.files import write_private
    from sovfed.server.registry.enrolment import invite, invited_until

    if out.exists() and (until := invited_until(home, name)) and until > time.time():
        click.echo(f"{out} was written before, and is good until {datetime.fromtimestamp(until, UTC):%F %R} UTC")
    else:
        write_private(out, invite(home, name).to_json().encode())
        click.echo(f"wrote {out}: give it to {name} by a way that nobody else reads")


def _request(home: Path, name: str, timeout_s: float) -> Waiting | None:
    """The request of `name` once it is there; None if it does not come in time."""
    began = told = time.monotonic()
    while (request := _waits(home, name)) is None or request.path is None or not request.path.exists():
        now = time.monotonic()
        if now - began >= timeout_s:
            return None
        if now - told >= TOLD_EVERY_S or told == began:
            click.echo(f"waiting for the request of {name} (Ctrl-C: the same command goes on)", err=True)
            told = now + LOOK_S / 2
        time.sleep(LOOK_S)
    return request


def _decide(home: Path, request: Waiting, authority_home: Path | None, key: str | None, yes: bool) -> None:
    """Have the authority sign, if its key is at hand and it says yes; else print what it has to do."""
    from sovfed.server.registry import authority
    from sovfed.server.registry.enrolment import accept_certificate

    path, name = request.path, request.name
    if path is None:
        raise ServiceError(f"{name}: its request is not there")
    click.echo(f"request of {name}: key fingerprint\n  {request.key}")
    if authority_home is None or not (authority_home / authority.REGISTER).exists():
        drop = home / "registry" / "certificates" / f"{name}.pem"
        click.echo(
            "the authority is elsewhere. On its machine, once it has compared the fingerprint with the institution:\n"
            f"  sovfed authority sign {path} --out {name}.pem\n"
            f"put {name}.pem to {drop} (the server takes it in by itself), or `sovfed server accept {name}.pem`"
        )
        return
    if key is not None and "".join(key.split()).replace(":", "").lower() != request.key:
        raise IdentityError(f"{name}: not admitted, the authority was told the fingerprint {visible(key)}")
    question = f"Authority: did {name} itself (by telephone) tell this fingerprint?"
    if key is None and not yes and not confirmed(question):
        raise IdentityError(f"{name}: not admitted, the fingerprint was not confirmed")
    from sovfed.server.cli.authority import passphrase_for

    pem = authority.sign(authority_home, path.read_bytes(), passphrase=passphrase_for(authority_home))
    click.echo(f"{accept_certificate(home, pem)} is admitted; it comes online by itself")


def _waits(home: Path, name: str) -> Waiting | None:
    from sovfed.server.registry.enrolment import waiting

    return next((entry for entry in waiting(home) if entry.name == name and entry.state != "invited"), None)


def age(seconds: float) -> str:
    """A stretch of time in one unit: "5 min", "3 d"."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def next_step(entry: Waiting, home: Path) -> str:
    """What somebody has to do about `entry`."""
    match entry.state:
        case "invited":
            return "there: sovfed client join"
        case "renewal":
            return "nothing, if the authority tends; else sign and accept"
        case _:
            return f"sovfed server admit {entry.name} --home {home}"
