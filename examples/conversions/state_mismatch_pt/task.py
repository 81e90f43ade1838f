from conversions.state_mismatch_pt.original import build_model, load

import sovfed.task

TASK = sovfed.task.classifier("state_mismatch_pt", build_model, (4,), classes=2)
LOCAL = {"task.learning_rate": 0.1, "task.batch_size": 16, "task.local_epochs": 4}


def federated() -> sovfed.Result:
    return sovfed.simulate(TASK, [load(part, 3) for part in range(3)], rounds=6, settings=LOCAL)
