"""Crowds at the superlink's doors: a stranger, a revoked institution or a local user keeps nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from tests.server.agency import (
    Authority,
    Institution,
    make_home,
    make_institution,
    network_client,
    post,
    server_config,
    superlink,
    wait_until,
)
from tests.server.crowd import crowding, half_request, tcp

from sovfed.federation.files import write_atomic
from sovfed.server.network import door as door_module
from sovfed.server.network.door import PER_INSTITUTION, Door, listen, raise_descriptor_limit


@contextlib.contextmanager
def connections(door: Door, count: int, address: str = "192.0.2.1") -> Iterator[list[tuple[str, int]]]:
    """`count` connections from `address` that came in through `door`; their names."""
    names = [(address, 1000 + number) for number in range(count)]
    with contextlib.ExitStack() as stack:
        for name in names:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            if not door.enter(ours, name):
                ours.close()
        yield names


def leaving(door: Door) -> set[tuple[str, int]]:
    return {name for name, guest in door._guests.items() if guest.leaving}


def test_a_crowd_of_one_address_pushes_out_its_own_oldest() -> None:
    door = Door(100, unproven_per_address=3)
    with connections(door, 2, "192.0.2.9") as others, connections(door, 5) as crowd:
        assert leaving(door) == set(crowd[:2])
        assert not leaving(door) & set(others)


def test_who_has_shown_a_certificate_is_not_pushed_out_by_a_crowd() -> None:
    door = Door(100, unproven_per_address=3)
    with connections(door, 1) as known:
        door.prove(known[0], "hospital-1")
        with connections(door, 90, "192.0.2.2") as crowd:
            assert leaving(door) == set(crowd[:-3])


def test_a_crowd_of_many_addresses_leaves_room_for_the_next() -> None:
    door = Door(100)
    with contextlib.ExitStack() as stack:
        for number in range(200):
            stack.enter_context(connections(door, 1, f"192.0.2.{number}"))
        assert len(door) <= 100
        for name in leaving(door):
            door.leave(name)  # the loop has closed them
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert door.enter(ours, ("198.51.100.1", 1))


def test_an_institution_over_its_limit_loses_its_own_oldest_connection() -> None:
    door = Door(100)
    with connections(door, 2, "192.0.2.9") as others, connections(door, PER_INSTITUTION + 2) as many:
        for name in others:
            door.prove(name, "hospital-2")
        for name in many:
            door.prove(name, "hospital-1")
        assert leaving(door) == set(many[:2])


def test_who_shows_nothing_in_time_is_sent_away_and_who_did_is_not() -> None:
    door = Door(100)
    with connections(door, 2) as names:
        door.prove(names[0], "hospital-1")
        for name in names:
            door.expire(name)
        assert leaving(door) == {names[1]}


def test_a_full_listener_refuses_and_never_counts_beyond_its_limit() -> None:
    door = Door(8)
    with connections(door, 20, "192.0.2.1") as names:
        assert len(door) == 8
        for name in names[:8]:
            door.leave(name)
        assert len(door) == 0


def test_a_closed_connection_is_counted_no_more() -> None:
    async def count() -> list[int]:
        door = Door(10)
        with listen("127.0.0.1", 0, door) as listener:
            listener.listen()
            with socket.create_connection(listener.getsockname()):
                connection, _ = listener.accept()
                before = len(door)
                connection.close()
                return [before, len(door)]

    assert asyncio.run(count()) == [1, 0]


def test_the_limit_of_open_files_is_raised_as_far_as_it_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# Real processes ----------------------------------------------------------------------------------------------------


def comes_in(port: int, node: Institution, node_id: int) -> bool:
    """Whether the institution's heartbeat is answered within 5 s, over a connection of its own."""
    request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=30.0)
    with network_client(port, node.folder) as client:
        client.timeout = httpx.Timeout(5.0)
        try:
            return post(client, "/v1/fleet/send-node-heartbeat", request, node.headers()).status_code == 200
        except httpx.HTTPError:
            return False


def answered(attempt: Callable[[], bool], seconds: float) -> tuple[int, int]:
    """(successes, attempts) of `attempt`, one after another for `seconds`."""
    found, deadline = list[bool](), time.monotonic() + seconds
    while time.monotonic() < deadline:
        found.append(attempt())
        time.sleep(0.1)
    return sum(found), len(found)


@pytest.mark.deploy
@pytest.mark.parametrize("side", ["network", "loopback"])
def test_a_crowd_without_credentials_stops_neither_runs_nor_institutions_nor_the_log(tmp_path: Path, side: str) -> None:
    """More idle connections than the process may have files open, for longer than any of the deadlines."""
    authority = Authority()
    home = make_home(authority, tmp_path / "agency")
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    config = server_config(home)
    log = home / "logs" / "superlink.log"
    with superlink(home, config, descriptors=256) as (child, control):
        node_id = control.register_node(hospital.public_key, "hospital-1")
        assert comes_in(config.fleet_port, hospital, node_id)
        log.write_text(log.read_text() + "THE LINE BEFORE\n")
        port = config.fleet_port if side == "network" else config.control_port
        with crowding(tcp(port), 300) as crowd:
            wait_until(lambda: crowd.opened > 300, what="the crowd")
            nodes, asked = answered(control.alive, 6.0)
            fleet, tried = answered(lambda: comes_in(config.fleet_port, hospital, node_id), 6.0)
            listed = control.list_nodes()  # Control over the loopback, with its secret
            files = len(list(Path(f"/proc/{child.pid}/fd").iterdir()))
    assert child.returncode in (0, -15)
    # Without the guard none gets in. A busy machine may close some that were slow to say who they are.
    assert nodes >= 0.7 * asked, "the loopback side answers"
    assert fleet >= 0.7 * tried, "institutions get in at the first try, though they share the crowd's address"
    assert [node.node_id for node in listed]
    assert files < 256
    text = log.read_text()
    assert "THE LINE BEFORE" in text
    assert "out of system resource" not in text
    assert len(text) < 200_000


@pytest.mark.deploy
@pytest.mark.parametrize("who", ["revoked", "enrolled"])
def test_connections_of_one_institution_keep_no_other_out(tmp_path: Path, who: str) -> None:
    """A revoked one may not hold any; one that is enrolled holds a few, and both lose their own."""
    authority = Authority()
    home = make_home(authority, tmp_path / "agency")
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    hostile = make_institution(authority, tmp_path / "hostile", "hospital-6")
    config = server_config(home)
    if who == "revoked":
        authority.revoked.append((hostile.serial, authority.now))
        write_atomic(home / "identity" / "crl.pem", authority.crl())
    with superlink(home, config, descriptors=256) as (_, control):
        node_id = control.register_node(hospital.public_key, "hospital-1")
        with crowding(half_request(config.fleet_port, hostile.folder), 150) as crowd:
            wait_until(lambda: crowd.opened >= 150, 60.0, what="the crowd")
            fleet, tried = answered(lambda: comes_in(config.fleet_port, hospital, node_id), 8.0)
            most = len([one for one in crowd.held if one.fileno() >= 0])
        assert control.alive()
    assert fleet >= 0.9 * tried
    assert most <= 150
    text = (home / "logs" / "superlink.log").read_text()
    assert ("does not hold" in text) == (who == "revoked")


@pytest.mark.deploy
def test_a_request_without_end_and_a_connection_without_a_word_are_ended(tmp_path: Path) -> None:
    authority = Authority()
    home = make_home(authority, tmp_path / "agency")
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    config = server_config(home)
    with superlink(home, config):
        for connect in (half_request(config.fleet_port, hospital.folder), tcp(config.fleet_port)):
            with connect() as connection:
                connection.settimeout(door_module.HEAD_S + 5.0)
                start = time.monotonic()
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100) == b""
                assert time.monotonic() - start < door_module.HEAD_S + 4.0
