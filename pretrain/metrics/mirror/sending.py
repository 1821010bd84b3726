"""What of a run's record Weights & Biases has, and what it is still to get. Pure, no wandb."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pretrain.metrics.mirror.dashboard import AUGMENTATION, AXES
from pretrain.metrics.mirror.files import WandbFile

STEP, SAMPLES = AXES
"""Our own axes: wandb's step begins at 0 again in every offline attempt."""
NOT_SENT = ("step", "time", "attempt")
DIGEST, ACCURACY = "sha256", "accuracy_fraction"
"""Of a checkpoint or an export, in the metadata of its artifact."""


@dataclass
class Sent:
    """What the run's own files hold already.

    Attributes:
        step: the last that a row is of.
        names: what is there of that step.
        alerts: texts of the alerts.
        digests: of the checkpoints and exports.
        best: the highest accuracy of a checkpoint.
        image: whether the augmented images are there.
    """

    step: int = 0
    names: set[str] = field(default_factory=set)
    alerts: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    best: float = float("-inf")
    image: bool = False


def sent_by(files: Iterable[WandbFile]) -> Sent:
    """Return what is in the files, whatever their order."""
    sent = Sent()
    for file in files:
        for row in file.rows:
            step = row.get(STEP)
            if isinstance(step, int) and step >= sent.step:
                sent.names = values_of(row).keys() | (sent.names if step == sent.step else set())
                sent.step = step
            sent.image = sent.image or any(name.startswith(f"{AUGMENTATION}/") for name in row)
        sent.alerts.update(file.alerts)
        for artifact in file.artifacts:
            sent.digests.add(str(artifact["metadata"].get(DIGEST)))
            sent.best = max(sent.best, artifact["metadata"].get(ACCURACY) or sent.best)
    return sent


def values_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row, or a line of the record, without its axes."""
    return {name: row[name] for name in row if name not in (STEP, SAMPLES, *NOT_SENT)}


class Rows:
    """Makes one row of the lines of each step, and passes over what was sent.

    A row is complete when a line of another step follows, so that both axes grow with every row.
    The exception is a step of which a part was sent at the end of a job and more comes later.

    Args:
        sent: what wandb has; kept up to date.
        images_per_step: that training takes.
    """

    def __init__(self, sent: Sent, images_per_step: int) -> None:
        self._sent = sent
        self._images_per_step = images_per_step
        self.forget()

    def forget(self) -> None:
        """Begin again at the start of the record, which was cut back."""
        self._step = 0
        self._values: dict[str, Any] = {}

    def add(self, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take the next line of the record; return the row of the step that it ends, if any."""
        row = self.end() if line["step"] != self._step else None
        self._step = line["step"]
        self._values |= values_of(line)
        return row

    def end(self) -> dict[str, Any] | None:
        """Return the row of the step at the end of the record, unless all of it was sent."""
        sent, step, values = self._sent, self._step, self._values
        self.forget()
        if step < sent.step:
            return None
        if step == sent.step:
            values = {name: values[name] for name in values if name not in sent.names}
        if not values:
            return None
        sent.names = values.keys() | (sent.names if step == sent.step else set())
        sent.step = step
        return {STEP: step, SAMPLES: step * self._images_per_step, **values}


def alert_text(event: Mapping[str, Any]) -> str:
    """Return what an alert says there: with its moment, by which it is known again."""
    moment = datetime.fromtimestamp(float(event["time"]), UTC)
    stamp = moment.isoformat(sep=" ", timespec="milliseconds")
    return f"{event['text']}\nattempt {event['attempt']}, {stamp}"
