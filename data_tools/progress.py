"""A progress bar on standard error, silent where that is not a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def progress_bar(
    title: str, total: int, *, in_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; the function given counts items (or bytes) done.

    It is redrawn only when called: a drawing thread would be alive when processes are forked.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=total)

        def advance(items: int) -> None:
            bar.update(task, advance=items, refresh=True)

        yield advance
