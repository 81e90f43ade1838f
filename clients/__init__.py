"""An institution: its trainer, gateway and supernode, its data, policy and privacy ledger."""

import os

# Intel's matrix products give a row bits that depend on where it lies in memory, unless they are asked not to (at no
# cost). A person's gradient must not depend on who else is in the step, which `clients/dpsgd/step.py` tries out.
# Read by the library at its first product, which comes after this.
os.environ.setdefault("MKL_CBWR", "AUTO")
