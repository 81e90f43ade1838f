"""StreamGrid over a real relay and real gateways: Flower's Grid faithfully, and what happens when things break."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, RecordDict
from flwr.app import Message as FlowerMessage
from tests.lane_fixture import MAX_BYTES, RUN_ID, Agency, Cutter, DirectGrid, agency, wait_until

from sovfed.federation.errors import AwayError, ProtocolError, ServiceError
from sovfed.federation.messages import LaneOffer, Refusal, TrainReply, TrainRequest
from sovfed.federation.wire.flower import from_records, new_message, to_records
from sovfed.federation.wire.lane import Outgoing
from sovfed.server.network import lane_links
from sovfed.server.network import link as node_link
from sovfed.server.network.grid import StreamGrid, open_stream_grid
from sovfed.server.network.presence import Awaited, Presence
from sovfed.server.rounds.patience import Patience

MODEL = np.arange(2_500, dtype=np.float32)


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Agency]:
    with agency(tmp_path) as made:
        for gateway in made.gateways:
            gateway.start()
        yield made


@contextmanager
def opened(
    found: Agency, *, address: str = "", home: Path | None = None, timeout_s: float = 10.0
) -> Iterator[StreamGrid]:
    base = DirectGrid(found.gateways)
    grid = open_stream_grid(
        base, run_id=RUN_ID, run="r1", identity=found.signer, home=home or found.home, address=address or found.address,
        nodes=[gateway.node for gateway in found.gateways], max_message_bytes=MAX_BYTES, offer_timeout_s=timeout_s,
    )  # fmt: skip
    try:
        yield grid
    finally:
        grid.close()


def request(number: int, model: np.ndarray = MODEL) -> RecordDict:
    return to_records(
        TrainRequest(
            run="r1", round=number, task="digits", seed=1, local_epochs=1, batch_size=1, learning_rate=0.1,
            proximal_mu=0.0, model=model, scale=np.zeros(2),
        )
    )  # fmt: skip


def messages(found: Agency, content: RecordDict, nodes: int = 4) -> list[FlowerMessage]:
    return [
        new_message(content, run_id=RUN_ID, node_id=gateway.node.node_id, kind="train", group="1")
        for gateway in found.gateways[:nodes]
    ]


def ask_all(
    found: Agency, grid: StreamGrid, number: int, model: np.ndarray = MODEL, timeout_s: float = 30.0
) -> set[int]:
    """Ask every node for one round; the nodes that answered, each checked to hold the right update for its own
    request.
    """
    sent, answered = messages(found, request(number, model)), set()
    for reply in grid.replies(sent, timeout_s):
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        update = from_records(reply.content)
        assert isinstance(update, TrainReply) and update.round == number
        assert np.array_equal(update.update, model + 1)
        assert reply.metadata.src_node_id == asked[reply.metadata.reply_to_message_id]
        assert reply.metadata.src_node_id not in answered
        answered.add(reply.metadata.src_node_id)
    return answered


def node_ids(found: Agency) -> set[int]:
    return {int(gateway.node.node_id) for gateway in found.gateways}


def test_every_node_answers_and_the_grid_is_flowers(found: Agency) -> None:
    with opened(found) as grid:
        assert set(grid.get_node_ids()) == node_ids(found)
        assert {node.name for node in grid.get_nodes()} == {f"hospital-{index}" for index in range(4)}
        assert grid.run.run_id == RUN_ID
        for number in range(1, 4):
            assert ask_all(found, grid, number) == node_ids(found)
        ids = list(grid.push_messages(messages(found, request(4))))
        assert len(set(ids)) == 4 and all(ids)
        pulled: list[FlowerMessage] = []
        while len(pulled) < 4:
            pulled += grid.pull_messages(ids)
        assert sorted(message.metadata.reply_to_message_id for message in pulled) == sorted(ids)
        assert list(grid.pull_messages(ids)) == []
        assert len(list(grid.send_and_receive(messages(found, request(5)), timeout=10))) == 4
        sent = grid.create_message(request(6), "train", int(found.gateways[0].node.node_id), "6")
        assert [from_records(reply.content).round for reply in grid.replies([sent], 10)] == [6]  # type: ignore[union-attr]
        assert [gateway.trainer.asked for gateway in found.gateways] == [[1, 2, 3, 4, 5, 6]] + [[1, 2, 3, 4, 5]] * 3
        assert grid.refused == 0
        assert 21 * MODEL.nbytes < grid.bytes_down < 23 * MODEL.nbytes
        assert 21 * MODEL.nbytes < grid.bytes_up < 22 * MODEL.nbytes


def test_large_messages_cross_in_chunks_and_are_freed(found: Agency) -> None:
    model = np.arange(2_000_000, dtype=np.float32)
    with opened(found) as grid:
        assert ask_all(found, grid, 1, model) == node_ids(found)
        sent = messages(found, request(2, model))
        content = weakref.ref(sent[0].content)
        replies = grid.replies(sent, 30.0)
        del sent
        first = weakref.ref(next(replies))
        assert len(list(replies)) == 3
        del replies
        gc.collect()
        assert first() is None and content() is None


def test_replies_end_at_the_timeout_and_late_ones_are_dropped(found: Agency) -> None:
    """They are no refusal: the node owed them, and so shows that it lives."""
    slow = found.gateways[0].trainer
    with opened(found) as grid:
        slow.delay_s = 0.5
        answered = ask_all(found, grid, 1, timeout_s=0.2)
        assert len(answered) == 3
        (late,) = set(node_ids(found)) - set(answered)
        asked_at = time.monotonic()
        slow.delay_s = 0.0
        assert ask_all(found, grid, 2) == node_ids(found)
        assert slow.asked == [1, 2]
        assert grid.refused == 0
        assert grid.heard(late) > asked_at


def test_replies_end_when_nobody_is_waited_for_any_more(found: Agency) -> None:
    found.gateways[0].trainer.delay_s = 3.0
    with opened(found) as grid:
        patience = Patience(least=3, grace_s=0.1)
        answers = []
        for reply in grid.replies(messages(found, request(1)), 60.0, patience.remaining_s):
            answers.append(reply)
            patience.answered()
        assert len(answers) == 3


def test_a_clientapp_that_fails_answers_with_a_fixed_sentence(found: Agency) -> None:
    found.gateways[0].trainer.fail = RuntimeError("patient Jane Doe")
    with opened(found) as grid:
        (reply,) = grid.replies(messages(found, request(1), nodes=1), 10)
        assert from_records(reply.content) == Refusal(reason="failed")
        assert "Jane" not in str(reply)


def test_a_node_that_is_not_there_gives_flowers_error(found: Agency) -> None:
    with opened(found) as grid:
        message = new_message(request(1), run_id=RUN_ID, node_id=99, kind="train", group="1")
        (reply,) = grid.replies([message], 1.0)
        assert reply.error.code == 5  # NODE_UNAVAILABLE
        assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_a_message_larger_than_the_bound_is_not_sent(found: Agency) -> None:
    with opened(found) as grid, pytest.raises(ProtocolError, match=f"limit is {MAX_BYTES}"):
        list(grid.replies(messages(found, request(1, np.zeros(MAX_BYTES // 4, dtype=np.float32))), 1.0))


def test_too_many_unanswered_messages_are_refused(found: Agency) -> None:
    found.gateways[0].trainer.delay_s = 1.0
    many = [message for number in range(1, 30) for message in messages(found, request(number), nodes=1)]
    with opened(found) as grid, pytest.raises(ServiceError, match="outstanding on the lane"):
        grid.push_messages(many)


def test_a_reply_that_does_not_fit_is_refused(found: Agency, caplog: pytest.LogCaptureFixture) -> None:
    """A dishonest institution answers for another node, for another run, and a message nobody sent; then bytes of
    noise.
    """
    liar, honest = found.gateways[0], found.gateways[1]
    real = liar.app

    def lie(message: FlowerMessage, context: object) -> FlowerMessage:
        if message.metadata.message_type == "query.lane":
            return real(message, context)  # type: ignore[arg-type]
        reply = FlowerMessage(Error(code=0, reason=""), reply_to=message)
        for name, value in lies.pop().items():
            reply.metadata.__dict__[name] = value
        return reply

    lies: list[dict[str, object]] = [
        {},
        {"_src_node_id": int(honest.node.node_id)},
        {"_run_id": 1},
        {"_reply_to_message_id": "none"},
        {"_dst_node_id": 7},
    ]
    assert liar.lane is not None
    liar.lane._app = lie
    with opened(found) as grid, caplog.at_level(logging.WARNING):
        for number in range(4):
            assert list(grid.replies(messages(found, request(number + 1), nodes=1), 0.3)) == []
            assert grid.refused == number + 1
        (reply,) = grid.replies(messages(found, request(9), nodes=1), 5.0)
        assert reply.has_error()


@pytest.mark.parametrize("crowd", [b"\x0a\x00" * (4 << 20), b"\x0a\x00" * 20_000, b"\xff"])
def test_a_reply_of_nothing_but_fields_holds_nobody_up(
    found: Agency, monkeypatch: pytest.MonkeyPatch, crowd: bytes
) -> None:
    """A dishonest institution's 8 MB kept the thread that reads all replies of a run busy for 10 s."""
    liar = found.gateways[0]
    assert liar.lane is not None
    with opened(found) as grid:
        assert ask_all(found, grid, 1) == node_ids(found)
        with monkeypatch.context() as lying:
            lying.setattr(liar.lane, "_answer", lambda *_: Outgoing((crowd,)))
            replies = grid.replies(messages(found, request(2)), 30.0)
            answered = {next(replies).metadata.src_node_id for _ in range(3)}
            assert answered == node_ids(found) - {int(liar.node.node_id)}
            wait_until(lambda: grid.refused == 1)
            replies.close()  # type: ignore[attr-defined]
        assert ask_all(found, grid, 3) == node_ids(found)


def test_a_stream_cut_in_the_middle_of_messages_goes_on_where_it_was(found: Agency) -> None:
    """Both legs cut again and again: every message is answered once, and the trainer is asked once."""
    model = np.arange(2_000_000, dtype=np.float32)
    host, port = found.address.split(":")
    far = Cutter(lambda: asyncio.open_connection(host, int(port)))
    near = Cutter(lambda: asyncio.open_unix_connection(found.home / "lane.sock"))
    proxied = found.folder / "proxied"
    proxied.mkdir()
    address = found.call(far.serve())
    found.call(near.serve(proxied / "lane.sock"))
    with opened(found, address=address, home=proxied) as grid:
        for number, cutter in enumerate([far, near, far, near, far], start=1):
            cutter.passed, cutter.cut_after = 0, 7_000_000 * number
            assert ask_all(found, grid, number, model) == node_ids(found)
        assert far.cuts + near.cuts == 5
        assert all(gateway.trainer.asked == [1, 2, 3, 4, 5] for gateway in found.gateways)
        assert grid.refused == 0
        assert len(grid._base.pushed) == 4, "no node was offered the lane again"  # type: ignore[attr-defined]
    for cutter in (far, near):
        found.call(cutter.close())


@pytest.mark.deploy  # waits for the real keep-alive
def test_a_peer_that_falls_silent_is_noticed_within_twenty_seconds(tmp_path: Path) -> None:
    with agency(tmp_path, nodes=1) as found:
        found.gateways[0].start()
        host, port = found.address.split(":")
        far = Cutter(lambda: asyncio.open_connection(host, int(port)))
        with opened(found, address=found.call(far.serve())) as grid:
            far.flowing.clear()
            wait_until(lambda: found.relay.runs == {"r1": 0}, 20.0)
            found.loop.loop.call_soon_threadsafe(far.flowing.set)
            assert ask_all(found, grid, 1) == node_ids(found)
        found.call(far.close())


def test_a_restarted_gateway_is_offered_the_lane_again_and_asked_again(
    found: Agency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_links, "GRACE_S", 0.2)
    monkeypatch.setattr(node_link, "OFFER_AGAIN_S", 0.5)
    gateway = found.gateways[0]
    with opened(found) as grid:
        assert ask_all(found, grid, 1) == node_ids(found)
        gateway.trainer.delay_s = 0.5
        replies = grid.replies(messages(found, request(2)), 20.0)
        others = {next(replies).metadata.src_node_id for _ in range(3)}
        gateway.stop()
        wait_until(lambda: set(grid.get_node_ids()) == others)
        gateway.trainer.delay_s = 0.0
        gateway.start()
        assert [reply.metadata.src_node_id for reply in replies] == [int(gateway.node.node_id)]
        assert ask_all(found, grid, 3) == node_ids(found)


def test_a_restarted_relay_gets_the_run_and_the_nodes_again(found: Agency) -> None:
    with opened(found) as grid:
        assert ask_all(found, grid, 1) == node_ids(found)
        found.stop()
        found.start()
        assert ask_all(found, grid, 2) == node_ids(found)


def test_a_node_that_comes_later_is_offered_the_lane(found: Agency, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_links, "NEW_NODES_S", 0.2)
    late = found.gateways[3]
    late.stop()
    nodes = [gateway.node for gateway in found.gateways[:3]]
    base = DirectGrid(found.gateways)
    grid = open_stream_grid(
        base, run_id=RUN_ID, run="r1", identity=found.signer, home=found.home, address=found.address, nodes=nodes,
        max_message_bytes=MAX_BYTES, offer_timeout_s=10.0,
    )  # fmt: skip
    try:
        assert len(list(grid.get_node_ids())) == 3
        late.start()
        wait_until(lambda: set(grid.get_node_ids()) == node_ids(found))
        assert ask_all(found, grid, 1) == node_ids(found)
    finally:
        grid.close()


def test_closing_the_grid_ends_the_institutions_streams(found: Agency) -> None:
    with opened(found):
        assert found.relay.runs == {"r1": 4}
    assert found.relay.runs == {}
    for gateway in found.gateways:
        lane = gateway.lane
        assert lane is not None
        wait_until(lambda lane=lane: all(task.done() for task in lane._lanes.values()))  # type: ignore[misc]


def test_without_a_relay_the_lane_cannot_be_opened(found: Agency, tmp_path: Path) -> None:
    with pytest.raises(AwayError, match="no lane relay answers"), opened(found, home=tmp_path, timeout_s=0.5):
        pass


def test_when_no_node_joins_the_lane_cannot_be_opened(tmp_path: Path) -> None:
    with agency(tmp_path, nodes=2) as found:
        for gateway in found.gateways:
            gateway.start(address="127.0.0.1:1")  # each declines an offer to connect anywhere else
        with pytest.raises(ServiceError, match="none of 2 nodes joined the lane"), opened(found):
            pass


def test_offers_carry_fresh_tokens(found: Agency) -> None:
    with opened(found) as grid:
        offers = [from_records(message.content) for message in grid._base.pushed]  # type: ignore[attr-defined]
        assert all(isinstance(offer, LaneOffer) and offer.address == found.address for offer in offers)
        assert len({offer.token for offer in offers if isinstance(offer, LaneOffer)}) == 4


def test_an_offer_that_was_slow_to_arrive_is_as_good_as_the_one_made_after_it(
    found: Agency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gets to the first offer after the second was made joins with it, and the second changes nothing."""
    monkeypatch.setattr(node_link, "OFFER_AGAIN_S", 0.3)
    gateway, offers = found.gateways[0], list[LaneOffer]()
    lane = gateway.lane
    assert lane is not None
    join = lane.open

    def slow(offer: LaneOffer, context: Context) -> bool:
        offers.append(offer)
        return all(join(each, context) for each in offers) if len(offers) == 2 else True

    monkeypatch.setattr(lane, "open", slow)
    with opened(found) as grid:
        assert offers[0].token == offers[1].token
        assert offers[0].issued < offers[1].issued
        assert ask_all(found, grid, 1) == node_ids(found)
        link = grid._open_links.get(int(gateway.node.node_id))
        assert link is not None
        assert link.end is not None
        assert link.end.streams == 1
        assert grid.presence() == {"joined": 4, "wanted": 4, "missing": {}}


def test_as_many_are_waited_for_as_are_wanted_and_no_longer_than_they_may(
    found: Agency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_links, "NEW_NODES_S", 0.2)
    late, told = found.gateways[3], list[Presence]()
    late.stop()
    base, nodes = DirectGrid(found.gateways), [gateway.node for gateway in found.gateways[:3]]

    def open_for(wanted: int, patience_s: float, run: str) -> StreamGrid:
        return open_stream_grid(
            base, run_id=RUN_ID, run=run, identity=found.signer, home=found.home, address=found.address, nodes=nodes,
            max_message_bytes=MAX_BYTES, offer_timeout_s=10.0,
            awaited=Awaited(wanted, patience_s, ("hospital-0", "hospital-3"), told.append),
        )  # fmt: skip

    grid = open_for(4, 1.0, "r1")
    assert len(list(grid.get_node_ids())) == 3
    assert told[-1].joined == 3
    assert told[-1].wanted == 4
    assert list(told[-1].missing) == ["hospital-3"]
    late.start()
    wait_until(lambda: told[-1].missing == {})
    grid.close()
    late.stop()
    threading.Timer(1.0, late.start).start()
    grid = open_for(4, 30.0, "r2")
    assert set(grid.get_node_ids()) == node_ids(found)
    grid.close()


def test_only_those_whom_the_run_is_for_are_counted(found: Agency) -> None:
    """Seen: "4 of 4 joined" of a cohort of three."""
    told = list[Presence]()
    grid = open_stream_grid(
        DirectGrid(found.gateways), run_id=RUN_ID, run="r1", identity=found.signer, home=found.home,
        address=found.address, nodes=[gateway.node for gateway in found.gateways], max_message_bytes=MAX_BYTES,
        offer_timeout_s=10.0, awaited=Awaited(3, 10.0, (), told.append, lambda name: name != "hospital-3"),
    )  # fmt: skip
    assert told[-1].sentence() == "3 of 3 joined"
    assert grid.presence() == {"joined": 3, "wanted": 3, "missing": {}}
    grid.close()
