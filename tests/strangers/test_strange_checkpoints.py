"""Checkpoints of strangers: whatever lies in them, they are opened or refused in one line, and nothing of them runs."""

import copy
import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from watched import ours, watched

from anysigma.compose import config
from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.evaluation.bounded import network
from anysigma.evaluation.stored import opened
from anysigma.machine.choice import for_sampling
from anysigma.machine.hardware import Hardware
from anysigma.runs import seal
from anysigma.runs.checkpoint import FORMAT, read, write
from anysigma.runs.identity import identity
from anysigma.runs.listing import listing, reached

ROOT = Path(__file__).parents[2]
config.register()

PLAIN = {
    "deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
}  # fmt: skip
TENSORS = st.sampled_from([
    torch.zeros(0), torch.zeros(()), torch.ones(3), torch.zeros(1).expand(10**12), torch.zeros(2, dtype=torch.complex64),
    torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.bool), torch.full((2,), float("nan")),
    torch.zeros(4, dtype=torch.int8), torch.zeros(8, 1, 3, 3), torch.zeros(2, dtype=torch.float8_e4m3fn),
    torch.nn.Parameter(torch.zeros(2)),
])  # fmt: skip
WORDS = st.sampled_from([
    "", "${oc.env:HOME}", "???", "os.system", "_target_", "_partial_", "_args_", "torch.load", "last", "torch", "\ud800",
    "a\nb\x1b[2J", "a" * 5000, "../../../etc/passwd", "digits", "[1]", "step", "1", "ema", "x" * 64,
    "anysigma.networks.mlp.MLP",
    "anysigma.diffusion.schedules.linear.Linear", "anysigma.diffusion.parameterizations.V", "null",
    "anysigma.data.rings.Rings",
])  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 300), st.floats(), st.sampled_from([10**4, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**400, 1e308, 0.5])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=6), st.binary(max_size=6), TENSORS)
KEYS = st.one_of(WORDS, st.text(max_size=6), st.integers(-2, 2), st.none(), st.tuples(st.integers(0, 1)))
VALUES = st.recursive(
    SCALARS, lambda one: st.one_of(st.lists(one, max_size=3), st.dictionaries(KEYS, one, max_size=3), st.tuples(one, one)),
    max_leaves=6,
)  # fmt: skip


class Gadget:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("checkpoints"))


def prepared(place):
    """A folder with one good checkpoint."""
    words = ["logger=csv", "model.channels=8", "model.multipliers=[1]", "schedule.T=10", "data=digits", "sampler.steps=5"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", words))
    weights = build(node["model"]).state_dict()
    state = {f"{part}.network.{name}": one for part in ("ema", "denoiser") for name, one in weights.items()}
    stated = {name: {} for name in ("optimizer_states", "lr_schedulers", "loops", "callbacks")}
    good = {"config": node, "format": FORMAT, "step": 1, "state_dict": state, "identity": identity(node), "data_hash": None}
    write({**good, **stated, "init_sha256": None}, place / "good.ckpt")
    (place / "runs/a/checkpoints").mkdir(parents=True)
    return place


def open_all(place, path, known):
    """All that reads a checkpoint, as far as the images are asked for."""

    def evaluated():
        evaluation = opened(path, Generalized.with_eta(2, 0.0, Uniform(), True), Hardware())
        evaluation.data.setup()
        evaluation.data.hold_to(evaluation.data_hash)
        evaluation.features()
        for_sampling(Hardware(), evaluation.denoiser.network, evaluation.data.shape, evaluation.record)

    for use in (
        evaluated,
        lambda: reached(path.parents[1], known),
        lambda: [one.encode() for one in listing(place / "runs")],
    ):
        try:
            use()
        except Exception as error:
            ours(error)


def held(content, place):
    path = place / "runs/a/checkpoints/last.ckpt"
    path.write_bytes(content)
    seal._broken.cache_clear()  # it knows a file by its size and date: here several are written in a moment
    known = identity(read(place / "good.ckpt")["config"])
    with watched(place):
        open_all(place, path, known)
    assert not (place / "canary").exists()


def spots(node, way=()):
    """Every way to a part of a checkpoint."""
    yield way
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from spots(value, (*way, key))


def changed(node, way, what, value):
    """A copy with the part at `way` replaced, removed, said twice or under another name."""
    if not way:
        return value
    node = copy.copy(node)
    if len(way) > 1:
        node[way[0]] = changed(node[way[0]], way[1:], what, value)
    elif what == "remove":
        del node[way[0]]
    elif isinstance(node, list) or what == "replace":
        node[way[0]] = value
    else:
        key = value if isinstance(value, str | int | None) else "other"
        node[key] = node.pop(way[0]) if what == "rename" else value
    return node


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return sealed(file.getvalue(), zipped=options.get("_use_new_zipfile_serialization", True))


def sealed(data, zipped=True):
    """As a stranger would seal it: the seal says who wrote nothing, only that it is whole."""
    data = data[:-2] if zipped else data
    comment = seal.KIND + hashlib.sha256(data).hexdigest().encode()
    return data + len(comment).to_bytes(2, "little") + comment


WHATS = st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename"])


def strange_parts(place, data):
    content = torch.load(place / "good.ckpt", weights_only=True)
    for _ in range(data.draw(st.integers(1, 3))):
        ways = list(spots(content))[1:] if isinstance(content, dict) else []
        inside = [way for way in ways if way[0] == "config" and way[1:2] and way[1] in TAKEN] or ways
        way = data.draw(st.sampled_from(inside if data.draw(st.integers(0, 2)) else ways or [()]))
        content = changed(content, way, data.draw(WHATS), data.draw(VALUES))
    if data.draw(st.integers(0, 19)) == 0:
        content = {"more": Gadget(place / "canary"), "content": content}
    held(saved(content, _use_new_zipfile_serialization=data.draw(st.integers(0, 9)) > 0), place)


TAKEN = ("schedule", "model", "parameterization", "data", "features")


def strange_values(place, data):
    value = data.draw(VALUES)
    pickled = sealed(pickle.dumps(value, data.draw(st.integers(0, 5))), zipped=False)
    held(saved(value) if data.draw(st.booleans()) else pickled, place)


def strange_bytes(place, data):
    content = bytearray((place / "good.ckpt").read_bytes()[: -seal.TAIL] + bytes(2))
    head = min(len(content), 9000)  # the pickle: behind it lie the weights
    for _ in range(data.draw(st.integers(1, 6))):
        end = head if data.draw(st.booleans()) else len(content)
        at = data.draw(st.integers(0, end))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    held(sealed(bytes(content)) if data.draw(st.integers(0, 3)) else bytes(content), place)


@settings(max_examples=60, **PLAIN)
@given(data=st.data())
def test_a_checkpoint_with_strange_parts(place, data):
    strange_parts(place, data)


@settings(max_examples=30, **PLAIN)
@given(data=st.data())
def test_a_checkpoint_with_strange_bytes(place, data):
    strange_bytes(place, data)


@settings(max_examples=10, **PLAIN)
@given(data=st.data())
def test_any_value_or_pickle(place, data):
    strange_values(place, data)


@pytest.mark.slow
@settings(max_examples=2500, **PLAIN)
@given(data=st.data())
def test_many_checkpoints_with_strange_parts(place, data):
    strange_parts(place, data)


@pytest.mark.slow
@settings(max_examples=1000, **PLAIN)
@given(data=st.data())
def test_many_checkpoints_with_strange_bytes(place, data):
    strange_bytes(place, data)


@pytest.mark.slow
@settings(max_examples=500, **PLAIN)
@given(data=st.data())
def test_many_values_and_pickles(place, data):
    strange_values(place, data)


def test_what_is_good_is_opened(place):
    path = place / "again.ckpt"
    path.write_bytes(saved(torch.load(place / "good.ckpt", weights_only=True)))  # as the strange ones are made
    for one in (place / "good.ckpt", path):
        with watched(place):
            opened(one, Generalized.with_eta(2, 0.0, Uniform(), True), Hardware()).data.setup()


def test_an_archive_that_is_compressed_is_not_unpacked(place):
    """Ten megabytes of it would be ten gigabytes of memory."""
    path, content = place / "bomb.ckpt", io.BytesIO()
    with zipfile.ZipFile(place / "good.ckpt") as good, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good.namelist():
            bomb.writestr(name, good.read(name) + bytes(10**8 if name.endswith("data.pkl") else 0))
    path.write_bytes(sealed(content.getvalue()))
    with pytest.raises(ValueError, match=r"truncated, or no file of ours \(BadZipFile\)"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 10**6}, {"multipliers": [1] * 900, "shape": [1, 2**903, 2**903]}, {"blocks": 10**9},
        {"_target_": "anysigma.networks.mlp.MLP", "shape": [1, 10**5, 10**5]},
        {"_target_": "anysigma.networks.mlp.MLP", "shape": [1, 8, 8], "layers": 10**9},
    ],
)  # fmt: skip
def test_a_network_larger_than_its_weights_is_never_built(change, place):
    checkpoint = read(place / "good.ckpt")
    node = change if "_target_" in change else {**checkpoint["config"]["model"], **change}
    state = {name: tensor.expand(1, *tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    with pytest.raises(ValueError, match="the checkpoint's config describes a network of"):
        network(node, {**state, "large": torch.zeros(1).expand(10**14)})


@pytest.mark.parametrize("T", [0, 10**6 + 1, 10**12])
@pytest.mark.parametrize("kind", ["linear.Linear", "cosine.Cosine", "sigmoid.Sigmoid"])
def test_a_schedule_has_an_end(kind, T):
    with pytest.raises(ValueError, match=f"schedule.T={T}: "):
        build({"_target_": f"anysigma.diffusion.schedules.{kind}", "T": T})
