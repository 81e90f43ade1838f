"""What the institutions' privacy ledgers stood at, kept by the agency: a ledger rolled back or copied is noticed.

`ledger-heads.json` holds, for each institution, the newest head that it told, with its own signature. Each private run
shows it to the institution again, which proves to it what it had, and countersigns the newest for that run; before an
institution has accepted that, its ledger pays for nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from filelock import FileLock

from sovfed.federation.errors import IdentityError, SovfedError
from sovfed.federation.files import read_object, write_private
from sovfed.federation.messages import LedgerReply, LedgerRequest
from sovfed.federation.schema import bind, bounded
from sovfed.federation.secagg.keys import Identity, check_signature, countersigned_head, public_key, told_head
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.rounds.aggregation import ask

log = logging.getLogger(__name__)
FILE: Final = "ledger-heads.json"
BEHIND: Final = "ledgers-behind.json"
TIMEOUT_S: Final = 30.0
EVERY_ROUNDS: Final = 20  # so many rounds at most of a ledger that is rolled back within a run stay unnoticed
FAILURES: Final = 3  # in a row, after which an institution that does not agree is asked as rarely as the others
HEAD_BYTES: Final = 32


@dataclass(frozen=True)
class Head:
    """Entry `seq` of an institution's ledger, as the institution itself signed it; hexadecimal."""

    seq: int = bounded(low=0, high=2**53)
    head: str = bounded(low=2 * HEAD_BYTES, high=2 * HEAD_BYTES)
    own: str = bounded(low=2, high=1_000)


class LedgerHeads:
    """The heads in `home`, countersigned by `identity` for the runs of one coordinator."""

    def __init__(self, home: Path, identity: Identity) -> None:
        self._path, self._identity = home / FILE, identity
        self._rounds = 0
        self._next: dict[int, int] = {}  # by node: the round before which its ledger is due again
        self._failed: dict[int, int] = {}  # by node: how often in a row

    def before_round(self, grid: StreamingGrid, run: str, nodes: Iterable[int], refused: Collection[int]) -> None:
        """Countersign the ledgers of those `nodes` that came late, refused the last round, or were long not asked.

        A trainer that was started anew refuses, as it has seen no head since.
        """
        self._rounds += 1
        due = [
            node
            for node in nodes
            if self._rounds >= self._next.get(node, 0) or (node in refused and not self._failed.get(node))
        ]
        if due:
            names = names_of(grid)
            self.countersign(grid, run, {node: names[node] for node in due if node in names})

    def countersign(self, grid: StreamingGrid, run: str, institutions: Mapping[int, str]) -> dict[str, str]:
        """Show each node's ledger the head that we know of it, then keep and sign its newest; by institution.

        An institution that does not answer, or whose ledger lacks that head, is left out with a warning: it is its own
        trainer that refuses to go on.
        """
        known = self._read()
        reported = self._ask(grid, run, dict.fromkeys(institutions), institutions)
        old = {node: known[institutions[node]] for node in reported if institutions[node] in known}
        behind = {node: head for node, head in old.items() if head.head != reported[node].head}
        agreed = self._ask(grid, run, behind, institutions)
        newest = {
            node: agreed.get(node, head) for node, head in reported.items() if node not in behind or node in agreed
        }
        self._keep({institutions[node]: head for node, head in newest.items()}, known)
        note_behind(self._path.parent, *({institutions[node] for node in nodes} for nodes in (reported, newest)))
        signed = self._ask(grid, run, newest, institutions)
        for node in institutions:
            self._failed[node] = 0 if node in signed else self._failed.get(node, 0) + 1
            soon = 0 < self._failed[node] < FAILURES
            self._next[node] = self._rounds + (1 if soon else EVERY_ROUNDS)
        return {institutions[node]: newest[node].head for node in sorted(signed)}

    def _ask(
        self, grid: StreamingGrid, run: str, heads: Mapping[int, Head | None], institutions: Mapping[int, str]
    ) -> dict[int, Head]:
        """The newest head of each node that has, or accepts, its head of `heads`."""
        requests = {node: self._request(run, head) for node, head in heads.items()}
        heads_by_node = {}
        for answer in ask(grid, requests, LedgerReply, TIMEOUT_S) if requests else ():
            name = institutions[answer.node_id]
            try:
                if answer.reply is None:
                    raise IdentityError(answer.refusal)
                heads_by_node[answer.node_id] = self._verified(answer.reply, name)
            except SovfedError as error:
                log.warning("%s: its privacy ledger was not countersigned: %s", name, error)
        return heads_by_node

    def _request(self, run: str, head: Head | None) -> LedgerRequest:
        nothing = np.zeros(0, np.uint8)
        if head is None:
            return LedgerRequest(run=run, head=nothing, own=nothing, certificate=nothing, signature=nothing)
        raw = bytes.fromhex(head.head)
        return LedgerRequest(
            run=run, seq=head.seq, head=np.frombuffer(raw, np.uint8),
            own=np.frombuffer(bytes.fromhex(head.own), np.uint8),
            certificate=np.frombuffer(self._identity.certificate, np.uint8),
            signature=np.frombuffer(self._identity.sign(countersigned_head(run, head.seq, raw)), np.uint8),
        )  # fmt: skip

    def _verified(self, reply: LedgerReply, name: str) -> Head:
        """The head of `reply`, if the institution `name` signed it. Raises IdentityError."""
        certificate, head = reply.certificate.tobytes(), reply.head.tobytes()
        holder = self._identity.verify(certificate).institution
        if holder != name or len(head) != HEAD_BYTES:
            raise IdentityError(f"a head of {len(head)} bytes by '{holder}'")
        signature = reply.signature.tobytes()
        check_signature(public_key(certificate), told_head(reply.seq, head), signature, "the ledger's head")
        return Head(reply.seq, head.hex(), signature.hex())

    def _read(self) -> dict[str, Head]:
        """The heads that are known. What an older version kept, without signatures of institutions, proves nothing."""
        if not self._path.exists():
            return {}
        heads = {}
        for name, entry in read_object(self._path).items():
            try:
                heads[name] = bind(Head, entry, name)
            except SovfedError as error:
                log.warning("%s: %s", self._path, error)
        return heads

    def _keep(self, heads: Mapping[str, Head], shown: Mapping[str, Head]) -> None:
        """Put `heads` in place of those `shown`, or of older ones: another run may have put newer ones by now."""
        if not heads:
            return
        with FileLock(self._path.with_suffix(".lock"), mode=0o600):
            known = self._read()
            for name, head in heads.items():
                if name not in known or known[name] == shown.get(name) or head.seq >= known[name].seq:
                    known[name] = head
            text = json.dumps({name: asdict(head) for name, head in known.items()}, indent=2, sort_keys=True)
            write_private(self._path, text.encode())


def behind(home: Path) -> list[str]:
    """The institutions whose ledger lacks a head that they signed, as the agency saw when it asked last."""
    try:
        return [str(name) for name in json.loads((home / BEHIND).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def note_behind(home: Path, asked: Collection[str], sound: Collection[str]) -> None:
    """Keep, of those `asked`, the ones that are not `sound` as behind, for whoever watches the agency."""
    before = set(behind(home))
    now = (before - set(asked)) | (set(asked) - set(sound))
    if now != before:
        write_private(home / BEHIND, json.dumps(sorted(now)).encode())


def names_of(grid: StreamingGrid) -> dict[int, str]:
    """The institutions that are there, by node."""
    return {node.node_id: node.name or str(node.node_id) for node in grid.get_nodes()}
