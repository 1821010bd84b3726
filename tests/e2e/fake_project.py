"""A copy of the source whose ranks are fake, with a config and shards it can be launched on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from launch.snapshot import CODE_FOLDERS, ROOT
from pretrain.data.manifest import INDEX_RECORD_BYTES, Manifest, Shard, Split, write_manifest

CONFIG = """\
data:
  path: {data}
  eval_split: null
model: {{variant: swin_t, image_size: 32, window_size: 4, num_classes: 2}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 1}}
batch: {{global_size: 8, micro_size_max: 4}}
augment: {{mix_group: 2}}
runs_dir: {runs}
cluster: {{device: cpu, ranks_per_node: 2, nodes: {nodes}}}
"""


class FakeProject:
    """Everything a launch needs, below one temporary directory."""

    def __init__(self, path: Path, *, steps: int = 30, nodes: int = 1) -> None:
        self.root = path / "source"
        self.runs = path / "runs"
        for folder in CODE_FOLDERS:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, self.root / folder, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for config in (self.root / "configs").glob("*.yaml"):
            config.unlink()
        self.set_ranks(steps)
        text = CONFIG.format(data=_shards(path / "data"), runs=self.runs, nodes=nodes)
        (self.root / "configs" / "first.yaml").write_text(text)
        (self.root / "configs" / "second.yaml").write_text("base: first\ninit_from: first\n")
        (self.root / "configs" / "both.yaml").write_text("chain: [first, second]\n")

    def set_ranks(
        self,
        steps: int,
        *faults: str,
        step_seconds: float = 0.01,
        watchdog_seconds: float | None = None,
    ) -> None:
        """Replace the trainer by `fake_rank`."""
        watched = "" if watchdog_seconds is None else str(watchdog_seconds)
        shutil.copy(Path(__file__).with_name("fake_rank.py"), self.root / "pretrain/fake_rank.py")
        (self.root / "pretrain" / "__main__.py").write_text(
            "import os, sys\n"
            "from pretrain.fake_rank import main\n"
            f"os.environ['FAKE_STEP_SECONDS'] = '{step_seconds}'\n"
            f"if {watched!r}: os.environ['FAKE_WATCHDOG_SECONDS'] = {watched!r}\n"
            f"sys.argv[1:] = [sys.argv[2], '{steps}', *{faults!r}]\n"
            "sys.exit(main())\n"
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Type the command."""
        return subprocess.Popen(
            [sys.executable, str(self.root / "launch" / "slurm.py"), *arguments],
            cwd=self.root.parent,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def launch(self, *arguments: str, timeout_seconds: int = 90) -> tuple[int, str]:
        """Type the command and wait; its exit code and all it printed."""
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=timeout_seconds)
        finally:
            process.kill()
        return process.returncode, output


def clean_environment() -> dict[str, str]:
    """This environment without what a surrounding job left in it."""
    left = ("SLURM_", "SBATCH_", "SUBMITIT_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left)}
    if "SLURM_CONF" in os.environ:
        environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return environment


def _shards(root: Path) -> Path:
    root.mkdir()
    samples = 256
    (root / "set-train-000000.tar").write_bytes(b"x" * 10240)
    (root / "set-train-000000.idx").write_bytes(bytes(samples * INDEX_RECORD_BYTES))
    shard = Shard("set-train-000000.tar", samples, 10240, "0" * 64, "0" * 64)
    classes = ("n00000001", "n00000002")
    write_manifest(
        Manifest(root, "set", classes, classes, {"train": Split("train", (shard,))}), root
    )
    return root
