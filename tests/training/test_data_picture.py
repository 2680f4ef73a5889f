"""samples/data.png: what the network sees, before it has seen it."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import train_here

from anysigma.data.images import to_uint8
from anysigma.report.pictures import grid
from anysigma.training.module import DiffusionModule

WORDS = ["features=none", "trainer.max_steps=2"]


def picture(folder):
    return np.asarray(Image.open(folder / "samples/data.png"))


@pytest.mark.parametrize(("flips", "accumulate", "batch"), [("true", 1, 128), ("false", 1, 128), ("true", 3, 96)])
def test_it_shows_the_first_images_that_training_steps_get(flips, accumulate, batch, tmp_path, monkeypatch):
    seen, step = [], DiffusionModule.training_step
    monkeypatch.setattr(DiffusionModule, "training_step", lambda self, x, i: (seen.append(x.clone()), step(self, x, i))[1])
    settings = [f"data.flips={flips}", f"trainer.accumulate_grad_batches={accumulate}", f"data.batch_size={batch}"]
    train_here(tmp_path, *WORDS, *settings)
    assert np.array_equal(picture(tmp_path), grid(to_uint8(torch.cat(seen)[:64])))


def test_flips_and_seeds_change_it(tmp_path):
    for name, words in {"plain": [], "flips": ["data.flips=true"], "seed": ["seed=1"]}.items():
        train_here(tmp_path / name, *WORDS, *words)
    plain, flips, seed = (picture(tmp_path / name) for name in ("plain", "flips", "seed"))
    assert not np.array_equal(plain, flips) and not np.array_equal(plain, seed)


def test_a_resumed_run_leaves_it_alone(tmp_path):
    train_here(tmp_path, *WORDS)
    (tmp_path / "samples/data.png").write_bytes(b"mine")
    train_here(tmp_path, "features=none", "trainer.max_steps=3")
    assert (tmp_path / "samples/data.png").read_bytes() == b"mine"


def test_points_of_a_plane_are_no_picture(tmp_path):
    train_here(tmp_path, "data=rings", "model=mlp", *WORDS, "~callbacks.grid", "~callbacks.distance")
    assert not (tmp_path / "samples/data.png").exists()


def test_loggers_get_it_at_step_0_and_the_weights_do_not_notice(tmp_path, monkeypatch):
    from anysigma.training.loggers import MetricsCSV

    got = []
    monkeypatch.setattr(MetricsCSV, "log_image", lambda self, *given, **more: got.append((given, more)), raising=False)
    with_it = train_here(tmp_path / "with", *WORDS)
    (name, (image,)), more = next(one for one in got if one[0][0] == "samples/data")
    assert np.array_equal(image, picture(tmp_path / "with")) and more == {"step": 0} and name == "samples/data"
    monkeypatch.setattr("anysigma.training.job.TrainingJob._show_data", lambda *_: None)
    without = train_here(tmp_path / "without", *WORDS)
    assert all(torch.equal(a, without["state_dict"][k]) for k, a in with_it["state_dict"].items())
