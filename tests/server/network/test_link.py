"""When a node is offered the lane, and when again."""

from __future__ import annotations

from flwr.proto.node_pb2 import NodeInfo

from sovfed.server.network.link import Link, next_offers


def test_offers_that_nobody_takes_up_are_made_less_and_less_often() -> None:
    link = Link(NodeInfo(node_id=1, public_key=b"", name="hospital-1"))
    waits = []
    for link.offers in range(1, 7):
        waits.append(link.due_after_s(0))
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    assert link.due_after_s(32) == 90.0  # they share the agency
    assert link.due_after_s(1000) == 90.0  # no more offers are on their way at once


def test_of_many_nodes_a_few_are_offered_the_lane_at_a_time_and_those_first_that_were_not_yet() -> None:
    """Seen: 300 offers at once shared a busy superlink, none was fetched in time, all were made again: 10 joined."""
    links = [Link(NodeInfo(node_id=number, public_key=b"", name=f"h{number}")) for number in range(100)]
    now, joined_at, order = 1000.0, float("-inf"), list[int]()

    def step() -> list[int]:
        offered = next_offers(links, now, joined_at)
        for link in offered:
            link.offers, link.offered_at = link.offers + 1, now
        order.extend(link.node_id for link in offered)
        return [link.node_id for link in offered]

    assert step() == list(range(32))
    assert step() == [], "all of them are on their way"
    links = links[10:]  # ten have joined
    assert step() == list(range(32, 42))
    links[0].declined = True
    assert step() == [42]
    now += 15.1  # nobody has taken anything up
    assert step() == list(range(43, 75)), "who was not offered anything yet comes first"
    now += 15.1
    assert step()[:25] == list(range(75, 100))
    assert set(order) == set(range(100))


def test_while_others_join_an_offer_on_its_way_is_not_made_again_but_not_for_ever() -> None:
    link = Link(NodeInfo(node_id=1, public_key=b"", name="hospital-1"))
    link.offered_at = 100.0
    assert link.waits_since(joined_at=130.0) == 100.0, "it was in, and is offered the lane anew at once"
    link.offers = 1
    assert link.waits_since(joined_at=90.0) == 100.0
    assert link.waits_since(joined_at=130.0) == 130.0
    assert link.waits_since(joined_at=1000.0) == 160.0
