"""Building missing shards before a launch, for configs that ask for it."""

import os
import shlex
import subprocess
import sys

from launch.snapshot import ROOT
from pretrain.config.schema import RunConfig
from pretrain.errors import DataError

_PREFIX = ["python", "-m"]
_PACKAGE = "data_tools."


def build_data(config: RunConfig) -> None:
    """Run the config's ``data.build`` here and now.

    Only this project's own data tools are run: a config is data, not a program.

    Raises:
        DataError: the command is missing, is no data tool, or failed.
    """
    words = shlex.split(config.data.build or "")
    if words[:2] != _PREFIX or not words[2:] or not words[2].startswith(_PACKAGE):
        raise DataError(
            f"data.build: expected 'python -m {_PACKAGE}…', got {config.data.build!r}; "
            f"build the shards in {config.data.path} yourself"
        )
    print(f"building the data: {config.data.build}", flush=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    answer = subprocess.run([sys.executable, *words[1:]], env=environment, check=False)
    if answer.returncode != 0:
        raise DataError(f"data.build: {config.data.build}: exited with code {answer.returncode}")
