"""docs/mathematics.md: every displayed equation has its function and its test, and each such test its equation."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/mathematics.md"
BOX = re.compile(r"^```\n(.*?)^```\n(.*?)\n\n", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?:^|  )\s*\(([\w -]+)\)$", re.MULTILINE)
LINK = re.compile(r"\[([\w.]+)\]\((\.\./[\w./]+\.py)\)")


def displayed(page: str) -> list[tuple[str, list[tuple[str, Path]]]]:
    """(name, what the line below leads to: (name, file)) of every box; a box without a name is named ""."""
    found = []
    for box, below in BOX.findall(page):
        links = [(name, (PAGE.parent / path).resolve()) for name, path in LINK.findall(below)]
        found.append((" and ".join(NAME.findall(box)), links if below.startswith("↳") else []))
    return found


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def marked() -> set[tuple[str, str, Path]]:
    """(equation, test, file) of every `@pytest.mark.equation` below tests/."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.equation":
                    found |= {(name.value, node.name, path) for name in mark.args}
    return found


BOXES = displayed(PAGE.read_text())


def test_every_displayed_equation_has_a_name_of_its_own():
    names = [name for name, _ in BOXES]
    assert len(BOXES) == PAGE.read_text().count("\n```\n") / 2 > 20 and "" not in names and len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "links"), BOXES, ids=[name for name, _ in BOXES])
def test_the_line_below_leads_to_a_function_and_a_test(name, links):
    places = {path.relative_to(ROOT).parts[0] for _, path in links}
    assert places == {"src", "tests"}
    for target, path in links:
        assert target in defined(path), path


def test_an_equation_names_its_tests_and_a_test_its_equations():
    on_the_page = {(name, test, path) for name, links in BOXES for test, path in links if ROOT / "tests" in path.parents}
    assert on_the_page == marked()


def test_what_is_named_in_the_text_is_a_displayed_equation():
    prose = re.sub(r"^```\n.*?^```\n", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    names = {name for name, _ in BOXES}
    assert {"marginal", "optimum"} <= set(re.findall(r"(?:[Tt]he|its|of|Divide) \(([a-z-]+)\)", prose)) <= names


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("\n```\nx = 1   (one)\n```\n↳ [f](../src/a.py) · [test_f](../tests/test_a.py)\n\n", [("one", ["f", "test_f"])]),
        ("\n```\nx = 1\n```\n↳ [f](../src/a.py)\n\n", [("", ["f"])]),
        ("\n```\nx = 1   (one)\n```\nand so on\n\n", [("one", [])]),
    ],
)
def test_a_box_without_a_name_or_a_test_would_be_seen(page, found):
    assert [(name, [target for target, _ in links]) for name, links in displayed(page)] == found
