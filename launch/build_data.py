"""Building missing shards before a launch, for configs that ask for it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from launch.snapshot import ROOT
from pretrain.config.schema import RunConfig
from pretrain.errors import DataError

_PREFIX = ["python", "-m"]
_PACKAGE = "data_tools."


def check_build(config: RunConfig) -> list[str]:
    """Return the words of the config's ``data.build``. Runs nothing.

    Only this project's own data tools are run: a config is data, not a program.

    Raises:
        DataError: the command is missing, is no data tool, or builds something else.
    """
    try:
        words = shlex.split(config.data.build or "")
    except ValueError:  # an open quote
        words = []
    if words[:2] != _PREFIX or not words[2:] or not words[2].startswith(_PACKAGE):
        raise DataError(
            f"data.build: expected 'python -m {_PACKAGE}…', got {config.data.build!r}; "
            f"build the shards in {config.data.path} yourself"
        )
    wanted = Path(config.data.path)
    if not any(wanted.is_relative_to(Path(word).absolute()) for word in words[3:]):
        raise DataError(
            f"data.path: no shards: {wanted}/manifest.json does not exist, and data.build "
            f"({config.data.build}) does not write there; give the right data.path"
        )
    return words


def build_data(config: RunConfig) -> None:
    """Run the config's ``data.build`` here and now.

    Raises:
        DataError: the command is not one to run (see `check_build`), or failed.
    """
    words = check_build(config)
    print(f"building the data: {config.data.build}", flush=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    answer = subprocess.run([sys.executable, *words[1:]], env=environment, check=False)
    if answer.returncode != 0:
        raise DataError(f"data.build: {config.data.build}: exited with code {answer.returncode}")
