"""A port that is taken is told before anything says that it serves there."""

from __future__ import annotations

import socket

import pytest

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.ports import check_port


def test_a_port_that_is_taken_is_told_with_the_option_that_chooses_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServiceError, match="--port"):
            check_port("127.0.0.1", taken.getsockname()[1])
    check_port("127.0.0.1", 0)
