"""What a process need not look for on its heap."""

from __future__ import annotations

import gc


def keep_loaded() -> None:
    """What is there by now, modules above all, is never searched for garbage again.

    Of torch, Flower and MLflow each search takes a tenth of a second, and Flower asks for one whenever it hands out an
    institution's arrays. And all of it is searched only once what outlived two searches is a quarter of what there is:
    with what is loaded among that, a server's closed TLS connections, circles with 256 KiB each, would be 100 MB then.
    """
    gc.freeze()
    gc.collect()  # which counts what is left
