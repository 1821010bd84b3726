"""What came of kill points, counted, and its line of a table."""

from collections import Counter
from dataclasses import dataclass, field

from crash_states import NEW, OLD


@dataclass
class Tally:
    """What came of many kill points."""

    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    survivors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, survivor: str, where: str) -> None:
        """Count one point; anything but a known good outcome is kept with its place."""
        self.points += 1
        self.outcomes[outcome] += 1
        self.survivors[survivor] += 1
        if outcome not in (f"step {OLD}", f"step {NEW}") or survivor == "hung":
            self.wrong.append(f"{where}: {outcome}, survivor {survivor}")

    def __iadd__(self, other: "Tally") -> "Tally":
        self.points += other.points
        self.outcomes += other.outcomes
        self.survivors += other.survivors
        self.wrong += other.wrong
        return self

    def row(self, name: str) -> str:
        """The tally as a line of a table."""
        good = self.outcomes[f"step {OLD}"] + self.outcomes[f"step {NEW}"]
        noticed = self.survivors["left"]
        hung = self.survivors["hung"]
        share = f"{100 * good / max(self.points, 1):.1f} %"
        return (
            f"| {name} | {self.points} | {good} ({share}) | {self.outcomes[f'step {OLD}']} | "
            f"{self.outcomes[f'step {NEW}']} | {self.points - good} | {noticed} | {hung} |"
        )
