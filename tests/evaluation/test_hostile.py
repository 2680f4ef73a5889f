"""Checkpoints made to do harm: nothing of them runs, nothing elsewhere is read or written, one line each, no trace."""

import copy
import json
import os
import pickle
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import sealed
from hydra import compose, initialize_config_dir

from anysigma.compose import config
from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.runs.checkpoint import FORMAT, write

ROOT = Path(__file__).parents[2]
config.register()
NODES = ("schedule", "model", "parameterization", "data", "features")

# Opens every file as evaluate.py does, watched: what is executed, and what is opened beyond libraries and the file itself.
WATCHED = """
import json, os, sys
from pathlib import Path
import torch, sklearn.datasets
import anysigma
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.evaluation.stored import opened
from anysigma.machine.hardware import Hardware

place, events = Path(sys.argv[1]), []
system = ("/proc", "/dev", "/sys", "/usr/lib", "/usr/share", "/etc/ld")
known = (sys.prefix, sys.base_prefix, sys.argv[2], str(place / "h"), *system)

def hook(name, arguments):
    if name in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "shutil.rmtree"):
        events.append([name, repr(arguments)[:200]])
    if name in ("open", "os.mkdir", "os.rename", "os.remove") and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(known) and path != "/tmp":
            events.append([name, path])

sys.addaudithook(hook)
for path in sorted(place.glob("h/*.ckpt")):
    events.clear()
    try:
        evaluation = opened(path, Generalized.with_eta(2, 0.0, Uniform(), True), Hardware())
        evaluation.data.setup()
        said = "opened"
        evaluation.features()
    except (ValueError, OSError) as error:
        said = f"error: {error}"
    except BaseException as error:
        said = f"TRACE {type(error).__name__}: {error}"
    print(json.dumps([path.stem, said, list(events)]), flush=True)
"""


def harmless():
    """A whole checkpoint of ours, small."""
    words = ["logger=csv", "model.channels=8", "model.multipliers=[1]", "schedule.T=10", "data=digits", "sampler.steps=5"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", words))
    network = build(node["model"])
    state = {f"{part}.network.{k}": v for part in ("ema", "denoiser") for k, v in network.state_dict().items()}
    return {"config": node, "format": FORMAT, "step": 1, "state_dict": state, "identity": {}, "data_hash": None}


def put(checkpoint, path, value):
    """A copy with `value` at a dotted path of its config."""
    made = copy.copy(checkpoint)
    made["config"] = copy.deepcopy(checkpoint["config"])
    *way, last = path.split(".")
    node = made["config"]
    for key in way:
        node = node.setdefault(key, {})
    node[last] = value
    return made


def deep(levels):
    node = {}
    for _ in range(levels):
        node = {"x": node}
    return node


def shared(levels):
    """A list that refers to itself so often that it has 2^levels parts and needs no room."""
    node = [0]
    for _ in range(levels):
        node = [node, node]
    return node


def hostile(base, canary):
    """Names and checkpoints, each with something that must not happen: `canary` would be written."""
    touch = f"touch {canary}"
    system = {"_target_": "os.system", "command": touch}
    for name in NODES:
        node = base["config"][name]
        yield f"{name}-system", put(base, name, system)
        yield f"{name}-partial", put(base, name, {**system, "_partial_": True})
        yield f"{name}-nested", put(base, f"{name}.extra", system)
        yield f"{name}-listed", put(base, f"{name}.extra", [[system]])
        yield f"{name}-created", put(base, f"{name}.extra", f"${{oc.create:{{_target_: os.system, command: '{touch}'}}}}")
        yield f"{name}-whole", put(base, name, f"${{oc.create:{{_target_: os.system, command: '{touch}'}}}}")
        yield f"{name}-environment", put(base, f"{name}.extra", "${oc.env:HOME}")
        yield f"{name}-key", put(base, name, {**node, "${oc.env:HOME}": 1})
        yield f"{name}-ours", put(base, name, {"_target_": "anysigma.compose.config.build", "node": system})
        yield f"{name}-alias", put(base, name, {"_target_": "anysigma.runs.checkpoint.os.system", "command": touch})
        for word, value in {"_args_": [touch], "_convert_": "all", "_recursive_": False}.items():
            yield f"{name}-{word}", put(base, name, {**node, word: value})
        yield f"{name}-class", put(base, name, {"_target_": {"_target_": "os.system"}})


TARGETS = (
        "builtins.exec", "builtins.eval", "subprocess.Popen", "torch.load", "pickle.loads", "hydra.utils.instantiate",
        "anysigma.runs.checkpoint.write", "anysigma.data.download.fetch", "anysigma.evaluation.final.final_figures",
        "torch.optim.Adam.__init__.__globals__", "anysigma.diffusion.schedules.linear.Linear.__init__.__globals__",
        "anysigma.diffusion.schedules.linear.torch.load", "importlib.import_module", "runpy.run_path", "mypkg.Mine",
        "anysigma.studies.all.All", "anysigma.training.loggers_wandb.Wandb", "functools.partial", "shutil.rmtree",
)  # fmt: skip


def damaged(base, canary):
    """The same with single values that no config of ours has."""
    system = {"_target_": "os.system", "command": f"touch {canary}"}
    for number, target in enumerate(TARGETS):
        node = {"_target_": target, "source": str(canary), "shape": [1, 8, 8]}
        yield f"model-target-{number}", put(base, "model", node)
    yield "partial-word", put(base, "schedule._partial_", "${oc.env:HOME}")
    zero = "anysigma.diffusion.schedules.zero_terminal_snr.ZeroTerminalSNR"
    yield "zero-schedule", put(base, "schedule", {"_target_": zero, "schedule": system})
    yield "features-whole", put(base, "features._partial_", False)
    yield "source-whole", put(base, "data.source._partial_", False)
    yield "foreign-group", put(base, "schedule", base["config"]["data"])
    yield "name-walks", put(base, "features.name", f"../../../../../../..{canary.parent}/secret")
    yield "too-deep", put(base, "model.extra", deep(2_000))
    yield "config-list", {**base, "config": [system]}
    yield "config-text", {**base, "config": "${oc.env:HOME}"}
    yield "step-text", {**base, "step": "1"}
    yield "no-model", put(base, "model", None)
    yield "state-text", {**base, "state_dict": {"ema.x": "text"}}
    yield "partial-text", put(base, "features._partial_", "yes")
    yield "partial-list", put(base, "data.source._partial_", [])
    yield "number-key", put(base, "schedule", {**base["config"]["schedule"], 1: 2})
    yield "mixed-keys", put(base, "schedule", {**base["config"]["schedule"], 1: 2, None: 3})
    yield "two-lines", put(base, "model", {"_target_": "a\nb\x1b]0;x\x07"})
    yield "shared", put(base, "model.extra", shared(24))
    yield "step-bool", {**base, "step": True}
    yield "step-below", {**base, "step": -5}
    yield "state-number", {**base, "state_dict": {1: torch.zeros(1)}}
    zeros = base["config"]["schedule"]
    for _ in range(200):
        zeros = {"_target_": zero, "schedule": zeros}
    yield "schedules", put(base, "schedule", zeros)
    yield "old-format", {**base, "format": 1}


def ignored(base, canary):
    """What is never looked at, or gives way to this machine's own: the checkpoint opens, and nothing happens."""
    system = {"_target_": "os.system", "command": f"touch {canary}"}
    yield "job", put(base, "job", system)
    yield "callbacks", put(base, "callbacks", {"x": system})
    yield "sampler", put(base, "sampler", system)
    yield "study", put(base, "study", f"${{oc.create:{{_target_: os.system, command: 'touch {canary}'}}}}")
    yield "weights_path", put(base, "features.weights_path", str(canary.parent / "secret.safetensors"))
    yield "root", put(base, "data.root", str(canary.parent))
    yield "cache", put(base, "data.source.cache", str(canary.parent / "cache"))
    yield "download", put(base, "data.download", True)
    yield "hardware", put(base, "hardware", {"_target_": "os.system", "precision": [system]})
    yield "ema", put(base, "ema", [system])


class Gadget:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def pickles(base, canary):
    """Files that run code where they are unpickled without care."""
    yield "in-zip", lambda path: torch.save({**base, "more": Gadget(canary)}, path)
    yield "in-config", lambda path: torch.save(put(base, "model.extra", Gadget(canary)), path)
    yield "bare", lambda path: path.write_bytes(pickle.dumps(Gadget(canary)))
    yield "legacy", lambda path: torch.save({**base, "more": Gadget(canary)}, path, _use_new_zipfile_serialization=False)
    yield "empty", lambda path: path.write_bytes(b"")
    yield "text", lambda path: path.write_text("no checkpoint")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of each: (kind, said, events), and the canary's path."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "h").mkdir()
    canary, base = place / "canary", harmless()
    (place / "secret.safetensors").write_bytes(b"secret")
    kinds = {"good-as-it-was": "ignored"}
    write(base, place / "h/good-as-it-was.ckpt")
    for kind, makers in {"hostile": (hostile, damaged), "ignored": (ignored,)}.items():
        for name, checkpoint in chain(*(make(base, canary) for make in makers)):
            kinds[f"{kind}-{name}"] = kind
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(100_000)
            torch.save(checkpoint, path := place / f"h/{kind}-{name}.ckpt")
            sealed(path)
            sys.setrecursionlimit(limit)
    for name, make in pickles(base, canary):
        kinds[f"pickle-{name}"] = "hostile"
        make(path := place / f"h/pickle-{name}.ckpt")
        sealed(path)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(place), str(ROOT)], capture_output=True, text=True, cwd=place,
        env={**os.environ, "MPLCONFIGDIR": str(place / "h")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = {name: (text, events) for name, text, events in map(json.loads, done.stdout.splitlines())}
    assert said.keys() == kinds.keys()
    return kinds, said, canary


def test_there_are_enough_of_them(found):
    assert list(found[0].values()).count("hostile") >= 100


def test_none_runs_anything_and_none_reads_or_writes_elsewhere(found):
    _, said, canary = found
    assert not canary.exists()
    assert {name: events for name, (_, events) in said.items() if events} == {}


def test_each_is_refused_in_one_line_without_a_trace(found):
    kinds, said, _ = found
    for name, kind in kinds.items():
        text = said[name][0]
        if kind == "hostile":
            assert text.startswith("error: ") and "\n" not in text and len(text) < 400, (name, text)


def test_what_is_not_taken_changes_nothing(found):
    kinds, said, _ = found
    assert {name: said[name][0] for name, kind in kinds.items() if kind == "ignored" and said[name][0] != "opened"} == {}
