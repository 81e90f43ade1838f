"""What the authority does by itself for an agency whose folder it reaches: endorsed renewals, and fresh lists.

    AGENCY/registry/requests/NAME.renewal   ──▶  signed  ──▶   AGENCY/registry/certificates/NAME.pem
    AGENCY/registry/requests/NAME.csr       a new institution: never signed here, a person compares its fingerprint

The folder may be the agency's own, or a copy of it that somebody carries to and fro.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sovfed.federation.errors import IdentityError, SovfedError
from sovfed.federation.files import private_directory, read_bounded, read_plain, write_atomic
from sovfed.federation.renewal import read_renewal
from sovfed.federation.revocation import load_crl
from sovfed.federation.roots import FILE as HANDOVER
from sovfed.federation.text import NAME, NAME_IN_WORDS
from sovfed.server.registry import authority
from sovfed.server.registry.enrolment import RENEWAL

CERTIFICATES: Final = "certificates"  # where the registry looks for what was signed
log = logging.getLogger("sovfed.authority")


def exchange_folder(agency: Path) -> Path:
    """The folder of `requests` and `certificates` in an agency's home, or in a copy of just that folder."""
    folder = agency / "registry" if (agency / "registry").is_dir() else agency
    if not folder.is_dir():
        raise IdentityError(f"{folder} is no folder; name the agency's home, or a copy of its registry folder")
    return folder


def tend(home: Path, folder: Path, *, days: float = authority.LEAF_DAYS, passphrase: bytes | None = None) -> list[str]:
    """Sign a new revocation list if it is due, and every endorsed renewal that waits in `folder`; what was done.

    The agency writes there. Whatever it puts in, the list is signed, and nothing is written elsewhere.
    """
    done = []
    if _list_is_due(home):
        authority.refresh_crl(home, passphrase=passphrase)
        done.append("signed a new revocation list")
    try:
        out = _outbox(folder)
        if _tell_of_handover(home, out):
            done.append("told the agency of the new root")
        waiting = sorted((folder / "requests").glob(f"*{RENEWAL}"))
    except (OSError, SovfedError) as error:
        log.warning("%s: %s", folder, error)
        return done
    for path in waiting:
        try:
            if _renew(home, path, out / f"{path.stem}.pem", days, passphrase):
                done.append(f"renewed {path.stem}")
        except Exception as error:  # of whatever kind: nothing that the agency lays down keeps a list from being signed
            expected = isinstance(error, SovfedError | OSError)
            log.warning("%s: not signed: %s", path.name, error, exc_info=not expected)
    return done


def _outbox(folder: Path) -> Path:
    """The folder of what was signed. Raises IdentityError if it is a link, which may lead anywhere."""
    out = folder / CERTIFICATES
    if out.is_symlink():
        raise IdentityError(f"{out}: a link; what is signed is written to a folder of this name only")
    return private_directory(out)


def _renew(home: Path, path: Path, out: Path, days: float, passphrase: bytes | None) -> bool:
    """Sign the request at `path`; whether there is something new at `out`."""
    if not NAME.fullmatch(path.stem):
        raise IdentityError(f"a file's name is {NAME_IN_WORDS}")
    if out.exists():
        return False  # the agency has not taken it in yet
    write_atomic(out, authority.sign_renewal(home, read_renewal(read_plain(path)), days=days, passphrase=passphrase))
    return True


def _tell_of_handover(home: Path, out: Path) -> bool:
    if not (home / HANDOVER).exists():
        return False
    handover = read_bounded(home / HANDOVER)
    with contextlib.suppress(IdentityError):
        if read_plain(out / HANDOVER) == handover:
            return False
    write_atomic(out / HANDOVER, handover)
    return True


def _list_is_due(home: Path) -> bool:
    """Whether half of the list's life is over."""
    crl = load_crl(home / "crl.pem")
    end = crl.next_update_utc
    return end is None or datetime.now(UTC) > end - (end - crl.last_update_utc) / 2
