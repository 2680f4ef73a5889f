"""Minutes, not seconds: `make test-all`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_default_run_reaches_the_floor_and_every_study_of_its_report_works(tmp_path):
    for line in (
        ["train.py", "logger=csv", "run=digits"],
        ["evaluate.py", "checkpoint=digits", "study=all", "debug=true", "logger=csv"],
    ):
        done = subprocess.run([sys.executable, ROOT / line[0], *line[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    place = tmp_path / json.loads((tmp_path / "logs/train/digits/results.json").read_text())["evaluation"]
    row = json.loads((place / "results.json").read_text())["rows"][0]
    assert row["metric"] == "fd_digits" and row["value"] < 1.5 * row["anchors"]["held-out images"]["value"]
    (folder,) = (tmp_path / "logs/evaluate/digits").glob("all-*")
    studies = [section["study"] for section in json.loads((folder / "results.json").read_text())["sections"]]
    assert len(studies) == len(set(studies)) == 12 and (folder / "report.html").stat().st_size > 100_000
