"""What stands between a person's command line and Hydra: short spellings, and errors in one line."""

import functools
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anysigma.compose.all_studies import own_folder
from anysigma.compose.experiments import hold_to_program
from anysigma.compose.signatures import near
from anysigma.compose.targets import ConfigError
from anysigma.machine.secrets import redacted, refuse_words

VALUED = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--package",
    "-p",
    "--cfg",
    "-c",
    "--info",
    "-i",
)
USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)


def entry(main: Callable[[], Any], conf: str) -> None:
    """Run a Hydra main: bad input ends in one line and exit code 2; HYDRA_FULL_ERROR=1 shows the whole trace."""
    sys.argv[1:] = options_first([spelled for word in sys.argv[1:] for spelled in spell_out(word)])
    full = os.environ.get("HYDRA_FULL_ERROR") == "1" and os.environ.get("ANYSIGMA_TRACE") != "0"
    sys.excepthook = traced
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    os.environ.setdefault("MPLCONFIGDIR", os.path.abspath("logs/cache/matplotlib"))  # torchmetrics imports matplotlib
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its exceptions on instead of printing them
    if full:
        os.environ["ANYSIGMA_TRACE"] = "1"  # reaches the jobs of a sweep too
        refuse_words(sys.argv[1:])
        hold_to_program(conf, sys.argv[1:])
        main()
        return
    os.environ["ANYSIGMA_TRACE"] = "0"  # the other processes of a run inherit what is set above
    with one_line_errors(conf):
        refuse_words(sys.argv[1:])
        hold_to_program(conf, sys.argv[1:])
        main()


def traced(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """sys.excepthook: the whole trace, without the machine's secrets."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def options_first(words: list[str]) -> list[str]:
    """Hydra's own options before the words: between them they would end the command line."""
    flags, rest, waiting = [], [], iter(words)
    for word in waiting:
        if word.startswith("-"):
            flags += [word, next(waiting, "")] if word in VALUED else [word]
        else:
            rest.append(word)
    return [*flags, *rest]


def spell_out(word: str) -> list[str]:
    """`sampler.tau=[…]` replaces a whole node, which Hydra can only say in two words."""
    if re.fullmatch(r"sampler\.tau=\[.*", word):
        return ["~sampler.tau", f"+{word}"]
    return [word]


def task(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A Hydra task whose bad input ends in one line; in a sweep the error is left to the launcher."""

    @functools.wraps(function)
    def wrapped(cfg: Any) -> Any:
        if os.environ.get("ANYSIGMA_TRACE") == "1" or HydraConfig.get().mode == RunMode.MULTIRUN:
            return function(cfg)
        with one_line_errors():
            return function(cfg)

    return wrapped


@contextmanager
def one_line_errors(conf: str | None = None) -> Iterator[None]:
    """User errors → one line on stderr and exit code 2. Errors of the code keep their trace."""
    warnings.showwarning = lambda message, *_: print(redacted(f"warning: {message}"), file=sys.stderr)
    try:
        yield
    except KeyboardInterrupt as stop:  # Python's own, or machine.signals.Stopped
        if not getattr(stop, "silent", False):
            print("stopped; the same command goes on from what is saved", file=sys.stderr)
        raise SystemExit(128 + getattr(stop, "number", signal.SIGINT)) from None
    except Exception as error:
        if not said_by_us(error):
            raise
        print(f"error: {one_line(error, conf)}", file=sys.stderr)
        raise SystemExit(2) from None


def said_by_us(error: BaseException) -> bool:
    """Whether it answers bad input: Hydra's and OmegaConf's, the system's, or a ValueError that we raised.

    And whatever those two stumble over themselves: `data=3` is a TypeError in Hydra's own code.
    """
    if isinstance(error, ConfigError | OmegaConfBaseException | HydraException | OSError):
        return True
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    where = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return (isinstance(error, ValueError) and "anysigma" in where) or where.split(".")[0] in ("hydra", "omegaconf")


def one_line(error: BaseException, conf: str | None) -> str:
    """The first thing a person needs to know, with near spellings where a name was wrong; no secrets."""
    text = redacted(str(error))
    if not isinstance(error, USER_ERRORS):
        text = f"a word cannot be understood ({type(error).__name__}: {text}); HYDRA_FULL_ERROR=1 shows where"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        if "Key '" in text or "To append" in text or "not in" in text:
            return f"unknown key {key}{near(key, known_keys(conf))}"
    if match := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\s+[\w.-]+)+)", text):
        option, group, options = match.group(1).split("/")[-1], match.group(2), match.group(3).split()
        options = [o for o in options if o not in ("Config", "search", "path")]
        return f"unknown option {group}={option}{near(option, options)} Available: {', '.join(options)}"
    if text.startswith("Error merging override") and error.__cause__ is not None:
        text = redacted(f"{text.splitlines()[0].removeprefix('Error merging override ')}: {error.__cause__}")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "object_type=" not in line]
    both = lines and ("full_key" in lines[-1] or lines[0].endswith(":"))
    said = " ".join(lines[:2] if both else lines[:1]) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in said)  # what comes from a file may steer a terminal


def known_keys(conf: str | None) -> list[str]:
    """Every dotted key of the config that the chosen options make, none where they make none."""
    if conf is None:
        return []
    folder, name = os.path.split(conf)
    GlobalHydra.instance().clear()
    words = [word for word in sys.argv[1:] if re.match(r"\w", word) and "=" in word]
    choices = [word for word in words if os.path.isdir(os.path.join(folder, word.split("=")[0]))]
    own = [f"hydra.searchpath=[file://{path.absolute()}]" for path in own_folder()]
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            cfg = OmegaConf.to_container(compose(name, [*(c for c in choices if "," not in c), *own]), resolve=False)
    except USER_ERRORS:  # what is said is another word's error already
        return []
    return list(dotted(cfg))


def dotted(node: Any, path: str = "") -> Iterator[str]:
    """Every key of nested dictionaries, dotted."""
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            yield here
            yield from dotted(value, here)
