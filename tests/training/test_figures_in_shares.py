"""Figures at a training step, by several processes: those of one, each rank its share."""

import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import forked, randomized
from hydra import compose, initialize_config_dir
from test_training import LIGHT, ROOT

from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.data.digits import Digits
from anysigma.metrics import fidelity
from anysigma.metrics.features import ClassifierFeatures
from anysigma.training.callbacks.distance import Distance
from anysigma.training.callbacks.grid import Grid
from anysigma.training.callbacks.held_out import HeldOut


def figures(rank, world, place):
    """Distance, held-out loss and grid of a network that was never trained; leaves them, and this rank's share of each."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = build(check_train(compose("train", ["debug=true", "logger=csv", *LIGHT]))["job"] | {"trainer": None})
    randomized(job.module.ema)
    did = {"sampled": [], "real": 0, "held_out": 0}
    data = SimpleNamespace(train=Digits().train[:301], held_out=Digits().held_out[:67])

    def reduced(value, **_):
        if world > 1:
            dist.all_reduce(value)
        return value

    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(forward_context=torch.inference_mode), datamodule=data, global_step=7,
        strategy=SimpleNamespace(reduce=reduced), is_global_zero=rank == 0, loggers=[], callback_metrics={},
        default_root_dir=place,
    )  # fmt: skip
    job.module._trainer = trainer
    counted(job.module, did)
    features, sampler = ClassifierFeatures("digits", (1, 8, 8)), job.callbacks["grid"].sampler
    for one in (Distance(1, 50, sampler, 3, features), HeldOut(1, 67), Grid(1, 10, sampler, seed=1)):
        one.act(trainer, job.module)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    (place / f"{rank}.pkl").write_bytes(pickle.dumps((found, did)))


def counted(module, did):
    """Notes the numbers of images sampled, real images measured and held-out images judged."""
    sample, update, objective = module.sample, fidelity.Monitor.update, module.objective

    def sampled(ks, *args):
        did["sampled"].append(list(ks))
        return sample(ks, *args)

    def updated(self, images, *, real):
        did["real"] += len(images) * real
        return update(self, images, real=real)

    def judged(denoiser, x_0, *args):
        did["held_out"] += len(x_0)
        return objective(denoiser, x_0, *args)

    module.sample, fidelity.Monitor.update, module.objective = sampled, updated, judged


def together(world, place):
    return forked(figures, world, place)


@pytest.mark.parametrize("world", [2, 3])
def test_figures_at_a_step_are_those_of_one_process_and_every_rank_has_a_share(world, tmp_path):
    places = [tmp_path / "one", tmp_path / "several"]
    for place in places:
        place.mkdir()
    ((alone, _),), ranks = together(1, places[0]), together(world, places[1])
    assert alone.keys() == {"distance/fd_digits", "held_out/loss"}
    for found, _ in ranks:
        assert found == pytest.approx(alone, rel=1e-6)
    pictures = [(place / "samples/step-0000007.png").read_bytes() for place in places]
    assert pictures[0] == pictures[1]
    for i, n in enumerate((50, 10)):  # the distance's images, the grid's
        shares = [did["sampled"][i] for _, did in ranks]
        assert sorted(k for share in shares for k in share) == list(range(n)) and all(shares)
    for what, n in (("real", 301), ("held_out", 67)):
        shares = [did[what] for _, did in ranks]
        assert sum(shares) == n and max(shares) - min(shares) <= 1
