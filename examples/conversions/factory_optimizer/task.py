from conversions.factory_optimizer.original import Linear, load

import sovfed.task

TASK = sovfed.task.classifier("factory_optimizer", lambda: Linear(2, 2), (2,), classes=2)
LOCAL = {"task.learning_rate": 0.1, "task.local_epochs": 3}


def federated() -> sovfed.Result:
    return sovfed.simulate(TASK, [load(part, 3) for part in range(3)], rounds=6, settings=LOCAL)
