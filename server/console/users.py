"""Who may open the agency's console: `console-users.json` in its home (0600), passwords as scrypt's digests.

A viewer sees all pages. An operator may stop and resume runs too. Nobody else is anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.files import read_private, write_private
from sovfed.federation.schema import bind, bounded, choice
from sovfed.federation.text import NAME, NAME_IN_WORDS

FILE: Final = "console-users.json"
VIEWER: Final = "viewer"
OPERATOR: Final = "operator"
ROLES: Final = (VIEWER, OPERATOR)
LEAST: Final = 12  # characters of a password
MOST: Final = 1_024
COST: Final = {"n": 2**15, "r": 8, "p": 1}  # 32 MiB and some 0.1 s a try (RFC 7914; OWASP's second choice)


@dataclass(frozen=True)
class User:
    """A name, what it may do, and its password's salt and scrypt digest, hexadecimal."""

    role: str = choice(VIEWER, ROLES)
    salt: str = bounded("", 32, 64)
    digest: str = bounded("", 64, 128)


NOBODY: Final = User(VIEWER, "00" * 16, "00" * 32)  # whose password no text has: an unknown name takes as long


def read_users(home: Path) -> dict[str, User]:
    """The users by name. Raises IdentityError if others can read the file, ConfigError if it is damaged."""
    path = home / FILE
    if not path.exists():
        return {}
    try:
        entries = json.loads(read_private(path))
        return {str(name): bind(User, entry, f"{path}: {name}") for name, entry in entries.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: damaged; remove it and add its users anew") from error


def add_user(home: Path, name: str, role: str, password: str) -> None:
    """Write the user, in the place of one of that name, whose open sessions end with their next request.

    Raises ConfigError for a name or password that will not do.
    """
    if not NAME.fullmatch(name) or len(name) > 64:
        raise ConfigError(f"a user's name must be 1 to 64 {NAME_IN_WORDS}, got {name[:80]!a}")
    if not LEAST <= len(password) <= MOST:
        raise ConfigError(f"a password of {len(password)} characters, expected {LEAST} to {MOST}")
    salt = secrets.token_bytes(16)
    user = User(role, salt.hex(), _digest(password, salt).hex())
    _write(home, {**read_users(home), name: user})


def remove_user(home: Path, name: str) -> None:
    """Forget the user; an open session of theirs ends with its next request. Raises ConfigError if there is none."""
    users = read_users(home)
    if name not in users:
        raise ConfigError(f"there is no user '{name[:64]}'; there are {', '.join(sorted(users)) or 'none'}")
    _write(home, {other: user for other, user in users.items() if other != name})


def authenticate(home: Path, name: str, password: str) -> User:
    """The user of that name and password, after the same time whether the name is known. Raises IdentityError."""
    users = read_users(home)
    user = users.get(name, NOBODY)
    digest = _digest(password[:MOST], bytes.fromhex(user.salt))
    if not hmac.compare_digest(digest, bytes.fromhex(user.digest)) or name not in users:
        raise IdentityError("name or password is wrong")
    return user


def _digest(password: str, salt: bytes) -> bytes:
    memory = 2 * 128 * COST["n"] * COST["r"]
    return hashlib.scrypt(password.encode(), salt=salt, maxmem=memory, dklen=32, **COST)


def _write(home: Path, users: dict[str, User]) -> None:
    write_private(home / FILE, json.dumps({name: asdict(user) for name, user in users.items()}, indent=1).encode())
