"""A command on a small file system of its own, given more space each time it asks for it.

Run in a mount namespace: full_disk.py MOUNT_POINT TOOL STEP_BYTES ARGUMENTS…  prints, as JSON, what
each attempt said and left, and the digests of what there is in the end.
"""

import hashlib
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from pretrain.errors import PretrainError

PAGE_BYTES = 4096
MOST_ATTEMPTS = 400


def main() -> None:
    mount_point, tool, step, *arguments = sys.argv[1:]
    root = Path(mount_point)
    size = PAGE_BYTES
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", root], check=True)
    command = import_module(f"data_tools.{tool}").main
    attempts = []
    for _ in range(MOST_ATTEMPTS):
        attempt = {"said": None, "finished": finished(root)}
        try:
            command(arguments)
        except PretrainError as error:
            attempt["said"] = str(error)
        attempt["left"] = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
        attempt["kept"] = finished(root)
        attempts.append(attempt)
        if attempt["said"] is None:
            break
        size += int(step)
        subprocess.run(["mount", "-o", f"remount,size={size}", root], check=True)
    made = [path for path in (root / "set").rglob("*") if path.is_file()]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}
    Path("answer.json").write_text(json.dumps({"attempts": attempts, "digests": digests}))


def finished(root: Path) -> dict[str, list[int]]:
    """Shards and spool files that are said to be finished, and when they were written."""
    marked = [path.with_suffix(".tar") for path in root.glob(".set.partial/*.done")]
    mark = root / ".set.spool" / "finished.json"
    if mark.exists():
        count = len(json.loads(mark.read_text())["bytes"])
        marked += [mark.with_name(f"images-{number:06d}.spool") for number in range(count)]
    states = {str(path.relative_to(root)): path.stat() for path in marked if path.exists()}
    return {name: [state.st_ino, state.st_mtime_ns] for name, state in states.items()}


if __name__ == "__main__":
    main()
