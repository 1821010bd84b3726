"""Compares loaders by the CPU time they need per image, and prints a Markdown table.

python benchmarks/loader.py [JPEGS] [--workers 2] [--rounds 5] [--images 2048]

JPEGS is a folder or a tar of JPEG files; without it photograph-like ones are made. Each loader runs
in a process of its own; the CPU time (user and system) of that process and of its workers is taken,
from before the loader is made until its workers have ended. The loaders take turns, round after
round, and every ratio is between runs of the same round: work of others on the machine then falls
on all alike. Shown are medians over the rounds with the least and the greatest.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from loader_pipelines import BASELINE, FLOOR, OURS, PIPELINES, prepare, whole_batches
from PIL import Image

from data_tools.build import build
from data_tools.sources import imagefolder
from pretrain.errors import DataError, run_command

_SYNTHETIC_IMAGES = 256
_CLASSES = 8
_PACKAGES = (
    "torch",
    "simplejpeg",
    "Pillow",
    "webdataset",
    "mosaicml-streaming",
    "litdata",
    "nvidia-dali-cuda120",
)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/loader.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("jpegs", nargs="?", type=Path, help="folder or tar of JPEG files")
    parser.add_argument("--workers", type=int, default=2, help="of each loader (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="of all loaders (default: 5)")
    parser.add_argument("--images", type=int, default=2048, help="per run (default: 2048)")
    parser.add_argument("--one", nargs=2, metavar=("DATA", "LOADER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.images) < 1 or options.workers < 0:
        raise DataError("expected --rounds and --images above 0, --workers 0 or more")
    images = whole_batches(options.images)
    if options.one:
        print(json.dumps(_run_here(Path(options.one[0]), options.one[1], images, options.workers)))
        return 0
    names = [name for name, (_, module) in PIPELINES.items() if _is_installed(module)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        summary = _pack(options.jpegs, data, images)
        wanted = {module for name in names if (module := PIPELINES[name][1]) is not None}
        with contextlib.redirect_stdout(sys.stderr):  # some writers talk
            prepare(data, wanted)
        rounds = []
        for number in range(options.rounds):
            # Each round begins with another loader: none has always the same neighbour.
            turned = names[number % len(names) :] + names[: number % len(names)]
            rounds.append({n: _run_apart(data, n, images, options.workers) for n in turned})
    print("\n".join(_report(rounds, names, summary, options.workers, images)))
    return 0


def _is_installed(module: str | None) -> bool:
    try:
        return module is None or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _run_apart(data: Path, name: str, images: int, workers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(data), name]
    command += ["--images", str(images), "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise DataError(f"{name}: failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run_here(data: Path, name: str, images: int, workers: int) -> dict[str, float]:
    torch.set_num_threads(1)
    run, module = PIPELINES[name]
    if module is not None:
        importlib.import_module(module)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    count = run(data, images, workers)
    gc.collect()  # ends the workers of loaders that have no close()
    return {
        "cpu_ms": 1000 * (_cpu_seconds() - cpu) / count,
        "wall_ms": 1000 * (time.perf_counter() - wall) / count,
    }


def _cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _pack(jpegs: Path | None, data: Path, images: int) -> str:
    """Build the shards, repeating the images until a run needs none twice; what they are."""
    sizes: list[int] = []
    pixels: list[int] = []
    files = [file for _, file in zip(range(images), _jpegs(jpegs), strict=False)]
    if not files:
        raise DataError(f"{jpegs}: expected JPEG files in it, found none")
    for number in range(images):
        file = files[number % len(files)]
        folder = data / "images" / "train" / f"n{number % _CLASSES:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.JPEG").write_bytes(file)
        with Image.open(io.BytesIO(file)) as image:
            sizes.append(len(file))
            pixels.append(image.width * image.height)
    source = imagefolder(data / "images", class_names_file=None, eval_per_class=None, seed=0)
    build(source, data / "shards", name="bench", shard_mib=32, seed=0, workers=1)
    kind = "synthetic" if jpegs is None else "given"
    return (
        f"{len(files)} {kind} JPEGs, repeated to {images:,}; mean {np.mean(sizes) / 1000:.0f} kB, "
        f"{np.mean(pixels) / 1e6:.3f} megapixels"
    )


def _jpegs(place: Path | None) -> Iterator[bytes]:
    if place is None:
        yield from (_synthetic(number) for number in range(_SYNTHETIC_IMAGES))
    elif place.is_dir():
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg"):
                yield path.read_bytes()
    else:
        try:
            with tarfile.open(place) as tar:
                for member in tar:
                    if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg")):
                        file = tar.extractfile(member)
                        yield file.read() if file else b""
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{place}: expected a folder or a tar of JPEGs: {error}") from None


def _synthetic(number: int) -> bytes:
    """About as large as a photograph of ImageNet, in pixels and bytes."""
    random = np.random.default_rng(number)
    total = np.zeros((375, 500, 3), dtype=np.float32)
    for cells in (4, 12, 40, 120):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        total += np.asarray(layer) / cells**0.5
    total *= 255 / total.max()
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=96, subsampling=0)
    return file.getvalue()


def _report(
    rounds: list[dict[str, dict[str, float]]],
    names: list[str],
    summary: str,
    workers: int,
    images: int,
) -> list[str]:
    lines = [
        f"{summary}. {workers} workers, batches of 64, {images:,} images a run, {len(rounds)} "
        "rounds; medians [least, greatest].",
        "",
        "| loader | CPU ms per image | CPU time of webdataset + Pillow ÷ its own "
        "| its own ÷ decode alone | wall ms per image |",
        "|---|--:|--:|--:|--:|",
    ]
    order = sorted(names, key=lambda name: median(r[name]["cpu_ms"] for r in rounds))
    for name in order:
        cpu, wall = ([r[name][key] for r in rounds] for key in ("cpu_ms", "wall_ms"))
        gain = [r[BASELINE]["cpu_ms"] / r[name]["cpu_ms"] for r in rounds]
        over = [r[name]["cpu_ms"] / r[FLOOR]["cpu_ms"] for r in rounds]
        cells = [_spread(values) for values in (cpu, gain, over, wall)]
        shown = f"**{name}**" if name == OURS else name
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    missing = [name for name in PIPELINES if name not in names]
    if missing:
        lines += ["", f"Left out, not installed here: {'; '.join(missing)}."]
    lines += ["", f"{_processor()}; Python {platform.python_version()}; {_versions()}."]
    return lines


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    return f"{os.cpu_count()} cores of {model}"


def _versions() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    run_command(main)
