"""Our secure aggregation against Flower's SecAgg+, interleaved in one process: CPU, bytes, memory, round trips.

CPU time of all threads, medians over interleaved repetitions. Ours includes hashing the model and everything from M1 to
M4, signatures, and M2 serialised and cut into frames by the lane; keys are agreed once a run, outside. The keystream
bound is one pass of the bare cipher, the faster backend, over as many bytes as the client's masks take. "After
training" is what is left to do at the client when the masks were made meanwhile: from the update to M2 and its payload.
"""

from __future__ import annotations

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sovfed.federation.messages import MaskedReply, Vector
from sovfed.federation.secagg.client import Upload
from sovfed.federation.secagg.coordinator import Aggregate, Round
from sovfed.federation.secagg.local import Federation, found, random_updates
from sovfed.federation.secagg.mask import THREADS, Backend, Stream, apply_all, fastest, hash_vector
from sovfed.federation.wire.flower import to_records
from sovfed.federation.wire.lane import CHUNK_BYTES, Outgoing
from sovfed.federation.wire.lane_codec import content_parts
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

CLIP: Final = 1.0
MAX_WEIGHT: Final = 1000
WEIGHT: Final = 500
LARGE: Final = (100, 10**6, 10)  # institutions, parameters, dropouts
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One system in one setting; CPU in milliseconds, per client the median over clients and repetitions."""

    system: str
    clients: int
    size: int
    dropouts: int
    client_cpu_ms: float
    server_cpu_ms: float
    keystream_ms: float
    bytes_up: int
    client_peak_bytes: int
    trips: int
    after_training_ms: float = 0.0
    client_ratio: float = 1.0
    server_ratio: float = 1.0
    after_training_ratio: float = 1.0
    max_error: float = 0.0


@dataclass
class Sample:
    """The figures of one round."""

    client_s: float
    server_s: float
    bytes_up: int
    trips: int
    error: float


def run(quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds.

    `quick`: n=16, d=1e6 alone against Flower; in either case one large round of ours by itself.
    """
    files.check()
    settings = [(16, 10**6, 0, 7), (16, 10**6, 2, 3)] if quick else [
        (clients, size, dropouts, 7 if size < 10**7 else 3)
        for clients in (8, 16, 32) for size in (10**5, 10**6, 10**7) for dropouts in (0, 2)
    ]  # fmt: skip
    measured_in = conditions(quick=quick, threads=THREADS)
    rows: list[Row] = []
    for clients, size, dropouts, repetitions in settings:
        with console.status(f"{clients} institutions, {size:,} parameters, {dropouts} dropouts"):
            rows += measure(clients, size, dropouts, repetitions)
        console.print(
            f"[green]✓[/] {clients} institutions, {size:,} parameters, {dropouts} dropouts: "
            f"client {rows[-2].client_ratio:.1f}×, server {rows[-2].server_ratio:.1f}× Flower's speed at 32 bits"
        )
    with console.status(f"{LARGE[0]} institutions, {LARGE[1]:,} parameters, {LARGE[2]} dropouts"):
        figures = large(*LARGE)
    report = Report(
        title="Secure aggregation: CPU of one round",
        columns=COLUMNS,
        rows=[asdict(row) for row in rows],
        ratios=_ratios(rows),
        figures=figures,
        conditions=measured_in,
        draw=lambda figure: _draw(figure, rows),
    )
    return publish(report, console, files)


COLUMNS: Final = (
    Column("system", "system"),
    Column("clients", "n"),
    Column("size", "d", "{:.0e}".format),
    Column("dropouts", "lost"),
    Column("client_cpu_ms", "client ms", "{:.1f}".format),
    Column("server_cpu_ms", "server ms", "{:.1f}".format),
    Column("after_training_ms", "after training ms", "{:.1f}".format),
    Column("keystream_ms", "keystream ms", "{:.1f}".format),
    Column("bytes_up", "bytes up", "{:,}".format),
    Column("client_peak_bytes", "peak bytes", "{:,}".format),
    Column("trips", "trips"),
    Column("client_ratio", "client ×", "{:.1f}".format),
    Column("server_ratio", "server ×", "{:.1f}".format),
    Column("after_training_ratio", "after training ×", "{:.1f}".format),
)


def large(clients: int, size: int, dropouts: int) -> dict[str, float]:
    """One round of ours with so many institutions in this process: wall seconds, CPU a client, the server's memory."""
    started = time.monotonic()
    federation = found(clients, bits=32, clip=CLIP, max_weight=MAX_WEIGHT)
    setup_s = time.monotonic() - started
    updates, lost = random_updates(clients, size), frozenset(range(dropouts))
    started = time.monotonic()
    sample = _ours(federation, 1, updates, lost)
    name = f"n{clients}_d{size:.0e}_lost{dropouts}".replace("+0", "")
    return {
        f"{name}_setup_s": setup_s,
        f"{name}_round_s": time.monotonic() - started,
        f"{name}_client_cpu_s": sample.client_s,
        f"{name}_server_cpu_s": sample.server_s,
        f"{name}_bytes_up": float(sample.bytes_up),
        f"{name}_server_peak_bytes": float(_server_peak(federation, 2, updates)),
        f"{name}_max_error": sample.error,
    }


def measure(clients: int, size: int, dropouts: int, repetitions: int) -> list[Row]:
    """Rows for Flower, ours with b=32 and ours with b=16, taken in turns."""
    updates = random_updates(clients, size)
    lost = frozenset(range(dropouts))
    federations = {bits: found(clients, bits=bits, clip=CLIP, max_weight=MAX_WEIGHT) for bits in (32, 16)}
    samples: dict[str, list[Sample]] = {"flower": [], "b32": [], "b16": []}
    after: dict[str, list[float]] = {"b32": [], "b16": []}
    for turn in range(repetitions):
        samples["flower"].append(_flower(updates, lost))
        for bits, federation in federations.items():
            samples[f"b{bits}"].append(_ours(federation, 2 * turn + 1, updates, lost))
            after[f"b{bits}"] += _after_training(federation, 2 * turn + 2, updates)
    words = {"flower": size, "b32": -(-size // 2), "b16": -(-size // 4)}
    peaks = {
        "flower": _flower_peak(clients, size),
        **{f"b{b}": _peak(f, 2 * repetitions + 1, updates) for b, f in federations.items()},
    }
    rows: list[Row] = []
    for system, turns in samples.items():
        bound = clients * keystream_s(words[system], fastest()) * 1e3
        client, server = (statistics.median(getattr(s, name) for s in turns) * 1e3 for name in ("client_s", "server_s"))
        late = statistics.median(after[system]) * 1e3 if system in after else client  # Flower does all of it then
        first = rows[0] if rows else None
        rows.append(Row(
            system, clients, size, dropouts, client, server, bound, turns[0].bytes_up, peaks[system], turns[0].trips,
            late,
            first.client_cpu_ms / client if first else 1.0,
            first.server_cpu_ms / server if first else 1.0,
            first.client_cpu_ms / late if first else 1.0,
            max(sample.error for sample in turns),
        ))  # fmt: skip
    return rows


def _flower(updates: dict[int, Vector], lost: frozenset[int]) -> Sample:
    from sovfed.simulations.benchmarks.secagg_flower import FlowerRound

    nodes = {index + 1: update for index, update in updates.items()}
    peer = FlowerRound(nodes, dict.fromkeys(nodes, WEIGHT), frozenset(index + 1 for index in lost))
    mean, server_s = peer.aggregate(max_weight=MAX_WEIGHT, clip=CLIP)
    alive = [node for node in nodes if node not in peer.lost]
    client_s = statistics.median(peer.client_cpu_s[node] for node in alive)
    bytes_up = int(statistics.median(peer.bytes_up[node] for node in alive))
    return Sample(client_s, server_s, bytes_up, peer.trips, _error(mean, updates, lost))


def _ours(federation: Federation, number: int, updates: dict[int, Vector], lost: frozenset[int]) -> Sample:
    size = updates[0].size
    model = np.full(size, number, np.float32)
    server_s = 0.0
    client_s: dict[int, float] = {}
    bytes_up: dict[int, int] = {}

    def at_server(work: Callable[[], T]) -> T:
        nonlocal server_s
        started = time.process_time()
        result = work()
        server_s += time.process_time() - started
        return result

    round_ = at_server(lambda: federation.open(number, model))
    for index, update in updates.items():
        if index in lost:
            continue
        started = time.process_time()
        upload = federation.upload(round_, index, model, update, WEIGHT)
        bytes_up[index] = _send(upload)
        client_s[index] = time.process_time() - started
        at_server(lambda: round_.take(upload.message, upload.payload))  # noqa: B023
    for holder, ask in at_server(round_.ask).items():
        if holder not in lost:
            started = time.process_time()
            answer = federation.institutions[holder].reveal(ask)
            client_s[holder] += time.process_time() - started
            bytes_up[holder] += len(answer)
            at_server(lambda: round_.answer(answer))  # noqa: B023
    aggregate: Aggregate | None = at_server(round_.solve)
    if aggregate is None:
        raise RuntimeError("too few holders to unmask")
    error = _error(aggregate.mean, updates, lost)
    return Sample(statistics.median(client_s.values()), server_s, int(statistics.median(bytes_up.values())), 2, error)


def _after_training(federation: Federation, number: int, updates: dict[int, Vector]) -> list[float]:
    """CPU seconds from the update to M2 and its payload at four institutions, their masks made before."""
    model = np.full(updates[0].size, number, np.float32)
    round_, seconds = federation.open(number, model), []
    for institution in federation.institutions[:4]:
        permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
        masks = institution.prepare(permit)
        masks.sums.run()
        started = time.process_time()
        institution.mask(permit, updates[institution.index], WEIGHT, (), masks)
        seconds.append(time.process_time() - started)
    return seconds


def _send(upload: Upload) -> int:
    """Bytes of M2 as the lane makes it: Flower's records serialised without a copy, then frames, each for gRPC."""
    reply = MaskedReply(seconds=0.0, message=np.frombuffer(upload.message, np.uint8), payload=upload.payload)
    message, sent = Outgoing(content_parts(to_records(reply))), 0
    while sent < message.size:
        sent += len(b"".join(message.slice(sent, CHUNK_BYTES)))
    return sent


def _error(mean: Vector, updates: dict[int, Vector], lost: frozenset[int]) -> float:
    """Largest deviation from the mean of the survivors, over the clip."""
    survivors = [update for index, update in updates.items() if index not in lost]
    plain = np.zeros(mean.size)
    for update in survivors:
        plain += update
    return float(np.abs(mean - plain / len(survivors)).max() / CLIP)


def keystream_s(words: int, backend: Backend) -> float:
    """CPU seconds of the bare AES-256 keystream of `words` words, best of five."""
    zeros, out = bytes(1 << 18), bytearray(1 << 18)
    iv = modes.CTR(bytes(16)) if backend == "ctr" else modes.GCM(bytes(12))
    best = float("inf")
    for _ in range(5):
        cipher = Cipher(algorithms.AES256(os.urandom(32)), iv).encryptor()
        started = time.process_time()
        for _ in range(max(1, round(8 * words / len(zeros)))):
            cipher.update_into(zeros, out)
        best = min(best, time.process_time() - started)
    return best


def mask_over_cipher(streams: int, words: int = 500_000) -> dict[Backend, float]:
    """Time of the mask kernel over that of the bare cipher for as many bytes, by either backend; one thread."""
    vector = np.zeros(words, np.uint64)
    keys = [Stream(os.urandom(32), index % 2 == 0) for index in range(streams)]
    mask_seconds: list[float] = []
    bare: dict[Backend, list[float]] = {"gcm": [], "ctr": []}
    for _ in range(7):
        started = time.process_time()
        apply_all(vector, keys, threads=1)
        mask_seconds.append(time.process_time() - started)
        for backend, times in bare.items():
            times.append(streams * keystream_s(words, backend))
    return {backend: statistics.median(mask_seconds) / statistics.median(times) for backend, times in bare.items()}


def _ratios(rows: list[Row]) -> dict[str, float]:
    """What is gated; the large setting is measured without `quick` only."""
    by_setting = {(row.clients, row.size, row.dropouts, row.system): row for row in rows}
    quotients: dict[str, float] = {}
    for bits in ("b32", "b16"):
        row = by_setting[16, 10**6, 0, bits]
        quotients |= {
            f"client_{bits}": row.client_ratio,
            f"after_training_{bits}": row.after_training_ratio,
            f"server_{bits}": row.server_ratio,
        }
        large = by_setting.get((32, 10**7, 0, bits))
        if large:
            quotients |= {
                f"client_{bits}_n32_d1e7": large.client_ratio,
                f"after_training_{bits}_n32_d1e7": large.after_training_ratio,
                f"server_{bits}_n32_d1e7": large.server_ratio,
            }
    many, few = mask_over_cipher(32), mask_over_cipher(8)
    return quotients | {
        "mask_over_gcm": many["gcm"],
        "mask_over_gcm_n8": few["gcm"],
        "mask_over_backend": many[fastest()],
        "mask_over_backend_n8": few[fastest()],
    }


def _peak(federation: Federation, number: int, updates: dict[int, Vector]) -> int:
    """Most bytes allocated by a client while it masks, payload included and its update not."""
    model = np.full(updates[0].size, number, np.float32)
    round_ = federation.open(number, model)
    return _traced(lambda: federation.upload(round_, 0, model, updates[0], WEIGHT))


def _flower_peak(clients: int, size: int) -> int:
    """The same for Flower's stage that quantises and masks, run once more by itself."""
    from sovfed.simulations.benchmarks.secagg_flower import collect_stage

    return _traced(collect_stage(clients, size, MAX_WEIGHT, CLIP))


def _traced(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _server_peak(federation: Federation, number: int, updates: dict[int, Vector]) -> int:
    """Most bytes that the coordinator allocates while it takes 20 uploads one after the other; they are not its own."""
    model = np.full(updates[0].size, number, np.float32)
    round_: list[Round] = []
    opened = _traced(lambda: round_.append(federation.open(number, model)))
    uploads = [federation.upload(round_[0], index, model, updates[index], WEIGHT) for index in list(updates)[:20]]

    def add_all() -> None:
        for upload in uploads:
            round_[0].take(upload.message, upload.payload)
        round_[0].settle()

    return opened + _traced(add_all)


def _draw(figure: Figure, rows: list[Row]) -> None:
    """Client and server CPU over n for every d, without dropouts."""
    sizes = sorted({row.size for row in rows})
    figure.set_size_inches(4 * len(sizes), 6)
    axes = figure.subplots(2, len(sizes), squeeze=False)
    for column, size in enumerate(sizes):
        for line, side in enumerate(("client_cpu_ms", "server_cpu_ms")):
            axis = axes[line][column]
            for system, label in (("flower", "Flower"), ("b32", "sovfed, 32 bits"), ("b16", "sovfed, 16 bits")):
                shown = [row for row in rows if (row.system, row.size, row.dropouts) == (system, size, 0)]
                axis.plot([row.clients for row in shown], [getattr(row, side) for row in shown], "o-", label=label)
            axis.set(
                xticks=sorted({row.clients for row in rows}),
                yscale="log",
                xlabel="institutions",
                ylabel=f"{side.split('_')[0]} CPU [ms]",
                title=f"d = {size:.0e}",
            )
            axis.legend()
