"""Where the extra `bench` finds the distribution sovfed-bench; everything else stands in pyproject.toml.

In a checkout it is the folder `.bench` beside this file, so that `pip install '.[bench]'` needs nothing from outside. A
source distribution, and every wheel that is built from one as `python -m build` does, names the same version instead.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).resolve().parent
NAME = "sovfed-bench"


class EggInfo(egg_info):
    """Completes the extra before the metadata are written."""

    def finalize_options(self) -> None:
        super().finalize_options()
        released = (ROOT / "PKG-INFO").exists()  # every source distribution has it, and nothing else
        version = self.distribution.get_version()
        wanted = f"{NAME}=={version}" if released else f"{NAME} @ {(ROOT / '.bench').as_uri()}"
        extras = dict(self.distribution.extras_require)
        extras["bench"] = [wanted if requirement == NAME else requirement for requirement in extras["bench"]]
        self.distribution.extras_require = self.distribution.metadata.extras_require = extras


setup(cmdclass={"egg_info": EggInfo})
