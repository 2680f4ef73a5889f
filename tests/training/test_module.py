"""The module as Lightning sees it: what it warns of, and what `sample` makes in blocks."""

import importlib
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import randomized
from hydra import compose, initialize_config_dir

from anysigma.compose import config
from anysigma.compose.config import build
from anysigma.machine import distributed
from anysigma.machine.distributed import my_share, spread
from anysigma.training.callbacks import distance
from anysigma.training.callbacks.grid import Grid

ROOT = Path(__file__).parents[2]
config.register()


def module(*words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build(compose("train", ["logger=csv", *words]).job.module)


ZERO = "schedule=zero_terminal_snr"


@pytest.mark.parametrize("parameterization", ["v", "x0"])
@pytest.mark.parametrize("objective", ["simple", "min_snr", "p2"])
def test_no_weight_at_T_is_said_in_one_line_that_names_the_cure(objective, parameterization):
    with pytest.warns(UserWarning, match="objective=v_mse trains it") as caught:
        made = module(ZERO, f"objective={objective}", f"parameterization={parameterization}")
    (line,) = [str(one.message) for one in caught]
    assert "t = 1000 no weight" in line and "\n" not in line
    names = [type(one).__name__ for one in (made.objective.gamma, made.denoiser.parameterization)]
    assert line.startswith(f"{names[0]} gives") and f"parameterization {names[1]})" in line
    x, T = torch.rand(1, 1, 8, 8), torch.tensor([1000])
    assert made.objective(made.denoiser, x, T, torch.randn(x.shape)) == 0  # and it is true


@pytest.mark.parametrize("parameterization", ["v", "x0"])
@pytest.mark.parametrize("objective", ["v_mse", "elbo", "elbo_beta"])
def test_a_weight_at_T_is_no_warning(objective, parameterization):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = module(ZERO, f"objective={objective}", f"parameterization={parameterization}")
    x, T = torch.rand(1, 1, 8, 8), torch.tensor([1000])
    assert made.objective(made.denoiser, x, T, torch.randn(x.shape)) > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_signal_left_at_T_is_no_warning(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(f"schedule={schedule}", "parameterization=v")


def test_a_person_sees_it_as_one_line_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    words = [ZERO, "parameterization=v", "features=none", "debug=true", "logger=csv", "trainer.max_steps=1", "run=one"]
    monkeypatch.setattr(sys, "argv", ["train.py", "~callbacks.progress", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    train = importlib.import_module("train")
    from anysigma.compose.cli import entry

    with warnings.catch_warnings(), pytest.raises(SystemExit, match=r"^0$"):
        warnings.simplefilter("default")  # pytest's own would not print
        entry(train.main, f"{ROOT}/conf/train")
    said = [line for line in capsys.readouterr().err.splitlines() if "no weight" in line]
    assert len(said) == 1 and said[0].startswith("warning: Simple gives t = 1000 no weight")
    assert (tmp_path / "logs/train/one/checkpoints/last.ckpt").exists()


@pytest.fixture
def sampling():
    """A module whose images differ and cannot be told from another step's, outside a Trainer."""
    made = module("callbacks.grid.sampler.steps=3", "sampler.steps=3", "model.channels=8")
    for denoiser in (made.denoiser, made.ema):
        randomized(denoiser.network)
    made._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    return made


def test_sample_takes_a_seed_and_a_block(sampling):
    images = sampling.sample(range(6))
    assert torch.equal(images, sampling.sample(range(6), block=64)) and sampling.block == 64
    small = sampling.sample(range(6), block=4)
    assert (small - images).abs().max() < 1e-4
    assert torch.equal(small[[1, 4]], sampling.sample([1, 4], block=4))
    assert not torch.allclose(sampling.sample(range(6), seed=1), images, atol=1e-2)


def test_the_blocks_asked_for_are_the_blocks_computed(sampling):
    sizes = []
    sampling.ema.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    sampling.sample(range(10), block=4)
    assert sizes == [4] * 3 * 3


@pytest.mark.parametrize("n, block", [(64, 64), (70, 64), (360, 64), (360, 512), (5000, 512), (3, 64), (1, 1), (64, 8)])
def test_few_images_make_blocks_for_several_processes_whatever_their_number(n, block, monkeypatch):
    size = spread(n, block)
    for world in (2, 3, 8):
        monkeypatch.setattr(distributed, "rank_and_world", lambda world=world: (0, world))
        assert spread(n, block) == size
    assert 1 <= size <= block and -(-n // size) >= min(n, distributed.PARTS)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_grid_is_the_same_bit_for_bit_for_any_number_of_processes_and_none_is_idle(sampling, world, monkeypatch):
    n, block, found = 24, spread(24, sampling.block), {}
    alone = sampling.sample(range(n), block=block)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank_and_world", lambda rank=rank: (rank, world))
        ks = my_share(range(n), block)
        assert ks
        found |= dict(zip(ks, sampling.sample(ks, block=block), strict=True))
    assert torch.equal(torch.stack([found[k] for k in range(n)]), alone)


@pytest.mark.parametrize("watcher", ["grid", "distance"])
def test_what_watches_a_run_shares_its_images_in_small_blocks(watcher, sampling, monkeypatch, tmp_path):
    sizes, n = [], 12
    sampling.ema.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    trainer = SimpleNamespace(
        is_global_zero=True, default_root_dir=tmp_path, global_step=1, loggers=[], callback_metrics={},
        datamodule=SimpleNamespace(train=torch.zeros(4, 1, 8, 8, dtype=torch.uint8)),
    )  # fmt: skip
    if watcher == "grid":
        Grid(1, n, sampling.sampler, seed=1).act(trainer, sampling)
    else:
        monkeypatch.setattr(
            distance, "Monitor", lambda *_: SimpleNamespace(update=lambda *_, real: None, compute=lambda: 1.0)
        )
        distance.Distance(1, n, sampling.sampler, 1, SimpleNamespace(metric="fd")).act(trainer, sampling)
    assert sizes == [3] * 4 * 3
