"""How fake ranks wait for each other: in a file whose name says so, as `pretrain.dist` does."""

import json
import os
import time
from pathlib import Path


def meet(directory: Path, rank: int, attempt: int, step: int, *, stop: bool) -> bool:
    """Wait for all ranks at this step, for ever if one is dead; true if rank zero says stop."""

    def announced(other: int) -> tuple[int, bool]:
        path = directory / f"meet_{attempt}_{other}"
        value = json.loads(path.read_text()) if path.exists() else {"step": 0, "stop": False}
        return value["step"], value["stop"]

    write(directory / f"meet_{attempt}_{rank}", {"step": step, "stop": stop})
    for other in range(int(os.environ["WORLD_SIZE"])):
        while announced(other)[0] < step:
            time.sleep(0.002)
    return announced(0)[1]


def write(path: Path, value: dict[str, object]) -> None:
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    staged.write_text(json.dumps(value))
    staged.replace(path)
