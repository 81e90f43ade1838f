from conversions.checkpoint_pt.original import from_checkpoint, load

import sovfed.task

TASK = sovfed.task.classifier("checkpoint_pt", from_checkpoint, (4,), classes=2)
LOCAL = {"task.learning_rate": 0.1, "task.local_epochs": 3}


def federated() -> sovfed.Result:
    return sovfed.simulate(TASK, [load(part, 3) for part in range(3)], rounds=5, settings=LOCAL)
