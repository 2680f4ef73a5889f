"""The real programs on a folder of images: what is no image ends in a line, and other images than before are refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WORDS = ["data=folder", "data.shape=[3,8,8]", "data.batch_size=8", "features=none", "debug=true", "model.channels=8",
         "model.multipliers=[1]", "logger=csv", "study=trajectory", "run=small"]  # fmt: skip


def ran(script, place, *words):
    """(exit code, stdout, stderr); nothing may take minutes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words], cwd=place, capture_output=True, text=True, timeout=240,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    for k in range(20):
        array = np.random.default_rng(k).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / "images" / f"{k:02d}.png")
    return tmp_path


def test_a_pipe_among_the_images_is_one_line_and_no_run(place):
    os.mkfifo(place / "images/10x.png")
    code, _, said = ran("train.py", place, *WORDS, "data.root=images")
    assert code == 2, said
    assert said.splitlines()[-1].startswith("error: images/10x.png: a pipe or a device, no file; data.source.on_error=skip")
    assert not (place / "logs/train/small/checkpoints").exists()


@pytest.mark.slow
def test_a_run_is_held_to_its_images_on_resume_and_at_evaluation(place):
    code, out, said = ran("train.py", place, *WORDS, "data.root=images", "data.source.on_error=skip")
    assert code == 0, out + said
    path = place / "images/03.png"
    array = np.asarray(Image.open(path)).copy()
    array[7, 7, 2] ^= 1
    Image.fromarray(array).save(path)
    more = [*WORDS, "data.root=images", "data.source.on_error=skip", "trainer.max_steps=25"]
    evaluate = ["checkpoint=small", "data.root=images", "study=trajectory", "debug=true", "logger=csv"]
    for script, words in (("train.py", more), ("evaluate.py", evaluate)):
        code, out, said = ran(script, place, *words)
        assert code == 2 and said.splitlines()[-1].startswith("error: the images are not those of the run: "), out + said
        assert "Traceback" not in said
