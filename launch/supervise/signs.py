"""Signs of life of an attempt's ranks, read from small files, and what their absence means."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.supervise.decide import Failure
from launch.supervise.ranks import Layout
from pretrain.config.schema import RunConfig
from pretrain.run_directory import RunDirectory
from pretrain.watchdog import BACKSTOP_SECONDS, HEARTBEAT_SECONDS, LINGER_SECONDS

LOOK_SECONDS = 1.0
MARGIN_SECONDS = BACKSTOP_SECONDS + LINGER_SECONDS + 2 * HEARTBEAT_SECONDS
"""A rank that its own watchdog can still end is gone this long after its deadline."""
PHASES = {"starting": "start", "training": "step", "evaluating": "evaluation", "saving": "save"}
"""What a state of progress.json is called by the watchdog."""


@dataclass(frozen=True)
class _Sign:
    text: str
    seen: float
    """When this process first saw that text, by its own clock: the nodes' clocks may differ."""


class Signs:
    """Looks for signs of life of one attempt; a node's sign is a small file.

    Args:
        run: the run.
        number: of the attempt, which begins now.
        layout: how many ranks there should be.
        nodes: their nodes in the order of ranks; empty where not known.
        config: deadlines of the watchdog, and how long a start may take.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        run: RunDirectory,
        number: int,
        layout: Layout,
        nodes: Sequence[str],
        config: RunConfig,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._number = number
        self._layout = layout
        self._nodes = nodes
        self._config = config
        self._now = now
        self._start = self._looked = self._looked_for_stacks = now()
        self._launched = False
        self._signs: dict[str, _Sign] = {}

    def missing(self) -> Failure | None:
        """What is missing for too long by now; None while all is as it should be."""
        pause = LOOK_SECONDS if not self._signs else LOOK_SECONDS * max(1, len(self._nodes) // 8)
        if self._now() - self._looked < pause:
            return None
        self._looked = self._now()
        self._read()
        return self._not_started() if not self._signs else self._silent()

    def stacks_written(self) -> bool:
        """Whether a rank found that it no longer moves; looks at most about once a second."""
        if self._now() - self._looked_for_stacks < LOOK_SECONDS:
            return False
        self._looked_for_stacks = self._now()
        paths = self._run.attempt_dir(self._number).glob("stacks_rank_*.txt")
        return any(_size(path) > 0 for path in paths)

    def phase(self) -> str:
        """What the ranks are or were at, from the newest sign."""
        if not self._launched and not self._signs:
            return "launch"
        newest = max(self._signs.items(), key=lambda item: item[1].seen, default=None)
        return "join" if newest is None else self._content(newest[0])[0]

    def _read(self) -> None:
        beats = self._run.attempt_dir(self._number).glob("heartbeat_*.json")
        for path in (*beats, self._run.progress_path):
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue
            if path == self._run.progress_path and not self._is_ours(text):
                continue
            known = self._signs.get(path.name)
            if known is None or known.text != text:
                self._signs[path.name] = _Sign(text, self._now())

    def _is_ours(self, text: str) -> bool:
        try:
            return json.loads(text).get("attempt") == self._number
        except (ValueError, AttributeError):
            return False

    def _not_started(self) -> Failure | None:
        passed = self._now() - self._start
        cluster = self._config.cluster
        if not self._launched:
            logs = {path.name for path in self._run.attempt_dir(self._number).glob("rank_*.log")}
            ranks = range(self._layout.size)
            absent = [
                rank for rank in ranks if self._run.rank_log(self._number, rank).name not in logs
            ]
            self._launched = not absent
            if absent and passed > cluster.launch_timeout_seconds:
                return self._never(absent, "was not launched", cluster.launch_timeout_seconds)
        if passed > cluster.start_timeout_seconds:
            return self._never([], "no rank began", cluster.start_timeout_seconds)
        return None

    def _never(self, ranks: list[int], what: str, seconds: int) -> Failure:
        nodes = list(dict.fromkeys(filter(None, map(self._node_of, ranks))))
        named = f"rank{'s' * (len(ranks) > 1)} {_shown(ranks)} " if ranks else ""
        where = f" on {', '.join(nodes)}" if nodes else ""
        return Failure(
            ranks[0] if ranks else None,
            f"{named}{what}{where} within {seconds} s",
            "never_started",
            nodes[0] if len(nodes) == 1 else None,
            phase="launch" if ranks else "join",
        )

    def _silent(self) -> Failure | None:
        """A node whose first rank has given no sign for longer than it may take over anything."""
        beats = {name: sign for name, sign in self._signs.items() if name.startswith("heartbeat_")}
        for name, sign in (beats or self._signs).items():
            phase, patience = self._content(name)
            silent = self._now() - sign.seen
            if silent > patience + MARGIN_SECONDS:
                node = name.removeprefix("heartbeat_").removesuffix(".json") if beats else None
                who = f"the first rank on {node}" if node else "rank zero"
                rank = self._first_rank(node)
                reason = f"{who} has given no sign of life for {silent:.0f} s ({phase})"
                return Failure(rank, reason, "rank_hung", node, phase)
        return None

    def _content(self, name: str) -> tuple[str, float]:
        """The phase that a sign tells, and how long that may take."""
        longest = max(value for _, value in self._config.watchdog)
        content = json.loads(self._signs[name].text)
        phase = str(content.get("phase") or PHASES.get(str(content.get("state")), "save"))
        return phase, float(content.get("seconds", longest))

    def _node_of(self, rank: int) -> str | None:
        return self._nodes[rank // self._layout.ranks_per_node] if self._nodes else None

    def _first_rank(self, node: str | None) -> int | None:
        if node is None or node not in self._nodes:
            return 0 if len(self._nodes) <= 1 else None
        return self._nodes.index(node) * self._layout.ranks_per_node


def _shown(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ", ".join(map(str, ranks[:8])) + more


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
