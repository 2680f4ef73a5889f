"""Several processes measure what one measures: each its share of images, features and draws, and no image travels."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import forked, mixture

from anysigma.data.digits import Digits
from anysigma.data.images import from_uint8
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.diffusion.schedules.linear import Linear
from anysigma.machine import distributed
from anysigma.metrics import anchors, vectors
from anysigma.metrics.features import ClassifierFeatures
from anysigma.studies import generated
from anysigma.studies.base import Model
from anysigma.studies.consistency import Consistency
from anysigma.studies.memorisation import Memorisation
from anysigma.studies.one_step import OneStep
from anysigma.studies.quality import GRID, Fidelity
from anysigma.studies.reconstruction import Reconstruction
from anysigma.studies.table import SamplerTable
from anysigma.studies.two_sample import TwoSample

SAMPLER = Generalized.with_eta(steps=3, eta=0.5, tau=Trailing(), clip=True)
COMMON = {"seed": 3, "cache": "cache"}
STUDIES = {
    "fidelity": Fidelity(n=130, sets=3, splits=4, block=16, save="png", **COMMON),
    "table": SamplerTable(steps=[2, 3], samplers={"ddim": SAMPLER}, taus={}, full=False, n=20, sets=2, splits=2, block=8,
                          **COMMON),
    "memorisation": Memorisation(n=24, shown=4, block=8, **COMMON),
    "two_sample": TwoSample(n=24, folds=2, repeats=2, trees=5, splits=4, block=8, **COMMON),
    "consistency": Consistency(n=10, steps=[2, 3], samplers={"ddim": SAMPLER}, shown=2, seed=3, block=64),
    "one_step": OneStep(n=10, steps=3, shown=2, seed=3, block=64),
    "reconstruction": Reconstruction(n=10, steps=[2, 3], shown=2, block=64),
}  # fmt: skip


def measure(rank, world, place):
    """Every study on this rank; leaves what it found, and what it did and sent, as <rank>.pkl."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world)
    source = Digits()
    data = SimpleNamespace(train=source.train[:400], held_out=source.held_out[:130], hash="h", source=source)
    denoiser = mixture(GaussianProcess(Linear(T=20)), from_uint8(data.train[:90]), 0.02)
    model, features = Model(denoiser, (1, 8, 8), {"step": 7}), ClassifierFeatures("digits", (1, 8, 8))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        did = counted(patched)
        found = {}
        for name, study in STUDIES.items():
            (result,) = study.results(model, SAMPLER, data, features, Path(name))
            found[name] = result.rows, {picture: array.tobytes() for picture, array in result.pictures.items()}
    (place / f"{rank}.pkl").write_bytes(pickle.dumps((found, did)))


def counted(patched):
    """Notes images given to the features, images sampled, draws of anchors, and the most images sent at once."""
    did = {"features": 0, "sampled": 0, "draws": 0, "sent": 0}
    joined, generate, frechet, everyones = vectors.joined, generated.generate, anchors.frechet, distributed.everyones

    def note(name, count, function):
        def noted(*args, **kwargs):
            did[name] += count(*args)
            return function(*args, **kwargs)

        return noted

    def sent(value):
        tensors = [one for one in (value if isinstance(value, tuple) else ()) if isinstance(one, torch.Tensor)]
        did["sent"] = max([did["sent"], *(len(one) for one in tensors if one.dtype == torch.uint8)])
        return everyones(value)

    patched.setattr(vectors, "joined", note("features", lambda images, *_: len(images), joined))
    patched.setattr(generated, "generate", note("sampled", lambda *args: len(args[2]), generate))
    patched.setattr(anchors, "frechet", note("draws", lambda *_: 1, frechet))
    patched.setattr(distributed, "everyones", sent)
    return did


def together(world, place):
    """What every rank found and did."""
    return forked(measure, world, place)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    (one,) = together(1, tmp_path_factory.mktemp("alone"))
    return one


@pytest.mark.parametrize("world", [2, 3])
def test_figures_and_pictures_are_those_of_one_process_and_work_is_shared(alone, world, tmp_path):
    (found, whole), ranks = alone, together(world, tmp_path)
    for name, (rows, pictures) in found.items():
        mine, drawn = ranks[0][0][name]
        assert drawn == pictures and [row.metric for row in mine] == [row.metric for row in rows]
        for one, other in zip(mine, rows, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-6, abs=1e-9), (name, one.metric)
            assert one.sets == pytest.approx(other.sets, rel=1e-6, abs=1e-9)
            assert {kind: anchor.value for kind, anchor in one.anchors.items()} == pytest.approx(
                {kind: anchor.value for kind, anchor in other.anchors.items()}, rel=1e-6
            )
    for what in ("features", "sampled", "draws"):
        shares = [did[what] for _, did in ranks]
        assert sum(shares) == whole[what] and min(shares) > 0.6 * whole[what] / world, (what, shares)
    assert all(did["sent"] <= GRID for _, did in ranks)  # the pictures; two_sample's 24 images
    assert len(list((tmp_path / "fidelity/images").iterdir())) == 390
