"""What the registry does beside answering: takes in lists and certificates, and asks for the server's own renewal.

server.crl_source          the authority's revocation lists
registry/certificates/     what the authority signed: of institutions that wait, and of the server itself
registry/requests/         where the server's own endorsed request lies from half of its certificate's life on
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509

from sovfed.federation.certificates import create_csr, key_from_pem, read_names, to_der, to_pem
from sovfed.federation.errors import IdentityError, NotReadNowError, SovfedError
from sovfed.federation.evidence.retention import Retention
from sovfed.federation.files import private_directory, read_bounded, read_private, write_atomic
from sovfed.federation.identity import Trust, load_certificate, parse_certificate
from sovfed.federation.renewal import endorse, is_due, make_renewal
from sovfed.federation.roots import FILE as HANDOVER
from sovfed.federation.roots import adopt, is_of_former_root, retire
from sovfed.server.home import take_crl
from sovfed.server.registry import enrolment
from sovfed.server.registry.tending import CERTIFICATES

LOOK_S: Final = 5.0
MOVE_SHARE: Final = 0.55  # of a rotation: from when on the authority signs servers by its new root
OWN: Final = "_server"  # no institution's name
REFUSED: Final = ".refused"
log = logging.getLogger("sovfed.registry")


async def keep_up(home: Path, source: str | None, log_days: int = 0) -> None:
    """Look every `LOOK_S`, for ever. What fails is told once, and tried again."""
    said: dict[str, str] = {}
    installed = [b""]
    steps: dict[str, Callable[[], None]] = {
        "the authority's roots": lambda: follow_roots(home),
        "the server's renewal": lambda: ask_for_own_renewal(home),
        "certificates": lambda: take_in_certificates(home),
    }
    if log_days:
        from sovfed.server.orders.retained import terms_of

        steps["the log's retention"] = Retention(home, terms_of(home, log_days)).look
    if source is not None:
        steps[f"{source}: no revocation list was taken in"] = lambda: _take_in_list(home, source, installed)
    while True:
        for what, step in steps.items():
            try:
                await asyncio.to_thread(step)
                said.pop(what, None)
            except Exception as error:  # of whatever kind: one step that fails keeps no other from being taken
                if said.get(what) != (text := str(error)):
                    said[what] = text
                    log.warning("%s: %s", what, text, exc_info=not isinstance(error, OSError | SovfedError))
        await asyncio.sleep(LOOK_S)


def follow_roots(home: Path) -> None:
    """Trust a new root that the one in place has handed over to, and give that up when its time is over."""
    path = home / "registry" / CERTIFICATES / HANDOVER
    if path.exists() and adopt(home / "identity", read_bounded(path)):
        log.info("the authority has a new root, which is trusted beside the former one from now on")
    if retire(home / "identity"):
        log.info("the authority's former root is not trusted any more")


def take_in_certificates(home: Path) -> None:
    """Accept every certificate that lies in `registry/certificates`; one that does not hold is put aside."""
    for path in sorted((home / "registry" / CERTIFICATES).glob("*.pem")):
        try:
            if path.stem == OWN:
                _install_own(home, read_bounded(path))
            else:
                log.info("%s: certificate taken in", enrolment.accept_certificate(home, read_bounded(path)))
        except NotReadNowError as error:
            log.warning("%s", error)
        except IdentityError as error:
            log.warning("%s: refused: %s", path.name, error)
            path.replace(path.with_suffix(REFUSED))
        else:
            path.unlink()


def ask_for_own_renewal(home: Path) -> None:
    """Lay down the server's endorsed request once half of its certificate's life is over; the key stays."""
    identity, path = home / "identity", home / "registry" / "requests" / f"{OWN}{enrolment.RENEWAL}"
    certificate = load_certificate(identity / "cert.pem")
    if path.exists() or not (is_due(certificate) or is_of_former_root(identity, certificate, MOVE_SHARE)):
        return
    key = key_from_pem(read_private(identity / "key.pem"), str(identity / "key.pem"))
    csr = to_pem(create_csr(key, read_names(_alternatives(certificate))))
    private_directory(path.parent)
    write_atomic(path, make_renewal(csr, to_pem(certificate), endorse(key, csr)).to_json())
    log.info("the server's certificate ends on %s; its renewal waits in %s", certificate.not_valid_after_utc, path)


def _install_own(home: Path, pem: bytes) -> None:
    identity = home / "identity"
    fresh, former = parse_certificate(pem, "certificate"), load_certificate(identity / "cert.pem")
    Trust(identity).verify_server(to_der(fresh))
    if fresh.public_key() != former.public_key() or _alternatives(fresh) != _alternatives(former):
        raise IdentityError("the server's certificate: for another key or other names than the one in place")
    write_atomic(identity / "cert.pem", pem)
    (home / "registry" / "requests" / f"{OWN}{enrolment.RENEWAL}").unlink(missing_ok=True)
    log.info("the server's certificate was renewed, and is good until %s", fresh.not_valid_after_utc)


def _take_in_list(home: Path, source: str, installed: list[bytes]) -> None:
    crl = read_bounded(Path(source))
    if crl != installed[0]:
        log.info("revocation list %d is in force", take_crl(home, crl))
        installed[0] = crl


def _alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
