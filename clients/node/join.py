"""Joining: the invitation that is kept until it is used, and the round trips that prove that a node is in.

Each proof is made by what will do the work later, or over the same way: the lane's port by a call with the
institution's certificate, the fleet by the agency's own view of the SuperNode, the gateway by what it last wrote.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from sovfed.clients.node.agency import ask, mutual_channel
from sovfed.clients.node.enrol import lane_of, load_institution
from sovfed.clients.node.renewal import last_contact
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import private_directory, read_bounded, read_private, write_private
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import REGISTRY_SERVICE, Invitation
from sovfed.federation.wire.proxy import proxy_for
from sovfed.federation.wire.reach import Pinned, UnreachableError, look_at_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sovfed.federation.config import ClientConfig

KEPT: Final = "invitation.json"
ECHO_BYTES: Final = 256 * 1024
LOOK_S: Final = 0.5


def keep_invitation(home: Path, invitation: Invitation) -> None:
    """Remember an invitation whose root the operator has confirmed, so that `join` can be repeated without it."""
    write_private(private_directory(private_directory(home) / "identity") / KEPT, invitation.to_json().encode())


def kept_invitation(home: Path) -> Invitation | None:
    """The invitation that `keep_invitation` left; None if there is none."""
    path = home / "identity" / KEPT
    return Invitation.from_json(read_private(path).decode()) if path.exists() else None


def forget_invitation(home: Path) -> None:
    """Remove what was kept: its token is spent."""
    (home / "identity" / KEPT).unlink(missing_ok=True)


def check_invitation(home: Path, invitation: Invitation, now: float) -> None:
    """Raises IdentityError if its time is over before the request was sent, which would be refused."""
    if now >= invitation.expires and not (home / "identity" / "request.csr").exists():
        ended = time.strftime("%F", time.gmtime(invitation.expires))
        raise IdentityError(
            f"the invitation of {invitation.institution!r} ended on {ended}, by this clock it is "
            f"{time.strftime('%F', time.gmtime(now))}; look at the clock, or ask the agency for a new one"
        )


def prove(
    home: Path, config: ClientConfig, timeout_s: float, told: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """What holds of a node that runs, a line each. Raises ServiceError or IdentityError on the first that does not.

    `told` is given what is waited for.
    """
    institution, deadline = load_institution(home), time.monotonic() + timeout_s
    fleet = config.fleet_address or institution.fleet_address
    yield f"fleet: {_fleet_port(home, config, fleet)}"
    lane = lane_of(home, config.lane_address)
    with mutual_channel(home, lane, config.proxy) as channel:
        data, began = os.urandom(ECHO_BYTES), time.monotonic()
        probe = pb.ProbeRequest(echo=data)
        reply = ask(channel, f"/{REGISTRY_SERVICE}/Probe", probe, pb.ProbeReply, f"lane port {lane}")
        if reply.echo != data or reply.institution != institution.name:
            raise ServiceError(f"lane port {lane}: what came back is not what was sent")
        seconds = time.monotonic() - began
        yield f"lane: {ECHO_BYTES >> 10} KiB to {lane} and back in {seconds:.2f} s"
        roster = ask(channel, f"/{REGISTRY_SERVICE}/Roster", pb.Empty(), pb.RosterReply, f"roster from {lane}")
        own = read_bounded(home / "identity" / "cert.pem")
        if not any(member.institution == institution.name and member.certificate == own for member in roster.members):
            raise IdentityError(f"the agency's roster of {len(roster.members)} does not hold our certificate")
        yield f"roster: {institution.name} is one of {len(roster.members)}"
        while reply.fleet != "online":
            _wait(deadline, timeout_s, f"the agency sees our SuperNode {reply.fleet or 'not at all'}", told)
            reply = ask(channel, f"/{REGISTRY_SERVICE}/Probe", pb.ProbeRequest(), pb.ProbeReply, f"lane port {lane}")
        yield f"supernode: the agency sees node {reply.node_id} online"
    while (contact := last_contact(home)) is None or contact.problem:
        _wait(deadline, timeout_s, contact.problem if contact else "the gateway has not reached the agency yet", told)
    yield "gateway: has fetched the revocation list"


def _fleet_port(home: Path, config: ClientConfig, address: str) -> str:
    identity = home / "identity"
    pinned = Pinned(read_bounded(identity / "root.pem").decode(), (identity / "cert.pem", identity / "key.pem"))
    try:
        return look_at_clock(address, pinned, proxy_for(address, config.proxy, home))
    except UnreachableError as error:
        raise ServiceError(f"fleet port: {error}; {error.fix}") from error


def _wait(deadline: float, timeout_s: float, what: str, told: Callable[[str], None]) -> None:
    told(what)
    if time.monotonic() > deadline:
        raise ServiceError(f"not within {timeout_s:g} s: {what}; its log says more: `sovfed client logs supernode`")
    time.sleep(LOOK_S)
