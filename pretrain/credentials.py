"""What looks like a credential, so that none is written down. No torch."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pretrain.location import PASSWORD_IN_URL, shown

_NAME = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY(_ID)?|PRIVATE_?KEY|SECRET|TOKENS?|PASSWORD|PASSWD|PASSPHRASE|"
    r"CREDENTIALS?|JWT|PAT)(_|$)",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z_][A-Za-z0-9_]*)=(?:\"|')?([^\s\"',]+)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
SHORTEST_SECRET = 8
"""Characters; shorter values, such as ``true``, occur by chance."""


def is_credential(name: str) -> bool:
    """Whether a variable of this name holds a secret, such as ``WANDB_API_KEY``."""
    return _NAME.search(name) is not None


def credential_in(text: str) -> str | None:
    """What a shell line or an option gives away: a variable's name, ``a URL``, or None.

    ``KEY=$(cat FILE)`` and ``KEY=$OTHER`` give nothing away.
    """
    if PASSWORD_IN_URL.search(text):
        return "a URL with a password"
    for name, value in _ASSIGNMENT.findall(text):
        if is_credential(name) and not value.startswith(("$", "`")):
            return name
    return None


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that hold secrets."""
    return {
        name: value
        for name, value in environment.items()
        if is_credential(name) and len(value) >= SHORTEST_SECRET
    }


def redact(words: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """The words of a command as they may be recorded.

    Left out are secrets of the environment, what authorises in a URL, and the values of assignments
    that look like credentials.
    """
    return [_redact(word, secrets_of(environment)) for word in words]


def without_url_secrets(values: Any) -> Any:
    """The same JSON-like values with every URL as it may be shown."""
    if isinstance(values, Mapping):
        return {key: without_url_secrets(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_url_secrets(value) for value in values]
    return shown(values) if isinstance(values, str) else values


def _redact(word: str, secrets: Mapping[str, str]) -> str:
    for name, value in secrets.items():
        word = word.replace(value, f"<{name}>")
    word = _URL.sub(lambda match: shown(match[0]), word)
    return _ASSIGNMENT.sub(_redact_assignment, word)


def _redact_assignment(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if not is_credential(name) or value.startswith(("$", "`", "<")):
        return match[0]
    return match[0].replace(value, f"<{name}>")
