"""The agency's side of Flower's Control API: nodes and runs of the local superlink, over the loopback.

A run is started with an app bundle that holds nothing but a pyproject.toml, because Flower demands one: the coordinator
and the institutions run their installed package and take no code from it. All that a run carries is one text, its name
as JSON, in Flower's run config under the key `sovfed`: every institution may read that, and the whole configuration
stays in the run's folder at the agency.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sovfed.federation.errors import ConfigError, ServiceError, UnknownRunError
from sovfed.federation.text import NAME
from sovfed.federation.wire.flower_http import add_client_header
from sovfed.federation.wire.loopback import SECRET_HEADER, read_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.proto.run_pb2 import Run
    from flwr.supercore.control.control_http_client import ControlHttpClient

T = TypeVar("T")
CONFIG_KEY: Final = "sovfed"
MAX_SPEC_BYTES: Final = 512
LOOPBACK_SECRET: Final = Path("secrets") / "loopback.secret"
_BUNDLE_DATE: Final = (2024, 10, 1, 0, 0, 0)  # fixed, so that every run has the same bundle
_PYPROJECT: Final = b"""\
[project]
name = "sovfed"
version = "1.0.0"
description = "Holds no code: both sides run their installed sovfed package."
license = { text = "Apache-2.0" }
dependencies = []

[tool.flwr.app]
publisher = "sovfed"

[tool.flwr.app.components]
serverapp = "sovfed.server.runs.app:app"
clientapp = "sovfed.clients.node.app:app"

[tool.flwr.app.config]
sovfed = ""
"""


@dataclass(frozen=True)
class NodeRecord:
    """A registered SuperNode; `status` is registered, online, offline or unregistered; `online_until` is Unix time."""

    node_id: int
    name: str
    status: str
    public_key: bytes
    online_until: float


@dataclass(frozen=True)
class RunRecord:
    """What the superlink knows of a run; `status`: pending, starting, running, finished:completed|failed|stopped."""

    status: str
    details: str
    config: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.status.startswith("finished")


def log_path(home: Path, run_id: int) -> Path:
    """The log of the coordinator of Flower run `run_id`."""
    return home / "logs" / f"coordinator-{run_id}.log"


class ControlClient:
    """Nodes and runs of the superlink of `home` at loopback port `port`. Raises ServiceError if it is away."""

    def __init__(self, home: Path, port: int) -> None:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        self._home = home
        self._address = f"127.0.0.1:{port}"
        add_client_header(SECRET_HEADER, read_secret(home / LOOPBACK_SECRET), self._address)
        self._client: ControlHttpClient = ControlHttpClient.from_server_address(self._address, True, None, ())

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def alive(self) -> bool:
        """Whether the superlink answers."""
        import httpx

        try:
            return httpx.get(f"http://{self._address}/health", timeout=5.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def register_node(self, public_key: bytes, name: str) -> int:
        """The id of the new node with this key (PEM SubjectPublicKeyInfo, a NIST curve)."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._call(lambda: self._client.RegisterNode(request)).node_id)

    def unregister_node(self, node_id: int) -> None:
        """Forget the node; its key is registered no second time, so whoever comes back brings another."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._call(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id)))

    def list_nodes(self) -> list[NodeRecord]:
        """All nodes that are registered or were."""
        from flwr.proto.control_pb2 import ListNodesRequest

        nodes = self._call(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return [NodeRecord(n.node_id, n.name, n.status, n.public_key, n.online_until) for n in nodes]

    def start_run(self, spec: Mapping[str, object]) -> int:
        """The id of a new run; every institution can read its `spec`, and so it holds names and whole numbers only.

        Raises ConfigError for any other value: a path, an address or a secret is none of these.
        """
        from flwr.common.serde import user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        for key, value in spec.items():
            if not (isinstance(value, int) or (isinstance(value, str) and NAME.fullmatch(value))):
                raise ConfigError(
                    f"'{key}' of a run travels to institutions: a name or whole number, got {value!r:.80}"
                )
        text = json.dumps(dict(spec))
        if len(text) > MAX_SPEC_BYTES:
            raise ConfigError(f"what a run carries has {len(text)} bytes, at most {MAX_SPEC_BYTES}")
        override = user_config_to_proto({CONFIG_KEY: text})
        request = StartRunRequest(fab=Fab(content=build_bundle()), override_config=override)
        return int(self._call(lambda: self._client.StartRun(request)).run_id)

    def get_run(self, run_id: int) -> RunRecord:
        """Run `run_id`; UnknownRunError if there is none."""
        from flwr.proto.control_pb2 import ListRunsRequest

        return _run_record(self._call(lambda: self._client.ListRuns(ListRunsRequest(run_id=run_id))).run_dict[run_id])

    def is_over(self, run_id: int) -> bool:
        """Whether the run has no task that will be handed out: it has ended, or Flower's database has lost it."""
        try:
            return self.get_run(run_id).finished
        except UnknownRunError:
            return True

    def stop_run(self, run_id: int) -> None:
        """Stop the run; its coordinator ends within seconds. ServiceError if it has ended already."""
        from flwr.proto.control_pb2 import StopRunRequest

        if not self._call(lambda: self._client.StopRun(StopRunRequest(run_id=run_id))).success:
            raise ServiceError(f"run {run_id} has ended already")

    def _call(self, call: Callable[[], T]) -> T:
        import httpx
        from flwr.supercore.error import ApiErrorCode, FlowerError

        try:
            return call()
        except httpx.HTTPStatusError as error:
            flower_error = FlowerError.from_json(error.response.text)
            why = flower_error.message if flower_error is not None else f"status {error.response.status_code}"
            lost = flower_error is not None and flower_error.code == ApiErrorCode.RUN_ID_NOT_FOUND
            raise (UnknownRunError if lost else ServiceError)(f"superlink at {self._address}: {why}") from error
        except httpx.HTTPError as error:
            raise ServiceError(f"no superlink at {self._address}; is `sovfed server up` running? ({error})") from error


def build_bundle() -> bytes:
    """The app bundle of every run, in Flower's format (`flwr.cli.build`): a pyproject.toml and its digest, no code."""
    manifest = f"pyproject.toml,{hashlib.sha256(_PYPROJECT).hexdigest()},{len(_PYPROJECT) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in (("pyproject.toml", _PYPROJECT), (".info/CONTENT", manifest.encode())):
            bundle.writestr(zipfile.ZipInfo(name, _BUNDLE_DATE), content)
    return buffer.getvalue()


def _run_record(run: Run) -> RunRecord:
    try:
        config = json.loads(run.override_config[CONFIG_KEY].string)
    except (KeyError, ValueError):
        config = {}  # not a run of ours
    return RunRecord(
        status=":".join(filter(None, (run.status.status, run.status.sub_status))),
        details=run.status.details,
        config=config if isinstance(config, dict) else {},
    )
