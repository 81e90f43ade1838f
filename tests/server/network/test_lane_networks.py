"""The lane over the networks that there are: one institution of four is behind a bad one, the others notice nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.connect_proxy import ConnectProxy, Faults, connect_proxy, proxy_identity
from tests.lane_fixture import Agency, agency, wait_until
from tests.server.network.test_stream_grid import ask_all, messages, node_ids, opened, request

from sovfed.clients.node import lane
from sovfed.federation.files import write_atomic
from sovfed.federation.wire.flower import from_records
from sovfed.federation.wire.proxy import keep_credentials, keep_roots

MODEL = np.arange(25_000, dtype=np.float32)  # 100 KB
FAULTS = {
    "300 ms": Faults(delay_s=0.3),
    "1 MB a second": Faults(bytes_per_s=1e6),
    "a reset in twenty pieces": Faults(reset_share=0.05),
}


@pytest.fixture(params=["http", "https"])
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Agency, ConnectProxy]]:
    """Four institutions; the lane of the first goes through a proxy that asks for a password, and may want TLS."""
    context, roots = proxy_identity(tmp_path)
    tls = context if request.param == "https" else None
    with connect_proxy(Faults(login="ann:s3cret"), tls) as proxy, agency(tmp_path) as made:
        first, *others = made.gateways
        keep_credentials(first.home, "ann:s3cret")
        keep_roots(first.home, roots.read_bytes())
        first.start(proxy=proxy.url)
        for gateway in others:
            gateway.start()
        yield made, proxy


@pytest.mark.parametrize("fault", FAULTS)
def test_every_round_is_whole_whatever_the_line(behind: tuple[Agency, ConnectProxy], fault: str) -> None:
    made, proxy = behind
    with opened(made) as grid:
        assert proxy.asked == [made.address]
        proxy.faults.delay_s, proxy.faults.bytes_per_s = FAULTS[fault].delay_s, FAULTS[fault].bytes_per_s
        proxy.faults.reset_share = FAULTS[fault].reset_share
        for number in range(1, 6):
            assert ask_all(made, grid, number, MODEL, 60) == node_ids(made)
    assert [gateway.trainer.asked for gateway in made.gateways] == [[1, 2, 3, 4, 5]] * 4, "nothing was asked twice"


def test_a_line_that_is_dead_and_says_nothing_holds_up_nobody_else_and_is_opened_again(
    behind: tuple[Agency, ConnectProxy],
) -> None:
    made, proxy = behind
    first = int(made.gateways[0].node.node_id)
    with opened(made) as grid:
        assert ask_all(made, grid, 1, MODEL) == node_ids(made)
        proxy.freeze()
        answered = [reply.metadata.src_node_id for reply in grid.replies(messages(made, request(2, MODEL)), 60)]
        assert set(answered) == node_ids(made) and answered[-1] == first, "the others' replies came first"
        assert len(proxy.asked) > 1, "the line was opened again"
        sent = messages(made, request(3, MODEL))
        assert {from_records(reply.content).round for reply in grid.replies(sent, 30)} == {3}  # type: ignore[union-attr]


def test_a_renewed_certificate_is_shown_at_once_and_costs_no_round(
    behind: tuple[Agency, ConnectProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "LOOK_S", 0.05)
    made, proxy = behind
    certificate = made.gateways[0].home / "identity" / "cert.pem"
    with opened(made) as grid:
        assert ask_all(made, grid, 1, MODEL) == node_ids(made)
        write_atomic(certificate, certificate.read_bytes())
        wait_until(lambda: len(proxy.asked) == 2)
        for number in range(2, 4):
            assert ask_all(made, grid, number, MODEL, 60) == node_ids(made)
    assert made.gateways[0].trainer.asked == [1, 2, 3]
