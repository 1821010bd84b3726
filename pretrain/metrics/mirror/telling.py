"""Alerts, checkpoints and pictures of a run on their way to Weights & Biases, each once."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pretrain.metrics.alerts import TITLES
from pretrain.metrics.mirror.dashboard import AUGMENTATION
from pretrain.metrics.mirror.sending import ACCURACY, DIGEST, Sent, alert_text

TITLE_LETTERS = 63
"""What wandb takes at most as the title of an alert."""
CHECKPOINT_FILE, EXPORT_FILE = "manifest.json", "config.json"
"""What tells all about a checkpoint and about an export, the digests of their files included."""


class Teller:
    """Tells what events say; at most one alert a round, so that a storm of them is no storm there.

    Args:
        run: wandb's.
        settings: what `WandbMirror` wrote.
        sent: what wandb has; kept up to date.
    """

    def __init__(self, run: Any, settings: Mapping[str, Any], sent: Sent) -> None:
        self._run = run
        self._settings = settings
        self._sent = sent
        self._alerts: deque[Mapping[str, Any]] = deque()
        self._directories: deque[Path] = deque()

    def hear(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take new events, of this attempt or an earlier one."""
        checkpoints = Path(self._settings["checkpoints_dir"])
        for event in events:
            kind = event.get("event")
            if kind == "alert" and {"about", "text", "time", "attempt"} <= event.keys():
                self._alerts.append(event)
            elif kind in ("checkpoint_saved", "exported"):
                self._directories.append(Path(str(event.get("directory"))))
            elif kind == "resumed":  # it may have been saved in the instant before a kill
                self._directories.append(checkpoints / str(event.get("checkpoint")))

    def tell(self) -> None:
        """Send what there is, of alerts the next."""
        while self._directories:
            self._log_weights(self._directories.popleft())
        while self._alerts and not self._alert(self._alerts.popleft()):
            pass
        picture = Path(self._settings["augmentation_path"])
        if not self._sent.image and picture.exists():
            import wandb

            self._sent.image = True
            self._run.log({AUGMENTATION: wandb.Image(str(picture))})

    def tell_all(self) -> None:
        """Send all there is."""
        self.tell()
        while self._alerts:
            self._alert(self._alerts.popleft())

    def _alert(self, event: Mapping[str, Any]) -> bool:
        text = alert_text(event)
        if text in self._sent.alerts:
            return False
        self._sent.alerts.add(text)
        what = TITLES.get(event["about"], str(event["about"]))
        self._run.alert(
            title=f"{self._settings['name']}: {what}"[-TITLE_LETTERS:],
            text=text,
            level="ERROR" if event["about"] == "failure" else "WARN",
            wait_duration=1,  # 0 would be a minute, in which wandb drops what has the same title
        )
        return True

    def _log_weights(self, directory: Path) -> None:
        """Log a reference to a checkpoint or an export, unless it is there or gone already."""
        found = _about(directory)
        if found is None or found[1][DIGEST] in self._sent.digests:
            return
        import wandb

        kind, metadata = found
        accuracy = metadata[ACCURACY]
        aliases = ["latest"]
        if accuracy is not None and accuracy >= self._sent.best:
            aliases.append("best")
            self._sent.best = accuracy
        self._sent.digests.add(metadata[DIGEST])
        name = f"{kind}-{self._settings['id']}"
        artifact = wandb.Artifact(name, type="model", metadata=metadata)
        try:
            artifact.add_reference(directory.as_uri(), checksum=False)
        except (OSError, ValueError):
            return  # deleted meanwhile: newer ones have come
        self._run.log_artifact(artifact, aliases=aliases)


def _about(directory: Path) -> tuple[str, dict[str, Any]] | None:
    """Kind and metadata of a directory of weights; None where it is gone or damaged."""
    for kind, name in (("checkpoint", CHECKPOINT_FILE), ("export", EXPORT_FILE)):
        try:
            content = (directory / name).read_bytes()
            document = json.loads(content)
            facts = document["manifest" if kind == "checkpoint" else "provenance"]
            return kind, {
                "step": facts["step"],
                "samples": facts["samples_consumed"],
                ACCURACY: facts.get(ACCURACY),
                DIGEST: hashlib.sha256(content).hexdigest(),
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
