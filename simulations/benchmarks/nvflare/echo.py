"""The institution's half, run by NVFlare's own Python: the model goes back as it came, and when it came is kept.

`echo.py FILE` appends "ROUND MONOTONIC_SECONDS" to FILE-SITE for each model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nvflare.client as flare

if __name__ == "__main__":
    flare.init()
    with Path(f"{sys.argv[1]}-{flare.get_site_name()}").open("a") as file:
        while flare.is_running() and (model := flare.receive()) is not None:
            file.write(f"{model.current_round} {time.monotonic()}\n")
            file.flush()
            flare.send(flare.FLModel(params=model.params, metrics={"accuracy": 0.0}))
