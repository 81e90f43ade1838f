from conversions.eval_pt.original import Net, load

import sovfed.task

TASK = sovfed.task.classifier("eval_pt", Net, (4,), classes=2)
LOCAL = {"task.learning_rate": 0.1, "task.batch_size": 16, "task.local_epochs": 4}


def federated() -> sovfed.Result:
    return sovfed.simulate(TASK, [load(part, 3) for part in range(3)], rounds=6, settings=LOCAL)
