"""What the institutions' privacy ledgers stood at, kept by the agency: a ledger cut short or rolled back is noticed.

`ledger-heads.json` holds, for each institution and dataset, the newest head that was countersigned. The institution
checks the signature against its own root, and that its ledger had this head; if not, it pays for nothing more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from filelock import FileLock

from sovfed.federation.files import write_private
from sovfed.federation.flower import StreamingGrid
from sovfed.federation.messages import LedgerReply, LedgerRequest
from sovfed.federation.secagg.keys import Identity, signed_head
from sovfed.server.aggregation import ask

log = logging.getLogger(__name__)
FILE: Final = "ledger-heads.json"
TIMEOUT_S: Final = 30.0
HEAD_BYTES: Final = 32


class LedgerHeads:
    """The heads in `home`, countersigned by `identity` for the runs of one coordinator."""

    def __init__(self, home: Path, identity: Identity) -> None:
        self._path, self._identity = home / FILE, identity

    def countersign(self, grid: StreamingGrid, run: str, institutions: Mapping[int, str]) -> dict[str, str]:
        """Show each node's ledger the head that we know of it, then sign and keep its newest; by institution.

        An institution that does not answer, or whose ledger never had that head, is left out with a warning: it is its
        own trainer that refuses to go on.
        """
        with FileLock(self._path.with_suffix(".lock"), mode=0o600):
            known: dict[str, dict[str, str]] = json.loads(self._path.read_text()) if self._path.exists() else {}
            empty = dict.fromkeys(institutions, b"")
            found = self._ask(grid, run, empty, institutions)
            old = {node: known.get(institutions[node], {}).get(name, "") for node, (name, _) in found.items()}
            behind = {node: bytes.fromhex(head) for node, head in old.items() if head not in ("", found[node][1].hex())}
            agreed = self._ask(grid, run, behind, institutions)
            found = {node: one for node, one in found.items() if node not in behind or node in agreed}
            signed = self._ask(grid, run, {node: head for node, (_, head) in found.items()}, institutions)
            for node, (name, _) in signed.items():
                known.setdefault(institutions[node], {})[name] = found[node][1].hex()
            write_private(self._path, json.dumps(known, indent=2, sort_keys=True).encode())
        return {institutions[node]: found[node][1].hex() for node in sorted(signed)}

    def _ask(
        self, grid: StreamingGrid, run: str, heads: Mapping[int, bytes], institutions: Mapping[int, str]
    ) -> dict[int, tuple[str, bytes]]:
        """(dataset, newest head) of each node that has or accepts its head of `heads`."""
        certificate = np.frombuffer(self._identity.certificate, np.uint8)
        requests = {
            node: LedgerRequest(
                run=run, head=np.frombuffer(head, np.uint8), certificate=certificate,
                signature=np.frombuffer(self._identity.sign(signed_head(head)) if head else b"", np.uint8),
            )
            for node, head in heads.items()
        }  # fmt: skip
        found = {}
        for answer in ask(grid, requests, LedgerReply, TIMEOUT_S) if requests else ():
            if answer.reply is not None and answer.reply.head.size == HEAD_BYTES:
                found[answer.node_id] = (answer.reply.dataset, answer.reply.head.tobytes())
            else:
                log.warning(
                    "%s: its privacy ledger was not countersigned: %s",
                    institutions[answer.node_id], answer.refusal or "malformed",
                )  # fmt: skip
        return found
