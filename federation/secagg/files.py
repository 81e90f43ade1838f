"""Secure aggregation's files: an identity's folder as an `Identity`, and what an institution stores between messages.

H/secagg/ (0700) holds the journal, made at enrolment and never again, and one session file per run (0600).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.certificates import key_from_pem, to_der
from sovfed.federation.decoded import certificates_of
from sovfed.federation.errors import ServiceError
from sovfed.federation.files import private_directory, read_bounded, read_private, write_private
from sovfed.federation.identity import Trust, parse_certificate, read_pair
from sovfed.federation.secagg.compaction import essence
from sovfed.federation.secagg.history import Entry, History
from sovfed.federation.secagg.journal import Journal, read_history
from sovfed.federation.secagg.keys import Identity, Named, Signer, signer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)
FOLDER: Final = "secagg"
JOURNAL: Final = "journal"
COMPACT_BYTES: Final = 1_000_000  # a journal that is smaller is left as it is
MAX_SESSIONS: Final = 16  # the newest; a run without one is joined again, until compaction has closed it
FORMER: Final = "former.pem"  # in identity/: certificates of keys that this institution had


def load_identity(folder: Path) -> Identity:
    """The certificate and key in an `identity/` folder, and its root and revocation list as judges of others.

    Raises IdentityError.
    """
    trust = Trust(folder)
    key, certificate = read_pair(folder)
    former = certificates_of(read_bounded(path), str(path)) if (path := folder / FORMER).exists() else ()
    return Identity(
        to_der(parse_certificate(certificate, str(folder / "cert.pem"))), signer(key_from_pem(key, "key.pem")),
        trust.verify, trust.verify_server, tuple(map(to_der, former)),
    )  # fmt: skip


class FreshIdentity:
    """`load_identity` of a folder, loaded again once key, certificate or roots were replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: tuple[tuple[int, ...], Identity] | None = None

    def __call__(self) -> Identity:
        stamp = tuple((self._folder / name).stat().st_mtime_ns for name in ("cert.pem", "key.pem", "root.pem"))
        if self._loaded is None or self._loaded[0] != stamp:
            self._loaded = (stamp, load_identity(self._folder))
        return self._loaded[1]


class FollowingIdentity(Identity):
    """The identity that is in place whenever it is asked, for a coordinator, whose run may outlive a certificate.

    Its key must stay: what was signed before is looked at with the key of the certificate that went with it.
    """

    def __init__(self, folder: Path) -> None:
        object.__setattr__(self, "_fresh", FreshIdentity(folder))
        self._now()

    def _now(self) -> Identity:
        fresh: FreshIdentity = vars(self)["_fresh"]
        return fresh()

    @property
    def certificate(self) -> bytes:
        return self._now().certificate

    @property
    def sign(self) -> Signer:
        return self._now().sign

    @property
    def verify(self) -> Callable[[bytes], Named]:
        return self._now().verify

    @property
    def verify_server(self) -> Callable[[bytes], object]:
        return self._now().verify_server

    @property
    def former(self) -> tuple[bytes, ...]:
        return self._now().former


def create_journal(home: Path) -> None:
    """Make the journal of an institution that enrols; one that is there already goes on."""
    path = private_directory(home / FOLDER) / JOURNAL
    if not path.exists():
        Journal.create(path)


def near_sums(home: Path) -> list[str]:
    """The newest sums that could be differenced with an earlier one, each a sentence, in the order of their opening.

    Raises ServiceError if there is a journal that cannot be read.
    """
    path = home / FOLDER / JOURNAL
    if not path.exists():
        return []
    history = read_history(path)
    return [history.describe_near(*pair) for pair in history.near]


class FileStore:
    """The journal and the sessions of one institution's home. Raises ServiceError if the journal is missing."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self._journal = Journal(self._folder / JOURNAL)
        self._next_compaction = COMPACT_BYTES
        self._compact()

    @property
    def history(self) -> History:
        return self._journal.history

    def commit(self, entries: Iterable[Entry]) -> None:
        self._journal.commit(entries)

    def close(self) -> None:
        self._journal.close()

    def save_session(self, run: bytes, session: bytes) -> None:
        write_private(self._path(run), session)
        sessions = sorted(self._folder.glob("*.session"), key=lambda path: path.stat().st_mtime_ns)
        for old in sessions[:-MAX_SESSIONS]:
            old.unlink()
        self._compact()

    def _compact(self) -> None:
        """Forget the rounds of runs whose session is gone, once the journal has grown to twice what was left last."""
        if self._journal.size_bytes < self._next_compaction:
            return
        live = {bytes.fromhex(path.stem) for path in self._folder.glob("*.session")}
        try:
            self._journal.rewrite(essence(self._journal.entries(), live))
        except ServiceError as error:  # nothing is lost but room
            log.warning("%s", error)
        self._next_compaction = max(COMPACT_BYTES, 2 * self._journal.size_bytes)

    def load_session(self, run: bytes) -> bytes | None:
        path = self._path(run)
        return read_private(path) if path.exists() else None

    def _path(self, run: bytes) -> Path:
        return self._folder / f"{run.hex()}.session"


class MemoryStore:
    """The same for an institution of a simulation, which no crash outlives."""

    def __init__(self) -> None:
        self.history = History()
        self._sessions: dict[bytes, bytes] = {}

    def commit(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.history.add(entry)

    def save_session(self, run: bytes, session: bytes) -> None:
        self._sessions[run] = session

    def load_session(self, run: bytes) -> bytes | None:
        return self._sessions.get(run)
