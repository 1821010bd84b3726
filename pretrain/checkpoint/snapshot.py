"""A rank's state, copied to the host at a step boundary and written from there.

The bytes of one file in the safetensors format: a header and one flat run of fp32 values. Nothing
is copied a second time to write it, and hashing and writing let other threads run.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_CHUNK_BYTES = 16 * 2**20
_FLOAT_BYTES = 4


class Snapshot:
    """This rank's fragments as they were at one moment; its memory is used again by the next.

    Attributes:
        header: the file up to the values.
        values: fp32, all fragments one after another; page-locked where they come from a GPU.
    """

    def __init__(self) -> None:
        self.header = b""
        self.values = torch.empty(0)
        self._memory = torch.empty(0)

    def take(self, fragments: Mapping[str, Tensor]) -> None:
        """Copy fragments here; when this returns they may change.

        Args:
            fragments: flat tensors by ``kind|parameter name|start``, on any device.
        """
        total = sum(tensor.numel() for tensor in fragments.values())
        on_gpu = any(tensor.is_cuda for tensor in fragments.values())
        if self._memory.numel() < total or self._memory.is_pinned() != on_gpu:
            self._memory = torch.empty(0)  # before the new memory is asked for
            self._memory = torch.empty(total, dtype=torch.float32, pin_memory=on_gpu)
        self.values = self._memory[:total]
        entries: dict[str, object] = {}
        start = 0
        for key, tensor in fragments.items():
            end = start + tensor.numel()
            self.values[start:end].copy_(tensor.detach(), non_blocking=True)
            offsets = [start * _FLOAT_BYTES, end * _FLOAT_BYTES]
            entries[key] = {"dtype": "F32", "shape": [end - start], "data_offsets": offsets}
            start = end
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + self.values.numel() * _FLOAT_BYTES

    def write(self, path: Path) -> str:
        """Write the file, wait until it is on the disk, and return its SHA-256, hexadecimal.

        Raises:
            OSError: the disk says otherwise.
        """
        if sys.byteorder != "little":
            raise RuntimeError("safetensors files are little-endian; this machine is not")
        return write_synced(path, [self.header, self.values.numpy().data.cast("B")])


def write_synced(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write a new file, wait until it is on the disk, and return its SHA-256, hexadecimal.

    Raises:
        OSError: it exists, or the disk does not take it; names the path.
    """
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for part in parts:
                view = memoryview(part)
                for start in range(0, len(view), _CHUNK_BYTES):
                    chunk = view[start : start + _CHUNK_BYTES]
                    digest.update(chunk)
                    while chunk:
                        chunk = chunk[os.write(descriptor, chunk) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return digest.hexdigest()
