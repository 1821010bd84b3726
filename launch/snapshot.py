"""The source a run uses and the surroundings it was launched from, copied into its directory."""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.credentials import redact
from pretrain.errors import LaunchError
from pretrain.files import replace_text
from pretrain.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
"""The source tree this file is part of."""

CODE_FOLDERS = ("pretrain", "launch", "data_tools", "configs")
"""What a run can import or read; untracked files count only in here."""

PACKAGES = (
    "swin-pretrain",
    "torch",
    "deepspeed",
    "numpy",
    "webdataset",
    "simplejpeg",
    "pillow",
    "safetensors",
    "submitit",
    "pydantic",
    "pydantic-core",
    "omegaconf",
    "pyyaml",
    "rich",
    "matplotlib",
    "wandb",
    "fsspec",
    "s3fs",
    "triton",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
"""Distributions whose versions are recorded."""

SECRET_FILES = (".env", ".env.*", ".netrc", "*.pem", "*.key", "id_rsa*", "id_ed25519*")
"""Names of files that hold credentials; no copy is made of them."""

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def source_files(root: Path = ROOT) -> list[Path]:
    """The files of a snapshot, relative to ``root``, sorted.

    In a git checkout: every tracked file as it is on disk, and untracked files of the code folders
    that git does not ignore. Elsewhere: the code folders.
    """
    tracked = _git(root, "ls-files", "-z")
    if tracked is None:
        found = [path for folder in CODE_FOLDERS for path in (root / folder).rglob("*")]
        names = [path.relative_to(root) for path in found if "__pycache__" not in path.parts]
        names.append(Path("pyproject.toml"))
    else:
        folders = [folder for folder in CODE_FOLDERS if (root / folder).is_dir()]
        new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *folders)
        names = [Path(name) for name in (tracked + (new or "")).split("\0") if name]
    return sorted(name for name in set(names) if (root / name).is_file() and not _is_secret(name))


def copy_source(run: RunDirectory, root: Path = ROOT) -> None:
    """Put a copy of the source into the run, in place of an older one.

    Raises:
        LaunchError: the source or the run directory cannot be read or written.
    """
    staged = run.path / "code.tmp"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        for name in source_files(root):
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
        old = run.path / "code.old.tmp"
        shutil.rmtree(old, ignore_errors=True)
        if run.code_path.exists():
            run.code_path.rename(old)
        staged.rename(run.code_path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise LaunchError(f"{run.code_path}: cannot copy the source: {error}") from None


def source_sha256(root: Path = ROOT) -> str:
    """Digest of the names and contents of all files of a snapshot, hexadecimal."""
    digest = hashlib.sha256()
    for name in source_files(root):
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def describe_environment(command: Sequence[str], root: Path = ROOT) -> dict[str, Any]:
    """Versions, machine and commit.

    Nothing from the environment variables, which hold secrets; the command without what looks like
    one. Drivers and GPUs of the nodes are in the logs of the ranks: this is the launching machine.
    """
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *CODE_FOLDERS)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redact(command, os.environ),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "slurm": _output("sbatch", "--version"),
        "nvidia_driver": _nvidia_driver(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "source": str(root),
        "code_sha256": source_sha256(root),
        "git_commit": commit.strip() if commit else None,
        "git_changed_files": len(changes.splitlines()) if changes is not None else None,
    }


def write_environment(run: RunDirectory, command: Sequence[str]) -> None:
    """Record the surroundings of a launch in the run directory."""
    replace_text(run.environment_path, json.dumps(describe_environment(command), indent=2) + "\n")


def _is_secret(name: Path) -> bool:
    return any(name.match(pattern) for pattern in SECRET_FILES)


def _nvidia_driver() -> str | None:
    """The first line of what the driver says about itself; None where there is none."""
    try:
        return _NVIDIA_DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command; None where there is no git or ``root`` is not its top folder."""
    if not (root / ".git").exists():
        return None
    return _output("git", "-C", str(root), *arguments, strip=False)


def _output(*command: str, strip: bool = True) -> str | None:
    """What a program prints; None where it is not there or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    text = answer.stdout.strip() if strip else answer.stdout
    return text if answer.returncode == 0 else None
