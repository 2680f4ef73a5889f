"""results.json of strangers: whatever stands in it, a page, a ranking and a list, or one line."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from watched import ours, watched

from anysigma.metrics.anchors import Anchor
from anysigma.report import html
from anysigma.report.page import collect, write_report
from anysigma.report.plots import Curve, Plot
from anysigma.report.ranking import compare
from anysigma.report.results import Result, Row, Table, read_results, write_results
from anysigma.runs.listing import listing, measured
from hydra_plugins.anysigma_sweep._jobs import lines

PLAIN = {
    "deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
}  # fmt: skip
WORDS = st.sampled_from([
    "", "sigma", "Eta(eta=0.2)", "Eta(eta=1.2.3)", "x_0", "$\\frac$", "$", "_x", "\x1b[31m", "\ud800", "../../x", "a\nb",
    "-", "--", ":", "None", "fd_digits", "logs/train/a/checkpoints/last.ckpt", "<script>", "{}", "%s", "a" * 999, "T",
    "_target_",
])  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 3), st.floats(), st.sampled_from([2**63, -(10**400), 1e308, -1e308, 5e-324, 1e80, 10**9])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8))
KEYS = st.one_of(WORDS, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS, lambda one: st.one_of(st.lists(one, max_size=3), st.dictionaries(KEYS, one, max_size=3)), max_leaves=6
)


def whole():
    """An evaluation with all that one can have."""
    card = {"checkpoint": "logs/train/a/checkpoints/last.ckpt", "step": 20, "weights": "ema 0.995", "n": 100, "sets": 2}
    card |= {"schedule": {"_target_": "anysigma.diffusion.schedules.cosine.Cosine", "T": 1000}, "clip": True, "seed": 0}
    anchors = {"real images": Anchor(2.0, 0.1, 0.01, 200)}
    rows = [
        Row("fd_digits", 3.0 / S, 0.5, 100, {"S": S, "sigma": "Eta(eta=0.0)", "tau": "Uniform()"}, -1, [1.0, 2.0, 3.0], None,
            anchors, "Fréchet distance", "digits", True)
        for S in (10, 20)
    ]  # fmt: skip
    rows += [Row("share", 0.5, None, 100, {"eta": 0.5}, 1, [], (0.4, 0.6)), Row("bare", None)]
    plot = Plot("a plot", "S", "fd", [Curve("η = 0", [1, 2], [3.0, 2.0], [0.1, 0.1]), Curve("b", [1], [2], None, ":")], True)
    table = Table("a table", ["σ", "S"], [["0", "10"], ["1", "20"]], "note")
    return Result("table", "Steps", "One network.", rows, card, {}, {}, {"p": plot}, [table], ["a line"])


@pytest.fixture(scope="module", autouse=True)
def plots_are_drawn_once():
    """Most of the time would go into plots that are as they were."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(html, "svg", once)
        yield


DRAWN, svg = {}, html.svg


def once(plot):
    key = repr(plot)
    if key not in DRAWN:
        DRAWN[key] = svg(plot)
    return DRAWN[key]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("results"))


def prepared(place):
    """A folder with one good evaluation, to be compared with."""
    for name in ("good", "strange"):
        (place / name).mkdir()
    facts = {"command": "python x", "versions": {"torch": "2"}, "config": {"a": 1}, "step": 20, "weights_sha256": "ab"}
    write_results(place / "good" / "results.json", [whole()], **facts)
    (place / "runs/a/checkpoints").mkdir(parents=True)
    (place / "runs/a/checkpoints/last.ckpt").touch()
    return place


def spots(node, way=()):
    """Every way to a part of the content."""
    yield way
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from spots(value, (*way, key))


def changed(content, way, what, value):
    """A copy with a part replaced, removed, said twice or under another name."""
    content = copy.deepcopy(content)
    if not way:
        return value
    node = content
    for key in way[:-1]:
        node = node[key]
    if what == "remove":
        del node[way[-1]]
    elif what == "add":
        node.append(value) if isinstance(node, list) else node.__setitem__(str(value), value)
    elif what == "rename" and isinstance(node, dict):
        node[str(value)] = node.pop(way[-1])
    else:
        node[way[-1]] = value
    return content


def read(place):
    """All that reads a results.json, with what is made of it."""
    path = place / "strange" / "results.json"
    uses = [
        lambda: write_report(path.parent), lambda: write_report(path.parent, collect(str(place / "*/results.json"))),
        lambda: compare([str(place / "good"), str(path)], ["seed", "n"]), lambda: lines(read_results(path)),
        lambda: [one.encode() for one in listing(place / "runs")], lambda: measured(path.parent, step=20),
    ]  # fmt: skip
    for use in uses:
        try:
            use()
        except Exception as error:
            ours(error)


def held(text, place):
    for path in (place / "strange/results.json", place / "runs/a/results.json"):
        path.write_bytes(text)
    with watched(place):
        read(place)


def dumped(content):
    return json.dumps(content).encode()


CHANGES = st.sampled_from(["replace", "replace", "remove", "add", "rename"])


def strange_parts(place, data):
    content = json.loads((place / "good/results.json").read_text())
    if data.draw(st.integers(0, 9)) == 0:
        content = {"format": 3, "lines": ["a"], "step": 3, "evaluation": "x"}
    for _ in range(data.draw(st.integers(1, 3))):
        if isinstance(content, dict | list):
            way = data.draw(st.sampled_from(list(spots(content))[1:] or [()]))
            content = changed(content, way, data.draw(CHANGES), data.draw(VALUES))
    held(dumped(content), place)


def strange_bytes(place, data):
    text = bytearray((place / "good/results.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=5))
    held(bytes(text), place)


def strange_values(place, data):
    held(dumped(data.draw(VALUES)), place)


@settings(max_examples=120, **PLAIN)
@given(data=st.data())
def test_an_evaluation_with_strange_parts(place, data):
    strange_parts(place, data)


@settings(max_examples=30, **PLAIN)
@given(data=st.data())
def test_an_evaluation_with_strange_bytes(place, data):
    strange_bytes(place, data)


@settings(max_examples=20, **PLAIN)
@given(data=st.data())
def test_any_json(place, data):
    strange_values(place, data)


@pytest.mark.slow
@settings(max_examples=3000, **PLAIN)
@given(data=st.data())
def test_many_evaluations_with_strange_parts(place, data):
    strange_parts(place, data)


@pytest.mark.slow
@settings(max_examples=700, **PLAIN)
@given(data=st.data())
def test_many_evaluations_with_strange_bytes(place, data):
    strange_bytes(place, data)


@pytest.mark.slow
@settings(max_examples=300, **PLAIN)
@given(data=st.data())
def test_much_json(place, data):
    strange_values(place, data)


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"a":' * 10**5, b"1" * 10**5, b"\xff\xfe", b"", b'{"format": 3}', b"NaN"])
def test_texts_that_trip_readers(text, place):
    held(text, place)


def test_a_pipe_named_results_json_holds_nobody_up(place, tmp_path):
    import os

    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(ValueError, match="a pipe or a device, no file"):
        read_results(tmp_path / "results.json")


def test_what_is_good_is_read_as_it_was_written(place):
    content = json.loads((place / "good/results.json").read_text())
    assert read_results(place / "good/results.json") == content
    assert "a plot" in Path(write_report(place / "good")).read_text()
