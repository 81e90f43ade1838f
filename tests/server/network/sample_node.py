"""A SuperNode of one file for the tests: Flower's own fleet connection, and every message echoed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from sovfed.federation.wire.flower_http import Presented, use_client_certificate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    folder: Path = options.folder
    use_client_certificate(Presented(folder / "cert.pem", folder / "key.pem", folder / "root.pem"))
    key = cast(
        ec.EllipticCurvePrivateKey, load_pem_private_key((options.folder / "node_key.pem").read_bytes(), password=None)
    )
    root = (options.folder / "root.pem").read_bytes()
    with http_request_response(options.address, False, root, (key, key.public_key())) as connection:
        _, receive, send, _, _, pull_object, push_object, confirm = connection
        while True:
            received = receive()
            if received is None:
                time.sleep(0.02)
                continue
            head, tree = received
            run_id, message_id = head.metadata.run_id, head.metadata.message_id
            contents = pull_objects(
                [node.object_id for node in iterate_object_tree(tree)],
                pull_object_fn=lambda object_id, run_id=run_id: pull_object(run_id, object_id),  # type: ignore[misc]
                initial_backoff=0.05,
            )
            confirm(run_id, message_id)
            message = cast(Message, inflate_object_from_contents(message_id, contents))
            message.metadata.__dict__["_message_id"] = message_id
            reply = Message(message.content, reply_to=message)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            objects = get_all_nested_objects(reply)
            for object_id in wanted:
                push_object(run_id, session, object_id, objects[object_id].deflate())


if __name__ == "__main__":
    main()
