"""Secrets of this machine: kept out of words and configs, which are stored, and taken out of what is said."""

import netrc
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote

NAMES = re.compile(
    r"(?i)key|token|secret|passw|passphrase|credential|auth(?!or)|cookie|_pat$"
)  # of the environment's secrets
SHORT = 8  # letters: what has fewer is rather a setting, and would be found everywhere
# Of a config's keys and a URL's arguments, the last part: `api_key=`, `?X-Amz-Signature=`.
CALLED = (
    r"[\w-]{0,64}(?:(?:api|access|private|secret)[_-]?key|token|secret|password|passwd|passphrase|credentials?|signature)"
)
OF_URL = re.compile(r"(?<=://)(?:[^/\s@]{0,256}:\S{0,512}@|[^/\s'\"]{0,256}@)")  # a password may hold a slash or an @
ARGUMENT = re.compile(rf"(?i)([?&;](?:{CALLED}|sig)=)[^&\s'\"]+")
ASSIGNED = re.compile(rf"(?i)[+~]*(?:[\w/@]+\.)*{CALLED}=(?!null$|$).+")
ENVIRONMENT = re.compile(r"oc\.env\s*:\s*['\"]?(\w+)")
INSTEAD = "libraries read secrets from the environment by themselves; a config is stored and shown"


def secrets() -> dict[str, str]:
    """What is secret → where it stands: variables by their names, URLs with a password in any of them, netrc's."""
    found = {}
    for name, value in os.environ.items():
        if NAMES.search(name) and len(value) >= SHORT and not os.path.exists(value):
            found[value] = name
        for part in OF_URL.findall(value):
            who, _, password = part.rstrip("@").partition(":")
            found |= {one: name for one in (part.rstrip("@"), password or who) if len(one) >= SHORT}
    return {**{password: "netrc" for password in _of_netrc() if len(password) >= SHORT}, **found}


def _of_netrc() -> Iterator[str]:
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        status = os.stat(path)
        hosts = _hosts(path, status.st_size, status.st_mtime_ns)
    except (OSError, netrc.NetrcParseError, ValueError):
        return
    yield from hosts


@lru_cache(4)
def _hosts(path: str, *_: int) -> tuple[str, ...]:
    return tuple(password for _, _, password in netrc.netrc(path).hosts.values() if password)


def redacted(text: str) -> str:
    """The text with *** for every secret, whoever said it: what errors and traces go through."""
    return _redacted(text, secrets())


def _redacted(text: str, known: dict[str, str]) -> str:
    for value in sorted(known, key=len, reverse=True):
        for form in (value, quote(value, safe="")):
            text = text.replace(form, "***")
    return ARGUMENT.sub(r"\1***", OF_URL.sub("***@", text))


def refuse_words(words: Iterable[str]) -> None:
    """Raises ValueError for a word of the command line that holds or asks for a secret: it would lie in .hydra at once."""
    known = secrets()
    for word in words:
        for name in ENVIRONMENT.findall(word):
            refuse_variable(name)
        if why := _reason(word, known):
            raise ValueError(f"{_redacted(word, known)}: {why}")
        if ASSIGNED.fullmatch(word):
            raise ValueError(f"{word.partition('=')[0]}=***: by its name a secret; {INSTEAD}")


def refuse_variable(name: str) -> None:
    """Raises ValueError for a variable that is secret by its name or its value."""
    if NAMES.search(name) or _reason(os.environ.get(name, ""), secrets()):
        raise ValueError(f"oc.env:{name}: by its name or value a secret; {INSTEAD}")


def refuse_values(node: Any) -> None:
    """Raises ValueError where a resolved config holds a secret, with its dotted key."""
    known = secrets()
    for path, text in strings(node, ""):
        if why := _reason(text, known):
            raise ValueError(f"{_redacted(path, known)}: {why}")


def _reason(text: str, known: dict[str, str]) -> str | None:
    """Why this text may not be stored."""
    if found := next((name for value, name in known.items() if value in text), None):
        return f"the value of {found}; {INSTEAD}"
    return None if _redacted(text, known) == text else f"a URL with a password in it; {INSTEAD}"


def strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text of nested dictionaries and lists, keys too, with its dotted key."""
    waiting = [(path, node)]
    while waiting:
        at, one = waiting.pop()
        if isinstance(one, dict):
            waiting += [(f"{at}.{key}".strip("."), value) for key, value in one.items()]
            waiting += [(at, key) for key in one]
        elif isinstance(one, list | tuple):
            waiting += [(at, value) for value in one]
        elif isinstance(one, str):
            yield at, one
