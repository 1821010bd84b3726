"""``python configs/table.py``: write README.md's recipe table from the headers of the configs.

A header is the comment that a config opens with: what it is, then one line for each of `FIELDS`.
"""

import re
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent
README = CONFIGS.parent / "README.md"
BEGIN, END = "<!-- recipes: written by configs/table.py -->\n", "<!-- end of recipes -->\n"
FIELDS = ("Source", "Command", "Published", "Hardware", "Status")
STATUS = re.compile(r"unverified|verified [0-9a-f]{7,40}(: .+)?")
"""A commit is the one whose run gave what follows the colon."""


def read_header(path: Path) -> dict[str, str]:
    """Return a config's fields, in the order of `FIELDS`.

    Raises:
        ValueError: a field is missing, empty, repeated, unknown or out of order, or the status says
            something else than ``unverified`` or ``verified COMMIT``.
    """
    found: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        match = re.fullmatch(r"# ([A-Z][a-z]+): +(\S.*)", line)
        if match:
            found.append((match[1], match[2]))
    if tuple(name for name, _ in found) != FIELDS:
        raise ValueError(
            f"{path}: header: expected lines '# Name: text' for {', '.join(FIELDS)}, "
            f"got {', '.join(name for name, _ in found) or 'none'}"
        )
    header = dict(found)
    if not STATUS.fullmatch(header["Status"]):
        raise ValueError(
            f"{path}: header: Status: expected 'unverified' or 'verified COMMIT', "
            f"got {header['Status']!r}"
        )
    return header


def table() -> str:
    """Return the table of every config, sorted by name.

    Raises:
        ValueError: some header is not complete.
    """
    rows = ["| config | published | hardware and cost | status |", "| --- | --- | --- | --- |"]
    for path in sorted(CONFIGS.glob("*.yaml")):
        header = read_header(path)
        cells = (header[name] for name in ("Published", "Hardware", "Status"))
        rows.append(f"| `{path.stem}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Bring README.md up to date; return the exit code."""
    before, opening, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, closing, after = rest.partition(END)
    if not opening or not closing:
        print(f"error: {README}: no lines {BEGIN.strip()} and {END.strip()}", file=sys.stderr)
        return 2
    try:
        rows = table()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    README.write_text(f"{before}{BEGIN}{rows}{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
