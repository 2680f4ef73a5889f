"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anysigma.machine.distributed import shown


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name of this process's beside `path`, to write to; it becomes `path`. What was not written to its end is removed.

    Raises OSError, in one line with the file's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise OSError(f"{shown(path)}: not written ({error.strerror or error})") from error
    finally:
        aside.unlink(missing_ok=True)
