"""What a run's events.jsonl says that somebody watching should hear at once. No torch."""

import json
from pathlib import Path


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
    """The text of an alert; how an attempt ended is told from the ledger already."""
    try:
        event = json.loads(line)
        alarming = event["event"] == "alert" and event["about"] != "failure"
        return " ".join(event["text"].split()) if alarming else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
