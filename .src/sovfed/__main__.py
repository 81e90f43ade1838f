"""`python -m sovfed` is the command `sovfed`.

Python then looks for every module in the current folder first, whoever has put something there; not from here on.
`sovfed` itself, and `python -P -m sovfed`, never do.
"""

import sys
from pathlib import Path

if not sys.flags.safe_path and Path(sys.path[0]) == Path.cwd() != Path(__file__).parent.parent:
    del sys.path[0]

from sovfed.cli import main

if __name__ == "__main__":
    main()
