"""``python -m pretrain.checkpoint inspect|verify|consolidate PATH``: look into saved state."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.checkpoint.layout import (
    AVERAGE,
    KINDS,
    MANIFEST_NAME,
    CheckpointManifest,
    parse_key,
    read_fragments,
    read_manifest,
    step_of,
)
from pretrain.checkpoint.soundness import first_damage
from pretrain.errors import CheckpointError, run_command

EXIT_UNSOUND = 1
ALL_KINDS = "all"


def main(arguments: Sequence[str]) -> int:
    """Run one of the verbs; return the exit code: 1 where `verify` refuses something.

    Raises:
        CheckpointError: bad input.
    """
    options = _parser().parse_args(arguments)
    paths = find(Path(options.path))
    if options.verb == "consolidate":
        return _consolidate(options, paths)
    found = [_look(path, digests=options.verb == "verify") for path in paths]
    refused = [row for row in found if row["refusal"]]
    if options.json:
        print(json.dumps({"checkpoints": found}, indent=1))
    else:
        _print(found, verified=options.verb == "verify")
    return EXIT_UNSOUND if refused and options.verb == "verify" else 0


def find(path: Path) -> list[Path]:
    """Return the checkpoints a path stands for, by step: of a run, of a directory, or itself.

    Raises:
        CheckpointError: it stands for none.
    """
    if not path.is_dir():
        what = "a file" if path.exists() else "nothing there"
        raise CheckpointError(
            f"{path.absolute()}: expected a run, a directory of checkpoints or a checkpoint, "
            f"found {what}"
        )
    if (path / MANIFEST_NAME).exists() or step_of(path.absolute().name) is not None:
        return [path]
    for directory in (path / "checkpoints", path):
        if directory.is_dir():
            found = [entry for entry in directory.iterdir() if step_of(entry.name) is not None]
            if found:
                return sorted(found, key=lambda entry: step_of(entry.name) or 0)
    raise CheckpointError(
        f"{path.absolute()}: expected a run, a directory of checkpoints or a checkpoint, found no "
        "step_… in it"
    )


def _look(path: Path, *, digests: bool) -> dict[str, Any]:
    """Describe one checkpoint; a refusal says what is wrong with it."""
    row: dict[str, Any] = {"path": str(path), "step": step_of(path.absolute().name)}
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return {**row, "refusal": str(error)}
    refusal = _damage(path, manifest) if digests else None
    fragments = [parse_key(key)[0] for file in manifest.files.values() for key in file.fragments]
    return {
        **row,
        "step": manifest.step,
        "samples": manifest.samples_consumed,
        "world_size": manifest.world_size,
        "attempt": manifest.attempt,
        "accuracy_fraction": manifest.accuracy_fraction,
        "kinds": [kind for kind in (*KINDS, AVERAGE) if kind in fragments],
        "parameters": sum(math.prod(shape) for shape in manifest.shapes.values()),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "files": len(manifest.files),
        "format": manifest.format,
        "refusal": refusal,
    }


def _damage(path: Path, manifest: CheckpointManifest) -> str | None:
    damage = first_damage(path, manifest)
    if damage is not None:
        return damage
    for name, file in manifest.files.items():
        if read_fragments(path / name) != file.fragments:
            return f"{path / name}: holds other fragments than the manifest says"
    return None


def _print(rows: Sequence[dict[str, Any]], *, verified: bool) -> None:
    columns = (
        "step", "samples", "world size", "attempt", "top-1", "kinds", "parameters", "bytes",
        "files", "",
    )  # fmt: skip
    table = [columns, *(_cells(row, verified=verified) for row in rows)]
    widths = [max(len(cells[index]) for cells in table) for index in range(len(columns))]
    for cells in table:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())
    for row in rows:
        for line in (row["refusal"] or "").splitlines():
            print(f"refused: {line}")


def _cells(row: dict[str, Any], *, verified: bool) -> tuple[str, ...]:
    verdict = "refused" if row["refusal"] else "sound" if verified else ""
    if "files" not in row:
        return (f"{row['step']:,}" if row["step"] is not None else "?", *("?",) * 8, verdict)
    accuracy = row["accuracy_fraction"]
    return (
        f"{row['step']:,}",
        f"{row['samples']:,}",
        str(row["world_size"]),
        str(row["attempt"] or ""),
        "" if accuracy is None else f"{100 * accuracy:.2f} %",
        " ".join(row["kinds"]),
        f"{row['parameters']:,}",
        f"{row['bytes']:,}",
        str(row["files"]),
        verdict,
    )


def _consolidate(options: argparse.Namespace, paths: Sequence[Path]) -> int:
    # Only now is torch worth its seconds.
    from pretrain.checkpoint.consolidate import consolidate, kinds_in
    from pretrain.checkpoint.resume import newest_valid, verify

    reader, refusals = None, []
    if len(paths) == 1:
        reader = verify(paths[0])
    else:
        reader, refusals = newest_valid(paths[0].parent)
    if reader is None:
        raise CheckpointError("\n".join([f"{options.path}: no checkpoint is sound", *refusals]))
    kinds = kinds_in(reader) if options.kind == ALL_KINDS else (options.kind,)
    destination = Path(options.destination)
    size_bytes = consolidate(reader, destination, kinds)
    told = {
        "source": str(reader.directory), "destination": str(destination), "step": reader.step,
        "kinds": list(kinds), "bytes": size_bytes, "refusals": refusals,
    }  # fmt: skip
    if options.json:
        print(json.dumps(told, indent=1))
        return 0
    for refusal in refusals:
        print(f"refused: {refusal}")
    print(f"{reader.directory}: step {reader.step:,}, {' '.join(kinds)}")
    print(f"{destination}: {size_bytes:,} bytes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.checkpoint",
        description="Look into saved state. PATH is a run, its checkpoints, or one of them.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, meaning in (
        ("inspect", "say what is in each checkpoint, from its manifest"),
        ("verify", "read every byte of each; exit 1 where one is not what was written"),
        ("consolidate", "write one safetensors file of whole parameters, out of the newest sound"),
    ):
        one = verbs.add_parser(verb, help=meaning, description=meaning.capitalize() + ".")
        one.add_argument("path", metavar="PATH", help="a run, its checkpoints, or one of them")
        one.add_argument("--json", action="store_true", help="for programs")
        if verb == "consolidate":
            one.add_argument("destination", metavar="FILE", help="to write, NAME.safetensors")
            one.add_argument(
                "--kind",
                default="master",
                choices=(*KINDS, AVERAGE, ALL_KINDS),
                help="what of each parameter (default: master, its fp32 weight)",
            )
    return parser


if __name__ == "__main__":
    run_command(main)
