"""A copy of the source whose ranks are fake, with a config and shards it can be launched on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from interrupt import hear_ctrl_c

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
        here = Path(__file__).parent
        shutil.copy(here / "fake_rank.py", self.root / "pretrain")
        shutil.copytree(
            here / "fake_pretrain", self.root / "pretrain/fake_pretrain", dirs_exist_ok=True
        )
        (self.root / "pretrain" / "__main__.py").write_text(
            "import os, sys\n"
            "sys.path.append(os.path.dirname(__file__))\n"
            "from fake_rank import main\n"
            f"os.environ['FAKE_STEP_SECONDS'] = '{step_seconds}'\n"
            f"if {watched!r}: os.environ['FAKE_WATCHDOG_SECONDS'] = {watched!r}\n"
            f"sys.argv[1:] = [sys.argv[2], '{steps}', *{faults!r}]\n"
            "sys.exit(main())\n"
        )

    def show_key(self) -> None:
        """Let every rank log the digest of the API key that it got."""
        main = self.root / "pretrain" / "__main__.py"
        main.write_text(
            "import hashlib, os\n"
            "key = os.environ.get('WANDB_API_KEY', '').encode()\n"
            "print('key', hashlib.sha256(key).hexdigest())\n" + main.read_text()
        )

    def start(self, *arguments: str, program: str = "slurm.py") -> subprocess.Popen[str]:
        """Type the command."""
        return subprocess.Popen(
            [sys.executable, str(self.root / "launch" / program), *arguments],
            cwd=self.root.parent,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_ctrl_c,
        )

    def launch(self, *arguments: str, timeout_seconds: int = 90) -> tuple[int, str]:
        """Type the command and wait; its exit code and all it printed."""
        return _finish(self.start(*arguments), timeout_seconds)

    def look_after(self, *arguments: str, timeout_seconds: int = 90) -> tuple[int, str]:
        """Type a command about runs, which are in their usual place, and wait as `launch` does."""
        return _finish(self.start(*arguments, program="runs.py"), timeout_seconds)


def processes_of(path: Path) -> dict[int, str]:
    """Living processes that have to do with a run, by id: it is in what they are or were given."""
    wanted = str(path).encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            texts = (
                command
                + (process / "environ").read_bytes()
                + os.fsencode((process / "cwd").readlink())
            )
        except OSError:  # gone, or another user's
            continue
        if wanted in texts and int(process.name) != os.getpid():
            found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def _finish(process: subprocess.Popen[str], timeout_seconds: int) -> tuple[int, str]:
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


def plant_canaries(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put secrets where programs look for them: in the environment, and in ~/.netrc."""
    home.mkdir()
    names = ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "SITE_SECRET"]
    canaries = [f"canary{index}0123456789abcdef0123456789abcd" for index in range(len(names) + 1)]
    for name, canary in zip(names, canaries, strict=False):
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("HOME", str(home))
    netrc = home / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {canaries[-1]}\n")
    netrc.chmod(0o600)
    return canaries


def where_canaries_are(canaries: list[str], directory: Path) -> list[str]:
    """Files below a directory with one in their name or bytes; there must be files at all."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [
        str(path)
        for path in files
        for canary in canaries
        if canary.encode() in path.read_bytes() or canary in str(path)
    ]


def open_to_others(directory: Path) -> list[str]:
    """Files and directories below a directory, itself included, that others may use."""
    paths = [directory, *directory.rglob("*")]
    return [str(path) for path in paths if not path.is_symlink() and path.stat().st_mode & 0o077]
