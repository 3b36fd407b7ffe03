"""Puts recipes/, conf/ and the tiny world inside the package of a wheel, as nemo_sdg/_data. All else: pyproject.toml.

setuptools takes data only from below a package's own folder, and these three stand at the top of the
repository, where people look for them. An editable install reads them there (see nemo_sdg/resources.py).
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = ("recipes", "conf", "examples/tiny")


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in DATA:
            target = Path(self.build_lib, "nemo_sdg", "_data", folder)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build in the same folder
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis"))


setup(cmdclass={"build_py": BuildWithData})
