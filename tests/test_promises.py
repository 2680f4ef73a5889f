"""docs/reliability.md names a test for each promise: there is one of that name."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/reliability.md"


def promised():
    """(file or None, test or None) of every test that the tables name; None: the file of the row, any of its tests."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| promise"):
            cell = line.split(" | ")[1]
            file = None
            for named in re.findall(r"`([\w./:]+)`", cell):
                path, _, test = named.partition("::") if "/" in named or ".py" in named else ("", "", named)
                file = path or file
                yield file, test or None


@pytest.mark.parametrize(("file", "test"), list(dict.fromkeys(promised())))
def test_a_promise_has_its_test(file, test):
    place = TESTS / (file or "none")
    assert place.exists()
    assert test is None or f"def {test}(" in place.read_text()


def test_every_promise_names_one():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 40 and all("`" in row.split(" | ")[1] for row in rows)
