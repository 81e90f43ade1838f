"""An authority, a packed package and its signers, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.packages import make_signer, write_wheel

from sovfed.federation.archive.archive import Archive
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signer import SigningKey
from sovfed.server.registry import authority


@pytest.fixture(scope="session")
def authority_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("authority") / "home"
    authority.init(home, "Authority")
    return home


@pytest.fixture(scope="session")
def publisher(authority_home: Path, tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return make_signer(tmp_path_factory.mktemp("publisher"), authority_home, "pat", "vendor")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def packed(wheel: Path, publisher: SigningKey) -> Archive:
    """The package, signed by its publisher."""
    return pack(wheel, publisher)[0]
