"""evaluate.py as people use it: by torchrun, with W&B, cut and continued, and with too few images."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
ONE_ROW = tuple(f"~study.samplers.{name}" for name in ("eta_02", "eta_05", "ddpm", "ddpm_large"))
LIGHT = ("model.channels=8", "model.multipliers=[1]")  # a network that takes no time
SMALL = ("checkpoint=small", "debug=true", "n=40", "study.splits=2", "sampler.steps=4")


def run(folder, *line, code=0, **environment):
    done = subprocess.run(
        [sys.executable, *line], cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(folder, ROOT / "train.py", "debug=true", "logger=csv", "run=small", *LIGHT)
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """A folder with the run alone."""
    shutil.copytree(trained / "logs/train/small", tmp_path / "logs/train/small")
    return tmp_path


def results(place, study="fidelity"):
    (path,) = (place / "logs/evaluate/small").glob(f"{study}-*/results.json")
    return path, json.loads(path.read_text())


def test_two_processes_by_torchrun_make_what_one_makes(place):
    one = run(place, ROOT / "evaluate.py", *SMALL, "logger=csv", "save=npz", "study.block=16")
    path, alone = results(place)
    images = np.load(path.parent / "images.npz")["arr_0"]
    assert len(images) == 80 and "fd_digits" in one.stdout
    shutil.rmtree(place / "logs/evaluate")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    line = (*torchrun, ROOT / "evaluate.py", *SMALL, "logger=csv", "save=npz", "study.block=16", "hardware=cpu")
    two = run(place, *line)
    path, together = results(place)
    assert np.array_equal(np.load(path.parent / "images.npz")["arr_0"], images)
    assert together["rows"] == alone["rows"] and two.stdout.count("folder   ") == 1


def test_few_images_beside_many_features_are_said_to_be_biased(place):
    assert (
        "n=40 images in 64 features: the distance is biased upward"
        in run(place, ROOT / "evaluate.py", *SMALL, "logger=csv").stdout
    )


def test_a_figure_says_all_of_its_protocol(place):
    run(place, ROOT / "evaluate.py", *SMALL, "logger=csv")
    _, found = results(place)
    for row in found["rows"]:
        card = found["cards"][row["card"]]
        lines = {
            "checkpoint", "step", "weights", "weights_sha256", "schedule", "sampler", "S", "sigma",
            "tau", "clip", "seed",
            "block", "versions", "n", "sets", "reference", "data_hash", "features",
            "features_sha256", "resize", "rounding", "precision",
        }  # fmt: skip
        assert lines <= card.keys(), lines - card.keys()
    assert found["command"].startswith("python evaluate.py checkpoint=small")


def test_a_fresh_project_at_wandb_has_a_section_a_study(place):
    run(place, ROOT / "evaluate.py", *SMALL, "study=table", "study.steps=[2,4]", *ONE_ROW, WANDB_MODE="offline")
    (offline,) = place.glob("logs/evaluate/small/table-*/wandb/offline-run-*")
    assert re.search(r"offline-run-\d+_\d+-[0-9a-f]{16}$", offline.name)
    media = {
        path.relative_to(offline / "files/media").parts[:2]
        for path in (offline / "files/media").rglob("*")
        if path.is_file()
    }
    assert {("images", "table"), ("table", "table")} <= media
    (log,) = offline.glob("*.wandb")
    said = run(place, "-m", "wandb", "leet", "inspect", "--summary", log).stdout
    assert "table/fd_digits/Eta(eta=0.0)/Uniform()" in said or "table/fd_digits/2" in said, said[:2000]


def test_too_few_images_and_a_folder_in_the_way_are_one_line(place):
    done = run(place, ROOT / "evaluate.py", "checkpoint=small", "n=1", "logger=csv", code=2)
    assert done.stderr.strip().splitlines()[-1].startswith("error: n=1, sets=null: at least 4 images")
    (place / "logs/evaluate").rename(place / "elsewhere")
    (place / "logs/evaluate").write_text("in the way")
    done = run(place, ROOT / "evaluate.py", *SMALL, "logger=csv", code=2)
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def newest(place):
    pointer = json.loads((place / "logs/train/small/results.json").read_text())
    return place / pointer["evaluation"]


def test_the_figures_of_an_older_step_are_put_aside(trained, tmp_path):
    """The folder follows from what is asked; what it was made of stands in results.json."""
    shutil.copytree(trained / "logs", tmp_path / "logs")
    before = newest(tmp_path)
    run(tmp_path, ROOT / "train.py", "debug=true", "logger=csv", "run=small", *LIGHT, "trainer.max_steps=22")
    after = json.loads((newest(tmp_path) / "results.json").read_text())
    assert newest(tmp_path) == before and after["step"] == 22
    old = json.loads((before / "step-20-results.json").read_text())
    assert old["step"] == 20 and old["weights_sha256"] != after["weights_sha256"]
    assert (before / "step-20-grid.png").exists() and (before / "step-20-report.html").exists()


@pytest.mark.slow
def test_the_figures_at_the_end_of_training_are_made_in_its_precision(tmp_path):
    words = ("debug=true", "logger=csv")
    run(tmp_path, ROOT / "train.py", *words, *LIGHT, "run=small", "hardware.precision=bf16-mixed")
    folder = newest(tmp_path)
    first = json.loads((folder / "results.json").read_text())
    assert next(iter(first["cards"].values()))["precision"] == "bf16-mixed"
    shutil.rmtree(folder / "shards")  # so that the images are made again
    run(tmp_path, ROOT / "evaluate.py", "checkpoint=small", *words)  # auto: as the run was trained
    again = json.loads((folder / "results.json").read_text())
    assert again["rows"] == first["rows"] and again["cards"] == first["cards"]
    more = ("run=small", "trainer.max_steps=22", "hardware.precision=32-true")
    said = run(tmp_path, ROOT / "train.py", *words, *LIGHT, *more).stdout
    assert "going on otherwise than before, no longer bit for bit: hardware.precision=32-true, before bf16-mixed" in said


def test_figures_of_a_precision_asked_for_by_name_lie_beside_the_runs_own(place):
    run(place, ROOT / "evaluate.py", *SMALL, "logger=csv")
    own, before = results(place)
    assert before["precision"] == "32-true"
    run(place, ROOT / "evaluate.py", *SMALL, "logger=csv", "hardware.precision=bf16-mixed")
    (other,) = set((place / "logs/evaluate/small").glob("fidelity-*/results.json")) - {own}
    found = json.loads(other.read_text())
    assert found["precision"] == "bf16-mixed" and found["rows"][0]["sets"] != before["rows"][0]["sets"]
    assert json.loads(own.read_text()) == before


@pytest.mark.slow
def test_figures_of_another_precision_are_put_aside(place):
    """As on a machine that cannot compute in the run's own."""
    run(place, ROOT / "evaluate.py", *SMALL, "logger=csv")
    path, before = results(place)
    path.write_text(json.dumps({**before, "precision": "bf16-mixed"}))
    run(place, ROOT / "evaluate.py", *SMALL, "logger=csv")
    assert results(place)[1]["precision"] == "32-true"
    (aside,) = path.parent.glob("step-*-results.json")
    assert json.loads(aside.read_text())["precision"] == "bf16-mixed"


@pytest.mark.slow
def test_other_images_than_the_runs_are_refused(tmp_path):
    """Nine images deleted, or another folder named: the run does not go on, and no figure is made."""
    from PIL import Image

    for seed, name in enumerate(("images", "others")):
        (tmp_path / name).mkdir()
        for k in range(40):
            array = np.random.default_rng([k, seed]).integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"{k:02d}.png")
    words = ["data=folder", "data.shape=[1,8,8]", "data.batch_size=8", "features=none", "debug=true", "logger=csv", "run=f"]
    words += ["model.channels=8", "trainer.max_steps=4"]
    run(tmp_path, ROOT / "train.py", *words, "data.root=images")
    asked = ("checkpoint=f", "study=speed", "debug=true", "logger=csv")
    assert "images/s" in run(tmp_path, ROOT / "evaluate.py", *asked, "data.root=images").stdout
    assert "data.root=null" in run(tmp_path, ROOT / "evaluate.py", *asked, code=2).stderr
    assert (
        "the images are not those of the run"
        in run(tmp_path, ROOT / "evaluate.py", *asked, "data.root=others", code=2).stderr
    )
    (tmp_path / "images").rename(tmp_path / "moved")  # a place does not make a run, its content does
    done = run(tmp_path, ROOT / "train.py", *words, "data.root=moved", "trainer.max_steps=6")
    assert "going on from step 4 of 6" in done.stdout
    for k in range(9):
        (tmp_path / f"moved/{k:02d}.png").unlink()
    done = run(tmp_path, ROOT / "train.py", *words, "data.root=moved", "trainer.max_steps=8", code=2)
    assert "the images are not those of the run" in done.stderr and done.stderr.count("\n") == 1
