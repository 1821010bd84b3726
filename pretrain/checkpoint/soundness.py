"""Whether a checkpoint is exactly what was written: every byte of every file. No torch."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretrain.checkpoint.layout import CheckpointManifest

_DIGEST_THREADS = 4


def first_damage(directory: Path, manifest: CheckpointManifest) -> str | None:
    """Read every file of a checkpoint; return what is wrong with the first bad one, or None."""

    def damage(name: str) -> str | None:
        path = directory / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
        if digest != manifest.files[name].sha256:
            return f"{path}: damaged: its content does not match the digest in the manifest"
        return None

    with ThreadPoolExecutor(_DIGEST_THREADS) as threads:
        return next((found for found in threads.map(damage, manifest.files) if found), None)
