"""The institution's half: one is added to every place of the vector."""

from __future__ import annotations

import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The reply; its seconds hold everything that is done in here, unpacking the vector included."""
    started = time.monotonic()
    (vector,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    arrays = ArrayRecord([vector + 1])
    metrics = MetricRecord({"num-examples": 1, "seconds": time.monotonic() - started})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The sum of the vector, as a metric."""
    started = time.monotonic()
    (vector,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    total = float(vector.sum())
    metrics = MetricRecord({"num-examples": 1, "total": total, "seconds": time.monotonic() - started})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
