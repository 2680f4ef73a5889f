"""docs/performance.md's tables are what benchmarks/results/ says, and nothing else of the page changes."""

import json
from pathlib import Path

import pytest
from benchmarks import kept, tables
from benchmarks.course import told
from benchmarks.races import BOTH, Entry, Race, races

ROOT = Path(__file__).parents[2]
RACE = Race("k", "some work", "digits", 16, (Entry("a", "ours.step", "auto"), Entry("b", "peer.step")), (("a", "b", 3.5),))


@pytest.fixture
def results(tmp_path):
    """A folder of results with one race and one part of rows."""
    facts = {"precision": "bf16-mixed", "memory_format": "channels_last", "fused": True, "parameters": 2e6, "gflop": 0.5}
    entries = {
        "a": {"facts": facts, "tried": {"contiguous": 10.0, "channels_last": 12.0}},
        "b": {"facts": {"precision": "fp32"}, "tried": {}},
    }
    race = told(RACE, entries, {"a": [8.0, 12.0], "b": [2.0, 3.0]}, {"a": [0.05, 0.07], "b": []})
    kept.add(tmp_path / "some.json", "k", {"title": RACE.title, **race}, "cpu")
    rows = {"title": "rows", "note": "Wanted: more.", "columns": ["one", "two"], "rows": [["1", "2"]]}
    kept.add(tmp_path / "some.json", "r", rows, "cpu")
    return tmp_path


def test_a_race_is_told_with_spread_ratio_and_what_was_wanted(results):
    made = tables.machine(kept.read(results / "some.json"))
    assert (
        "| a | 10 | 8 to 12 | 2 M, 0.5 | bf16-mixed, channels_last, fused (contiguous 10, channels_last 12 tried) | 6.0 % |"
        in made
    )
    assert "| b | 2.5 | 2 to 3 |  | fp32 |  |" in made
    assert "| a | b | 4.00 | 4.00 to 4.00 | 2 | ≥ 3.5 |" in made
    assert "### Rows\n\nWanted: more.\n\n| one | two |\n| --- | --- |\n| 1 | 2 |" in made and made.count("Measured 20") == 2


def test_the_page_changes_between_its_marks_alone(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.update(page, results)
    text = page.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n") and text.endswith(f"{tables.END}\nafter\n") and "old" not in text
    tables.update(page, results)
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must stand there once"):
        tables.update(page, results)


def test_the_page_in_the_repository_is_what_the_results_say(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(tables.PAGE.read_text())
    tables.update(page)
    assert page.read_text() == tables.PAGE.read_text()


def test_parts_are_replaced_one_by_one_and_name_their_machine(results):
    file = results / "some.json"
    kept.add(file, "r", {"title": "rows", "columns": ["one"], "rows": [["3"]]}, "cpu")
    parts = kept.read(file)["parts"]
    assert list(parts) == ["k", "r"] and parts["r"]["rows"] == [["3"]]
    assert {"processor", "units", "cores", "threads", "versions", "date"} <= parts["k"]["machine"].keys()
    file.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="has format 0"):
        kept.read(file)


def test_every_race_asks_for_ratios_of_its_own_contestants_and_is_quick_when_it_is_to_be():
    for device in ("cpu", "cuda"):
        for race in races(device).values():
            names = [entry.name for entry in race.entries]
            assert len(set(names)) == len(names) and all({one, other} <= set(names) for one, other, _ in race.wanted)
            assert all(len(entry.formats) in (1, len(BOTH)) for entry in race.entries)
            assert race.quick().batch == 16 and race.quick().steps == 1 and race.quick().key == race.key


def test_the_makefile_and_requirements_name_what_the_driver_looks_for():
    makefile, pinned = (ROOT / "Makefile").read_text(), (ROOT / "benchmarks/requirements.txt").read_text().splitlines()
    assert "-m benchmarks.run $(ARGS)" in makefile and "--device cuda" in makefile and "benchmarks/.venv" in makefile
    assert all("==" in line for line in pinned if line and not line.startswith("#"))
    own = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")}
    assert own <= set(pinned)  # the comparison is of programs, not of torch's versions
