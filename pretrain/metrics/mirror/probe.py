"""What a server does, where wandb only says that it did not get on with it."""

import http.client
import threading
import urllib.error
import urllib.request

PROBE_SECONDS = 3.0
"""Longest wait for what may explain a failure."""


def server_problem() -> str | None:
    """Return the address of wandb's server and what it does wrong; None where it answers."""
    import wandb

    url = str(wandb.setup().settings.base_url)
    wrong = what_is_wrong(url)
    return f"{url}: {wrong}" if wrong else None


def what_is_wrong(url: str) -> str | None:
    """Ask the server at ``url`` for something without credentials, in bounded time.

    Returns:
        What it does wrong; None where it answers somehow, be it with a refusal.
    """
    found: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=2 * PROBE_SECONDS).close()  # noqa: S310
            found.append(None)
        except urllib.error.HTTPError as error:
            found.append(f"answers {error.code} {error.reason}" if error.code >= 500 else None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            found.append(str(getattr(error, "reason", error)) or type(error).__name__)

    # A thread, because a server that sends byte by byte meets every deadline of a socket.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0] if found else f"no answer within {PROBE_SECONDS:g} s"
