"""No records: for the echo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from sovfed.clients.data import Connector
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task


def load(task: Task, config: DataConfig) -> NoReturn:
    raise DataError(f"data.source is 'none': this institution holds no records for task '{task.name}'")


CONNECTOR: Final = Connector(load, task="echo", cuts=True, reads=())
