"""The least that a round over a network can cost: a bare gRPC stream with mutual TLS to each of n processes.

A vector goes to every process and comes back, in chunks of 1 MiB as the lane has; nobody looks at it, and nothing
stands between the two ends. `python -m sovfed.simulations.benchmarks.bare ADDRESS FOLDER` is such a process, whose key
and certificate are in FOLDER.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import grpc

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.federation.wire.lane import CHUNK_BYTES
from sovfed.federation.wire.lane_end import Stream

JOIN: Final = "/sovfed.Bare/Join"
JOIN_S: Final = 60.0
ROUND_S: Final = 120.0
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


def rounds(server: Path, clients: Sequence[Path], size: int, count: int) -> list[float]:
    """Seconds of each of `count` rounds of `size` bytes; the folders hold key, certificate and root of each end."""
    return asyncio.run(_rounds(server, clients, size, count))


async def _rounds(identity: Path, clients: Sequence[Path], size: int, count: int) -> list[float]:
    async with _served(identity, clients) as streams:
        payload, seconds = bytes(size), list[float]()
        for _ in range(count):
            started = time.monotonic()
            exchanges = (_exchange(stream, payload) for stream in streams)
            await asyncio.wait_for(asyncio.gather(*exchanges), ROUND_S)
            seconds.append(time.monotonic() - started)
        return seconds


@contextlib.asynccontextmanager
async def _served(identity: Path, clients: Sequence[Path]) -> AsyncIterator[list[Stream]]:
    """The streams of all clients, whose processes are ended afterwards."""
    streams, all_there, over = list[Stream](), asyncio.Event(), asyncio.Event()

    async def join(_: object, context: Context) -> None:
        streams.append(context)
        if len(streams) == len(clients):
            all_there.set()
        await over.wait()

    key, certificate, root = _identity(identity)
    credentials = grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=True)
    server = grpc.aio.server()
    service, method = JOIN.strip("/").split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.stream_stream_rpc_method_handler(join)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    with _processes(f"localhost:{port}", clients):
        try:
            await asyncio.wait_for(all_there.wait(), JOIN_S)
            yield streams
        finally:
            over.set()
            await server.stop(None)


@contextlib.contextmanager
def _processes(address: str, clients: Sequence[Path]) -> Iterator[None]:
    commands = [python_command(__spec__.name, address, str(folder)) for folder in clients]
    started = [subprocess.Popen(command, env=quiet_environment(clients[0].parent)) for command in commands]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


async def _exchange(stream: Stream, payload: bytes) -> None:
    """Send `payload` and take it back."""
    view = memoryview(payload)
    await stream.write(len(payload).to_bytes(8, "big"))
    for start in range(0, len(payload), CHUNK_BYTES):
        await stream.write(bytes(view[start : start + CHUNK_BYTES]))
    length = 0
    while length < len(payload):
        length += len(await _read(stream))


async def _read(stream: Stream) -> bytes:
    chunk = await stream.read()
    if not isinstance(chunk, bytes):
        raise ServiceError("the bare stream ended in the middle of a round")
    return chunk


def _identity(folder: Path) -> tuple[bytes, bytes, bytes]:
    key, certificate, root = ((folder / f"{name}.pem").read_bytes() for name in ("key", "cert", "root"))
    return key, certificate, root


async def answer(address: str, identity: Path) -> None:
    """Send back what comes, once it is here whole, until the server ends the stream."""
    key, certificate, root = _identity(identity)
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        streams: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(JOIN)
        with contextlib.suppress(grpc.aio.AioRpcError):  # the server is gone
            await _echo(streams())


async def _echo(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    while isinstance(head := await call.read(), bytes):
        chunks, length = list[bytes](), int.from_bytes(head, "big")
        while length > 0:
            chunks.append(await _read(call))
            length -= len(chunks[-1])
        for chunk in chunks:
            await call.write(chunk)


if __name__ == "__main__":
    asyncio.run(answer(sys.argv[1], Path(sys.argv[2])))
