"""What the authority does by itself for an agency whose folder it reaches: endorsed renewals, and fresh lists.

    AGENCY/registry/requests/NAME.renewal   ──▶  signed  ──▶   AGENCY/registry/certificates/NAME.pem
    AGENCY/registry/requests/NAME.csr       a new institution: never signed here, a person compares its fingerprint

The folder may be the agency's own, or a copy of it that somebody carries to and fro.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sovfed.federation.errors import IdentityError, SovfedError
from sovfed.federation.files import private_directory, read_bounded, write_atomic
from sovfed.federation.identity import load_crl
from sovfed.federation.renewal import read_renewal
from sovfed.federation.roots import FILE as HANDOVER
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
    """Sign every endorsed renewal that waits in `folder`, and a new revocation list if it is due; what was done."""
    done = []
    for path in sorted((folder / "requests").glob(f"*{RENEWAL}")):
        out = folder / CERTIFICATES / f"{path.stem}.pem"
        if out.exists():
            continue  # the agency has not taken it in yet
        try:
            pem = authority.sign_renewal(home, read_renewal(read_bounded(path)), days=days, passphrase=passphrase)
        except SovfedError as error:
            log.warning("%s: not signed: %s", path.name, error)
            continue
        private_directory(out.parent)
        write_atomic(out, pem)
        done.append(f"renewed {path.stem}")
    if _list_is_due(home):
        authority.refresh_crl(home, passphrase=passphrase)
        done.append("signed a new revocation list")
    handover, out = home / HANDOVER, folder / CERTIFICATES / HANDOVER
    if handover.exists() and not (out.exists() and out.read_bytes() == handover.read_bytes()):
        private_directory(out.parent)
        write_atomic(out, handover.read_bytes())
        done.append("told the agency of the new root")
    return done


def _list_is_due(home: Path) -> bool:
    """Whether half of the list's life is over."""
    crl = load_crl(home / "crl.pem")
    end = crl.next_update_utc
    return end is None or datetime.now(UTC) > end - (end - crl.last_update_utc) / 2
