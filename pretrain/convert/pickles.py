"""Pickled tensors, read without running anything that the file names.

A pickle names functions and classes and calls them. Here every name is listed before the first is
looked up: tensors and plain containers are torch's ``weights_only`` reader's, records of known
programs (a config object beside the weights, a logger's history) become inert placeholders, and
any other name refuses the file.
"""

import io
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from pretrain.errors import ModelError

_INERT_MODULES = (
    "_codecs",
    "argparse",
    "datetime",
    "deepspeed",
    "enum",
    "fvcore.common.config",
    "mmcv",
    "mmengine",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "typing",
    "yacs.config",
)
"""Modules whose objects lie beside weights in published files; never imported, only named."""
_DICT_MODULES = ("yacs.config.", "fvcore.common.config.", "mmcv.utils.config.", "mmengine.config.")
"""Those of the above whose classes are dicts."""
_TENSOR_MODULES = (
    "torch",
    "torch._utils",
    "torch._tensor",
    "torch.nn.parameter",
    "torch.serialization",
    "torch.storage",
)
_LOOKUPS = {("builtins", "getattr"), ("__builtin__", "getattr")}
"""How Python 3.11.0 to 3.11.3 write a member of an enumeration; it looks nothing up here."""
_PLAIN = {"OrderedDict", "defaultdict", "Counter", "set", "int", "float", "complex", "bytearray"}
_PLAIN_MODULES = ("collections", "builtins", "__builtin__")
_UNREAD_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"}
_PICKLE_BYTES_MAX = 64 * 2**20
_LEGACY_PICKLES = 5
"""Files of torch before 1.6 start with as many: magic, version, system, object, keys."""
_NAMES_SHOWN = 8
_UNREADABLE = "damaged, or a pickle that torch.save did not write: cannot be read"


def load_pickled(path: Path) -> Any:
    """Read what ``torch.save`` wrote, tensors on the CPU.

    Args:
        path: the file, a zip archive or torch's older stream of pickles.

    Returns:
        The object, with plain dicts or `Placeholder` objects where records of other programs were.

    Raises:
        ModelError: the file names code, is no file of ``torch.save``, or would unfold to more
            bytes than it has.
    """
    try:
        with path.open("rb") as file:
            names = _names(path, file)
        stand_ins: list[Any] = [(_placeholder(name), name) for name in _inert(path, names)]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except UnpicklingError as error:
        # The first lines of torch's message advise to read it unsafely.
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or type(error).__name__
        raise ModelError(
            f"{path}: a pickle of more than tensors, which is not read "
            f"({reason.splitlines()[0]}); save the model's state_dict() alone"
        ) from None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, EOFError) as error:
        raise ModelError(f"{path}: {_UNREADABLE} ({_first_line(error)})") from None
    except (AttributeError, AssertionError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ModelError(f"{path}: {_UNREADABLE} ({_first_line(error)})") from None
    _check_views(path, loaded)
    return loaded


class Placeholder:
    """Stands for an object of a class that is not looked up; keeps nothing but its state."""

    state: Any = None

    def __init__(self, *_args: object, **_fields: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Items:
    """Stands for a class of dicts: what it makes are plain ones, which torch's reader fills."""

    def __new__(cls, *_args: object, **_fields: object) -> Any:
        """Take any arguments, of which nothing is kept."""
        return OrderedDict()


def _placeholder(name: str) -> type:
    kind = _Items if name.startswith(_DICT_MODULES) else Placeholder
    return type(name.rpartition(".")[2], (kind,), {})


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _names(path: Path, file: BinaryIO) -> set[tuple[str, str]]:
    """Every module and name that the file's pickles look up."""
    if zipfile.is_zipfile(file):
        return _names_of(path, io.BytesIO(_zipped_pickle(path, file)))
    file.seek(0)
    if file.peek(2)[:2] == b"PK":  # type: ignore[attr-defined]
        raise ModelError(f"{path}: cut off: an archive without its end; copy it again")
    names: set[tuple[str, str]] = set()
    for _ in range(_LEGACY_PICKLES):
        names |= _names_of(path, file)
        if file.tell() > _PICKLE_BYTES_MAX:
            raise ModelError(f"{path}: its pickle is larger than that of any weights")
        if not file.peek(1):  # type: ignore[attr-defined]
            break
    return names


def _zipped_pickle(path: Path, file: BinaryIO) -> bytes:
    """The pickle in an archive of ``torch.save``, once its sizes are known to be honest."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # torch.save never compresses; what it stores cannot be larger than the file.
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ModelError(
                f"{path}: a zip archive that unfolds to more than it holds; torch.save writes none"
            )
        members = {entry.filename.partition("/")[2]: entry for entry in entries}
        if any(name.startswith("code/") for name in members) or "constants.pkl" in members:
            raise ModelError(f"{path}: a TorchScript program, expected weights; save a state_dict")
        if "data.pkl" not in members:
            raise ModelError(f"{path}: a zip archive, but not one that torch.save wrote")
        if members["data.pkl"].file_size > _PICKLE_BYTES_MAX:
            raise ModelError(f"{path}: its pickle is larger than that of any weights")
        return archive.read(members["data.pkl"])


def _names_of(path: Path, file: Any) -> set[tuple[str, str]]:
    """The names of the pickle at the file's position, which moves to its end."""
    names, strings, unread = set(), ["", ""], False
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            names.add((module, name))
        elif opcode.name in _UNREAD_OPCODES:
            unread = True
            if opcode.name == "STACK_GLOBAL":
                names.add((strings[-2], strings[-1]))
        elif isinstance(argument, str):
            strings = [strings[-1], argument]
    if unread:
        raise ModelError(
            f"{path}: a pickle that torch.save did not write, so it is not read; "
            f"it names {_listed(names)}; expected a file of torch.save or safetensors"
        )
    return names


def _inert(path: Path, names: set[tuple[str, str]]) -> list[str]:
    """The names to stand in for.

    Raises:
        ModelError: some name is neither a tensor's nor a known record's.
    """
    tensors = {entry for entry in names if entry[0] in _TENSOR_MODULES or _is_plain(*entry)}
    inert = {
        (module, name)
        for module, name in names - tensors
        if (module, name) in _LOOKUPS
        or any(module == known or module.startswith(f"{known}.") for known in _INERT_MODULES)
    }
    code = names - tensors - inert
    if code:
        raise ModelError(
            f"{path}: a pickle that would run code, so it is not read; it names {_listed(code)}; "
            "expected tensors: save the model's state_dict() alone, or use safetensors"
        )
    # torch's reader knows the module by its present name.
    return [f"{module.replace('__builtin__', 'builtins')}.{name}" for module, name in sorted(inert)]


def _is_plain(module: str, name: str) -> bool:
    return module in _PLAIN_MODULES and name in _PLAIN


def _listed(names: set[tuple[str, str]]) -> str:
    full = sorted(f"{module}.{name}" for module, name in names)
    more = f" and {len(full) - _NAMES_SHOWN} more" if len(full) > _NAMES_SHOWN else ""
    return ", ".join(full[:_NAMES_SHOWN]) + more if full else "nothing"


def _check_views(path: Path, loaded: Any) -> None:
    """Refuse tensors that claim more elements than are stored: a copy would fill the memory."""
    pending, seen = [loaded], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided:
                raise ModelError(f"{path}: holds sparse tensors, expected dense ones")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ModelError(
                    f"{path}: a tensor of {tuple(value.shape)} unfolds from fewer bytes"
                )
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
