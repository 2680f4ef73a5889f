"""The trial of a whole step: on copies, at this batch; its result on record, and kept by a run that goes on."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_training import LIGHT, train_here

from anysigma.machine import choice
from anysigma.machine.choice import SAID
from anysigma.runs.checkpoint import read
from anysigma.training.clipping import Clipping
from anysigma.training.module import DiffusionModule
from anysigma.training.rehearsal import name_of

SHORT = [*LIGHT, "features=none", "callbacks.grid.every=1000", "~callbacks.held_out", "trainer.max_steps=3"]
BF16 = {"training": {"precision": "bf16-mixed", "memory_format": "channels_last", "fused": True},
        "sampling": {"precision": "bf16-mixed", "memory_format": "contiguous"}, "gains": [1.5, 1.2]}  # fmt: skip


class Quiet:
    def others(self):
        return 0.0


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """A trial is made, on a machine where nobody else works."""
    monkeypatch.delenv(SAID)
    monkeypatch.setattr(choice, "Load", Quiet)
    monkeypatch.setattr(choice, "FIRST", 0.0)
    monkeypatch.chdir(tmp_path)


def hardware_of(folder):
    return read(folder / "checkpoints/last.ckpt")["config"]["hardware"]


def test_a_trial_is_said_kept_and_recorded_and_leaves_no_trace_in_the_weights(tried, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("anysigma.training.rehearsal.fastest", lambda hardware, *_: (hardware.plain(), 1.0))
    train_here(tmp_path / "a", *SHORT)
    assert "hardware=auto: training 32-true contiguous, sampling 32-true contiguous: 1.00" in capsys.readouterr().out
    (kept,) = json.loads((tmp_path / "logs/cache/hardware.json").read_text()).values()
    found = hardware_of(tmp_path / "a")
    assert {name: found[name] for name in kept["training"]} == kept["training"] and found["sampling"] == kept["sampling"]
    monkeypatch.setenv(SAID, "{}")
    train_here(tmp_path / "b", *SHORT)
    a, b = (read(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_step_that_is_tried_is_the_whole_one(tried, tmp_path):
    """A real trial, every factor: it ends, and what it says can be trained with."""
    train_here(tmp_path / "a", *SHORT)
    (kept,) = json.loads((tmp_path / "logs/cache/hardware.json").read_text()).values()
    assert set(kept["training"]) == {"precision", "memory_format", "fused"} and kept["seconds"] < 60


def test_what_a_run_had_stays_when_it_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(SAID, json.dumps(BF16))
    train_here(tmp_path, *SHORT)
    first = hardware_of(tmp_path)
    assert {name: first[name] for name in BF16["training"]} == BF16["training"] and first["sampling"] == BF16["sampling"]
    monkeypatch.setenv(SAID, "{}")
    train_here(tmp_path, *SHORT, "trainer.max_steps=5")
    assert hardware_of(tmp_path) == first and "otherwise than before" not in capsys.readouterr().out


def test_a_run_that_began_without_a_trial_says_what_changes_it(tried, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Quiet, "others", lambda self: 1.0)
    line = "hardware=auto: this run began without a trial and goes on in 32-true contiguous; hardware.precision=bf16-mixed"
    train_here(tmp_path / "a", *SHORT)
    assert line not in capsys.readouterr().out and hardware_of(tmp_path / "a")["tried"] is False
    for steps in (4, 5):
        train_here(tmp_path / "a", *SHORT, f"trainer.max_steps={steps}")
        assert capsys.readouterr().out.count(line) == 1
    for steps, words in ((6, ["hardware.precision=bf16-mixed"]), (7, [])):
        train_here(tmp_path / "a", *SHORT, f"trainer.max_steps={steps}", *words)
        assert line not in capsys.readouterr().out
    monkeypatch.setenv(SAID, "{}")  # a person who wants none tried
    for steps in (3, 4):
        train_here(tmp_path / "b", *SHORT, f"trainer.max_steps={steps}")
    assert line not in capsys.readouterr().out and hardware_of(tmp_path / "b")["tried"] is True


def test_a_run_that_goes_on_otherwise_says_so(tmp_path, capsys):
    train_here(tmp_path, *SHORT)
    train_here(tmp_path, *SHORT, "trainer.max_steps=5", "hardware.precision=bf16-mixed")
    said = "going on otherwise than before, no longer bit for bit: hardware.precision=bf16-mixed, before 32-true"
    assert said in capsys.readouterr().out


def test_an_optimiser_is_named_alike_in_every_process_and_given_what_it_takes():
    def own(parameters, lr=0.1, fused=None):
        return torch.optim.SGD(parameters, lr=lr, fused=fused)

    assert name_of(own).endswith("own []") and name_of(partial(own, lr=1)).endswith("own [('lr', 1)]")
    module = SimpleNamespace(optimizer=partial(own, lr=1), has_fused=True, _takes=("parameters", "lr", "fused"))
    assert DiffusionModule.optimizer_over(module, [torch.nn.Parameter(torch.ones(1))], True).defaults["fused"] is True


@pytest.mark.parametrize("algorithm, value", [("norm", 1e-3), ("value", 1e-6), ("norm", None)])
def test_fused_and_plain_optimisers_are_clipped_alike_under_autocast(tmp_path, algorithm, value):
    """Lightning's own clipping refuses the fused form under autocast."""
    words = [*SHORT, f"trainer.gradient_clip_algorithm={algorithm}", f"trainer.gradient_clip_val={value or 'null'}"]
    words += ["hardware.precision=bf16-mixed", "optimizer.warmup=0"]
    weights = []
    for fused in ("true", "false"):
        done = train_here(tmp_path / fused, *words, f"hardware.fused={fused}")
        weights.append(done["state_dict"])
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_where_torch_takes_tensors_one_by_one_they_are_clipped_too(algorithm, monkeypatch):
    """As on Apple's GPUs."""
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: False)
    monkeypatch.setattr("torch.nn.utils.clip_grad._has_foreach_support", lambda grads, device: False)
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    weights[0].grad, unused = torch.tensor([3.0, -4.0, 0.0]), weights[1]
    Clipping(1.0, algorithm)(torch.optim.SGD(weights, 1e-3))
    expected = [0.6, -0.8, 0.0] if algorithm == "norm" else [1.0, -1.0, 0.0]
    assert weights[0].grad.tolist() == pytest.approx(expected, rel=1e-5) and unused.grad is None


def test_gradients_are_held_to_the_norm_that_was_said(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def seen(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", seen)
    train_here(tmp_path / "held", *SHORT, "trainer.gradient_clip_val=0.01")
    assert norms and max(norms) <= 0.01 * (1 + 1e-4)
    norms.clear()
    train_here(tmp_path / "free", *SHORT, "trainer.gradient_clip_val=null")
    assert max(norms) > 0.01
