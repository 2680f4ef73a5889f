"""Several studies in one: in their order, each on disk before the next, and a failing one takes nothing with it."""

import importlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from anysigma.evaluation.record import Record
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.all import All
from anysigma.studies.base import CannotServe, Model, Study


@dataclass(frozen=True)
class Finds(Study):
    name: str
    seen: list

    def run(self, model, sampler, data, features, folder):
        self.seen.append((self.name, (folder / "results.json").exists()))
        return Result(
            self.name, rows=[Row("m", 1.0, n=1, params={"S": 2}, card={"S": 2})], card={"n": 1},
            pictures={self.name: np.zeros((3, 4, 4, 3), np.uint8)},
            plots={f"{self.name}_plot": Plot("c", "x", "y", [Curve("l", [1, 2], [1.0, 2.0])])},
            tables=[Table("t", ["a", "bb"], [["1", "2"]], "note")], lines=[f"{self.name} said"],
        )  # fmt: skip


class Fails(Finds):
    needs_features = True

    def run(self, *_):
        raise ValueError("no more")


def test_each_result_is_on_disk_before_the_next_study_begins(tmp_path, capsys):
    seen = []
    study = All({"one": Finds("one", seen), "two": Finds("two", seen), "three": Fails("three", seen)})
    assert study.needs_checkpoint and study.needs_features and not All({"one": Finds("one", [])}).needs_features
    record = Record(tmp_path, {}, {"command": "python evaluate.py", "config": {}, "versions": {}})
    with pytest.raises(ValueError, match="no more"):
        for result in study.results(None, None, None, object(), tmp_path):
            record.add(result)
    assert seen == [("one", False), ("two", True)]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [section["study"] for section in results["sections"]] == ["one", "two"]
    assert [results["cards"][row["card"]] for row in results["rows"]] == [{"n": 1, "S": 2}] * 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"one.png", "two.png", "one_plot.png", "two_plot.png"}
    said = capsys.readouterr().out
    assert "2/3 two" in said and "two said" in said and "a  bb\n1   2\nnote" in said
    record.close()
    assert "<h1>" in (tmp_path / "report.html").read_text()


class Cannot(Finds):
    def run(self, model, sampler, data, features, folder):
        yield super().run(model, sampler, data, features, folder)
        raise CannotServe("no encoder; use sampler=ddim")


def test_what_cannot_be_served_is_a_line_in_the_report_and_the_others_go_on(tmp_path, capsys):
    seen = []
    study = All({"one": Finds("one", seen), "two": Cannot("two", seen), "three": Finds("three", seen)})
    record = Record(tmp_path, {}, {"command": "python evaluate.py", "config": {}, "versions": {}})
    for result in study.results(None, None, None, None, tmp_path):
        record.add(result)
    record.close()
    assert [name for name, _ in seen] == ["one", "two", "three"]
    sections = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert [one["study"] for one in sections] == ["one", "two", "two", "three"]
    assert sections[2]["lines"] == ["skipped: no encoder; use sampler=ddim"]
    for text in ((tmp_path / "report.html").read_text(), capsys.readouterr().out):
        assert "skipped: no encoder" in text


def test_a_study_whose_features_cannot_be_had_is_a_line_too(tmp_path):
    study = All({"one": Fails("one", []), "two": Finds("two", [])})
    found = list(study.results(None, None, None, None, tmp_path))
    assert [result.lines for result in found] == [["skipped: there are no features to measure in"], ["two said"]]


def test_no_study_at_all_is_one_line():
    with pytest.raises(ValueError, match="at least one study"):
        All({})


class Precision(Study):
    """Says what a network would be computed in."""

    def run(self, model, sampler, data, features, folder):
        yield Result("p", card=model.card, rows=[Row("bf16", float(torch.is_autocast_enabled("cpu")))])


class Digits(Precision):
    in_float32 = True


def test_a_study_of_small_numbers_is_made_in_float32_whatever_sampling_is_made_in():
    model = Model(torch.nn.Module(), (1, 2, 2), {"precision": "bf16-mixed"})
    object.__setattr__(model.denoiser, "device", torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        found = list(All({"a": Precision(), "b": Digits(), "c": Precision()}).results(model, None, None, None, None))
        assert torch.is_autocast_enabled("cpu")
    said = [(result.card["precision"], result.rows[0].value) for result in found]
    assert said == [("bf16-mixed", 1.0), ("32-true", 0.0), ("bf16-mixed", 1.0)]


STRICT = ["reconstruction.Reconstruction", "likelihood.Likelihood", "equivalence.Objective", "one_step.OneStep"]


@pytest.mark.parametrize("name", STRICT)
def test_what_asks_for_many_digits_says_so(name):
    module, kind = name.split(".")
    assert getattr(importlib.import_module(f"anysigma.studies.{module}"), kind).in_float32
