"""A profile as one page of text. No torch."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from itertools import zip_longest

from pretrain.profile import kinds
from pretrain.profile.events import BETWEEN, ELSEWHERE, Slice
from pretrain.profile.memory import ACTIVATIONS, Peak, find_peak, known_before
from pretrain.profile.trace import Profile

WIDTH = 100
"""Columns of the page."""
LONGEST_SHOWN = 10
SMALL_FRACTION = 0.0005
"""Kinds that take less of a step are added to the others."""
MIB = 2**20

PARTS_SHOWN = {
    "waiting for data": ("data",),
    "augmentation, copies to the device": ("augment",),
    "forward pass": ("forward",),
    "loss": ("loss",),
    "backward pass": ("backward",),
    "forward pass again, in the backward": (),
    "optimizer, ZeRO": ("optimizer",),
    "collectives not hidden": (),
    "evaluation": ("evaluation",),
    "saving": ("save",),
    "records, votes, rest of the loop": (BETWEEN,),
    "device idle": (),
}
PLACES = (
    "patch embedding",
    "stage 1",
    "patch merging 1",
    "stage 2",
    "patch merging 2",
    "stage 3",
    "patch merging 3",
    "stage 4",
    "head",
    "decoder",
    ELSEWHERE,
)
_ZERO = "ZeRO, autograd"
_UNKNOWN = "no place known"
_COLUMNS = ("embed", "st. 1", "st. 2", "st. 3", "st. 4", "merge", "head", "rest")


def render(profile: Profile) -> str:
    """The page: at most 100 columns, about 70 lines."""
    sheet = _Sheet(profile)
    blocks = [
        _header(profile),
        _parts(sheet),
        _places(profile, sheet),
        _kinds(sheet),
        _longest(profile, sheet),
        _memory(profile),
    ]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks) + "\n"


class _Sheet:
    """Sums over slices, in milliseconds of one step."""

    def __init__(self, profile: Profile) -> None:
        self.slices = profile.slices
        self.steps = len(profile.steps)
        self.total = self.sum(lambda _: True)

    def sum(self, wanted: Callable[[Slice], bool]) -> float:
        seconds = sum(piece.end - piece.start for piece in self.slices if wanted(piece))
        return seconds / 1e3 / self.steps

    def by(self, key: Callable[[Slice], object]) -> dict[object, float]:
        sums: dict[object, float] = defaultdict(float)
        for piece in self.slices:
            sums[key(piece)] += (piece.end - piece.start) / 1e3 / self.steps
        return sums

    def share(self, milliseconds: float) -> str:
        return f"{milliseconds / self.total:6.1%}" if self.total else "   0.0%"


def _header(profile: Profile) -> list[str]:
    about = profile.about
    lengths = [(end - start) / 1e3 for start, end in profile.steps]
    median = statistics.median(lengths)
    lines = ["Profile of a trace that does not say of which run"]
    if about:
        last = about["first_step"] + len(profile.steps) - 1
        lines = [
            f"Profile of {about['run']}, attempt {about['attempt']}, "
            f"steps {about['first_step']} to {last}, rank {about['rank']} of {about['ranks']}"
        ]
        recomputed = about["activation_checkpointing"]
        same = len(set(recomputed)) == 1
        lines += [
            f"{about['host']}: {about['device']}, {about['threads']} threads, "
            f"torch {about['torch']}",
            f"{about['variant']}, {about['image_size']} px, {about['precision']}, micro-batch "
            f"{about['micro_batch']} x {about['accumulation']}, global batch "
            f"{about['global_batch']}, ZeRO {about['zero_stage']}, offload {about['offload']}",
            f"recomputed: {recomputed[0] if same else ', '.join(recomputed)}; compiled: "
            f"{'blocks' if about['compile'] else 'nothing'}; layer norm: {about['layer_norm']}",
        ]
    images = about.get("global_batch")
    rate = f", {images / median * 1e3:,.1f} images/s over all ranks" if images else ""
    lines.append(
        f"step: median {median:,.1f} ms of {len(lengths)} ({min(lengths):,.1f} to "
        f"{max(lengths):,.1f}){rate}"
    )
    before = about.get("seconds_before")
    if before:
        lines.append(
            f"without the profiler: median {before * 1e3:,.1f} ms of the {about['steps_before']} "
            f"steps before it; profiled, a step takes {median / before / 1e3 - 1:+.1%}"
        )
    return lines


def _parts(sheet: _Sheet) -> list[str]:
    of = {part: label for label, parts in PARTS_SHOWN.items() for part in parts}

    def label_of(piece: Slice) -> str:
        where = piece.where
        if where.kind == kinds.IDLE:
            return "device idle"
        if where.kind == kinds.COLLECTIVES:
            return "collectives not hidden"
        again = where.way == "again"
        return "forward pass again, in the backward" if again else of[where.part]

    sums = sheet.by(label_of)
    lines = [f"{'Parts of the step':<40}{'ms':>10}  share"]
    lines += [
        f"  {label:<38}{sums[label]:>10.2f} {sheet.share(sums[label])}"
        for label in PARTS_SHOWN
        if sums.get(label)
    ]
    idle = sheet.by(lambda piece: piece.where.part if piece.where.kind == kinds.IDLE else None)
    shown = [(of[str(part)], ms) for part, ms in idle.items() if part is not None]
    for label, milliseconds in sorted(shown, key=lambda item: -item[1])[:3]:
        lines.append(f"    while the host was at: {label:<14}{milliseconds:>10.2f}")
    lines.append(f"  {'all':<38}{sheet.total:>10.2f} {sheet.share(sheet.total)}")
    return lines


def _in_network(piece: Slice) -> bool:
    where = piece.where
    inside = where.part in ("forward", "loss", "backward")
    return inside and where.kind not in (kinds.IDLE, kinds.COLLECTIVES)


def _row_of(piece: Slice) -> str:
    where = piece.where
    if where.kind == "loss":
        return "loss"
    # What the host does between the network's parts is ZeRO's hooks, and little of autograd's.
    between = where.kind == kinds.HOST and where.name in ("forward", "backward")
    if where.kind == kinds.GRADIENTS or between:
        return _ZERO
    return where.place or _UNKNOWN


def _places(profile: Profile, sheet: _Sheet) -> list[str]:
    sums = sheet.by(
        lambda piece: (_row_of(piece), piece.where.way or "forward") if _in_network(piece) else None
    )
    products = sheet.by(
        lambda piece: (
            _row_of(piece)
            if _in_network(piece) and piece.where.kind in kinds.WITH_PRODUCTS
            else None
        )
    )
    flops: dict[str, float] = defaultdict(float)
    for (place, _), count in profile.flops.items():
        flops[place or _UNKNOWN] += count / sheet.steps
    peak = find_peak(profile)
    kept = {} if peak is None else peak.kept
    lines = [
        f"{'Network':<18}{'forward':>9}{'again':>8}{'backward':>10}{'ms':>10}  share"
        f"{'GFLOP':>9}{'GFLOP/s':>9}{'products':>10}{'kept':>8}"
    ]
    for row in (*PLACES, "loss", _ZERO, _UNKNOWN):
        ways = [sums.get((row, way), 0.0) for way in ("forward", "again", "backward")]
        if sum(ways):
            kept_bytes = kept.get(row, 0)
            lines.append(
                f"  {row:<16}{ways[0]:>9.2f}{ways[1]:>8.2f}{ways[2]:>10.2f}{sum(ways):>10.2f} "
                f"{sheet.share(sum(ways))}{_rates(flops[row], sum(ways), products.get(row, 0.0))}"
                f"{_mib(kept_bytes):>8}"
            )
    columns = [
        sum(value for key, value in sums.items() if isinstance(key, tuple) and key[1] == way)
        for way in ("forward", "again", "backward")
    ]
    everything = sum(value for key, value in products.items() if key is not None)
    lines.append(
        f"  {'all':<16}{columns[0]:>9.2f}{columns[1]:>8.2f}{columns[2]:>10.2f}"
        f"{sum(columns):>10.2f} {sheet.share(sum(columns))}"
        f"{_rates(sum(flops.values()), sum(columns), everything)}{_mib(sum(kept.values())):>8}"
    )
    lines.append(
        "  products: GFLOP/s over the time of products and attention alone; "
        "kept: MiB for the backward pass"
    )
    return lines


def _rates(flops: float, milliseconds: float, products: float) -> str:
    if not flops:
        return " " * 28
    overall = flops / milliseconds / 1e6 if milliseconds else 0.0
    pure = flops / products / 1e6 if products else 0.0
    return f"{flops / 1e9:>9.2f}{overall:>9.1f}{pure:>10.1f}"


def _mib(size: float) -> str:
    return f"{size / MIB:,.1f}" if size else ""


def _column_of(piece: Slice) -> str:
    place = piece.where.place
    if place.startswith("stage "):
        return f"st. {place[-1]}"
    if place.startswith("patch "):
        return "embed" if place == "patch embedding" else "merge"
    return "head" if place in ("head", "decoder") else "rest"


def _kinds(sheet: _Sheet) -> list[str]:
    every = sheet.by(lambda piece: piece.where.kind)
    small = {kind for kind, ms in every.items() if ms < SMALL_FRACTION * sheet.total}

    def row_of(piece: Slice) -> str:
        return kinds.OTHER if piece.where.kind in small else piece.where.kind

    cells = sheet.by(lambda piece: (row_of(piece), _column_of(piece)))
    rows = sheet.by(row_of)
    lines = [
        f"{'Kinds of operation, ms':<24}"
        + "".join(f"{column:>7}" for column in _COLUMNS)
        + f"{'all':>9}  share"
    ]
    for kind in kinds.KINDS:
        if rows.get(kind):
            values = [cells.get((kind, column), 0.0) for column in _COLUMNS]
            lines.append(
                f"  {kind:<22}"
                + "".join(_cell(value) for value in values)
                + f"{rows[kind]:>9.2f} {sheet.share(rows[kind])}"
            )
    return lines


def _cell(milliseconds: float) -> str:
    """A number in seven columns, with as many places as there is room for."""
    places = 2 if milliseconds < 1000 else 1 if milliseconds < 10000 else 0
    return f"{milliseconds:>7.{places}f}" if milliseconds else " " * 7


def _longest(profile: Profile, sheet: _Sheet) -> list[str]:
    what = "kernels" if profile.on_device else "operators, without what they call"
    sums = sheet.by(lambda piece: (piece.where.name, piece.where.kind) if _is_work(piece) else None)
    sums.pop(None, None)
    counts: dict[object, int] = defaultdict(int)
    for piece in sheet.slices:
        counts[piece.where.name, piece.where.kind] += 1
    ordered = sorted(sums.items(), key=lambda item: -item[1])[:LONGEST_SHOWN]
    lines = [f"{'Longest ' + what:<54}{'kind':<24}{'ms':>9}  share"]
    for (name, kind), milliseconds in ordered:  # pyright: ignore[reportGeneralTypeIssues]
        lines.append(
            f"  {_short(name, 51):<52}{kind:<24}{milliseconds:>9.2f} {sheet.share(milliseconds)}"
        )
    return lines


def _is_work(piece: Slice) -> bool:
    return piece.where.kind not in (kinds.IDLE, kinds.HOST, kinds.OF_PARTS["data"])


def _short(name: str, width: int) -> str:
    plain = name.removeprefix("void ").removeprefix("at::native::")
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def _memory(profile: Profile) -> list[str]:
    peak = find_peak(profile)
    if peak is None:
        return ["Memory: not recorded (profile.memory=true records it)"]
    sizes = _grouped(peak)
    before = known_before(profile.about.get("bytes_before") or {}, peak)
    whose = "device" if profile.on_device else "host (tensors)"
    total = sum(sizes.values()) + sum(before.values())
    lines = [
        f"Memory of the {whose} at its peak: {total / MIB:,.1f} MiB, in part '{peak.part}' "
        "(lasting state as planned)"
    ]
    rows = [*before.items(), *sorted(sizes.items(), key=lambda item: -item[1])]
    cells = [f"{name:<30}{size / MIB:>10,.1f} {size / total:>6.1%}" for name, size in rows if size]
    half = -(-len(cells) // 2)
    for left, right in zip_longest(cells[:half], cells[half:], fillvalue=""):
        lines.append(f"  {left}  {right}".rstrip())
    return lines


def _grouped(peak: Peak) -> dict[str, int]:
    """The peak by kind; what is kept outside the stages together, and what is little."""
    total = sum(peak.bytes_by_kind.values())
    sizes: dict[str, int] = defaultdict(int)
    for name, size in peak.bytes_by_kind.items():
        outside = name.startswith(ACTIVATIONS) and "stage" not in name
        label = ACTIVATIONS + "elsewhere" if outside else name
        sizes[label if size > SMALL_FRACTION * total else "the rest"] += size
    return sizes
