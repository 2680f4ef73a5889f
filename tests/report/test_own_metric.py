"""A study with a metric that nobody else knows: ranked, drawn and named by what its rows say."""

import re

import pytest

from anysigma.evaluation.record import Record
from anysigma.report.figures import collect
from anysigma.report.page import write_report
from anysigma.report.ranking import compare
from anysigma.report.results import Result, Row

STEPS = (10, 20, 50)


class Wobbling:
    """Somebody's own study: how much images wobble, the more the better."""

    needs_checkpoint, needs_features = True, False

    def __init__(self, shift, better=1):
        self.shift, self.better = shift, better

    def run(self, model, sampler, data, features, folder):
        rows = [
            Row("wobble", S + self.shift, 0.5, 8, {"S": S, "grip": grip}, self.better, label="Wobbliness", features="jelly")
            for grip in ("loose", "firm")
            for S in STEPS
        ]
        return Result(
            "wobbling", "How it wobbles", rows=rows, card={"checkpoint": f"logs/train/{folder.name}/checkpoints/last.ckpt"}
        )


@pytest.fixture
def measured(tmp_path):
    """Two evaluations of the study, the second's images wobbling more."""
    folders = [tmp_path / "stiff", tmp_path / "soft"]
    for folder, shift in zip(folders, (0.0, 100.0), strict=True):
        folder.mkdir()
        record = Record(folder, {}, {"command": "python evaluate.py study=wobbling", "config": {}, "versions": {}})
        record.add(Wobbling(shift).run(None, None, None, None, folder))
        record.close()
    return folders


def test_it_is_ranked(measured):
    tables = compare([str(folder) for folder in measured], ["grip"])
    assert tables.startswith("Wobbliness in jelly features · How it wobbles, higher is better")
    places = [line.split()[:2] for line in tables.splitlines()[2:]]
    assert places[0] == ["1", "soft"] and places[2 * 2 * len(STEPS) - 1] == ["12", "stiff"]


def test_it_is_drawn_against_S_and_named(measured, tmp_path):
    text = write_report(tmp_path, collect([str(folder) for folder in measured])).read_text()
    assert "Wobbliness in jelly features against the number of steps S" in text
    for curve in ("stiff, grip = loose", "soft, grip = firm"):
        assert curve in text
    name = r'Wobbliness&nbsp;<span class="way" title="higher is better">↑</span> <small>in jelly features</small>'
    assert re.search(rf"<caption>{name} <small>· How it wobbles</small></caption>", text)
    assert "not ranked" not in text
    alone = (measured[0] / "report.html").read_text()
    assert re.search(rf'<th scope="row">{name}</th><td class="n"><b>50.00</b>', alone)


def test_where_neither_way_is_better_it_is_not_drawn(measured, tmp_path):
    for folder, shift in zip(measured, (0.0, 100.0), strict=True):
        Record(folder, {}, {}).add(Wobbling(shift, better=0).run(None, None, None, None, folder))
    text = write_report(tmp_path, collect([str(folder) for folder in measured])).read_text()
    assert "<caption>Wobbliness <small>in jelly features</small>" in text
    assert "against the number of steps" not in text
