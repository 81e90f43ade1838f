"""sovfed: a nation's institutions train one model together, and no record leaves home.

    import sovfed
    result = sovfed.simulate("birth.yaml", "clinics/", rounds=50)

`sovfed.task` is what a package with a task of its own imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sovfed.simulations.api import Result, simulate

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "simulate"]


def __getattr__(name: str) -> object:
    """`simulate` and `Result`, which load torch, when they are first asked for. ConfigError without the extra."""
    if name in ("simulate", "Result"):
        from sovfed.federation.host.extras import require
        from sovfed.simulations import api

        require("simulate")
        return getattr(api, name)
    raise AttributeError(f"module 'sovfed' has no attribute '{name}'")
