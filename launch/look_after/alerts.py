"""What a run's events.jsonl says that somebody watching should hear at once. No torch."""

import json
from pathlib import Path

_WORDS = {
    "checkpoint_failed": "no checkpoint of step {step}, training goes on: {reason}",
    "checkpoint_refused": "a checkpoint was refused: {reason}",
}


class Alerts:
    """Reads events as they are written, from those on that come after this is made.

    Args:
        path: of the events, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.is_file() else 0

    def news(self) -> list[str]:
        """Return one line for each alarming event since the last call; torn lines wait."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                written = file.read()
        except FileNotFoundError:
            return []
        whole = written[: written.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [said for said in map(_say, whole.splitlines()) if said]


def _say(line: bytes) -> str:
    try:
        event = json.loads(line)
        words = _WORDS[event["event"]]
        return " ".join(words.format_map(event).split())
    except (ValueError, KeyError, TypeError):
        return ""
