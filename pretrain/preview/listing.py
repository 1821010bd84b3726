"""The same as the picture in text: where each image lies, what its target is, what was drawn."""

from bisect import bisect_right
from itertools import accumulate

from pretrain.data.manifest import Split
from pretrain.preview.drawing import percent
from pretrain.preview.sheet import Label, Panel, Sheet


def listing(sheet: Sheet, split: Split) -> list[str]:
    """One line for each image, and one, marked with a plus, for what is mixed into it."""
    ends = list(accumulate(shard.samples for shard in split.shards))

    def line(mark: str, sample_id: int, rest: str) -> str:
        number = bisect_right(ends, sample_id)
        shard = split.shards[number]
        place = sample_id - ends[number] + shard.samples
        return f"{mark:>4} {sample_id:>9}  {shard.file} {place:>5}  {rest}".rstrip()

    lines = ["   #    sample  shard and position  target; drawn"]
    for number, panel in enumerate(sheet.panels, start=1):
        lines.append(line(str(number), panel.sample_id, _told(panel)))
        if panel.partner_id is not None:
            lines.append(line("+", panel.partner_id, ", ".join(panel.partner_draws)))
    return lines


def _told(panel: Panel) -> str:
    parts = [_label(label) for label in panel.labels]
    if panel.draws:
        parts.append(", ".join(panel.draws))
    return "; ".join(parts)


def _label(label: Label) -> str:
    wnid = f" ({label.id})" if label.id != label.name else ""
    return f"{percent(label.weight_fraction)} {label.name}{wnid}"
