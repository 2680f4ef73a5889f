"""profile=true: whose time is whose, by a clock that the test moves; and that it leaves no trace."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from test_module import module
from test_rates import STEPS, B, Data
from test_training import same_weights, train_here

from anysigma.compose.targets import ConfigError
from anysigma.training.callbacks.profile import EMA, PARTS, REST, Parts, Profile, part_of

WAY = "[LightningModule]DiffusionModule."


def test_every_second_belongs_to_the_innermost_part(clock):
    waits, parts = [], Parts(PassThroughProfiler(), lambda: None)
    parts.wait = lambda: waits.append(1)

    def within(action, before, *inner, after=0.0):
        with parts.profile(action):
            clock.now += before
            for one in inner:
                one()
            clock.now += after

    clock.now += 0.5  # rest
    within("[_TrainingEpochLoop].train_dataloader_next", 1.0)
    within("[Strategy]SingleDeviceStrategy.batch_to_device", 0.25, lambda: within(f"{WAY}on_after_batch_transfer", 0.25))
    forward = lambda: within("[Strategy]SingleDeviceStrategy.training_step", 4.0)  # noqa: E731
    zero = lambda: within(f"{WAY}optimizer_zero_grad", 0.125)  # noqa: E731
    backward = lambda: within("[Strategy]SingleDeviceStrategy.backward", 8.0)  # noqa: E731
    watch = lambda: within("[Callback]Watch.on_before_optimizer_step", 0.75)  # noqa: E731
    average = lambda: within(EMA, 0.0625)  # noqa: E731
    step = lambda: within(f"{WAY}optimizer_step", 2.0, forward, zero, backward, watch, average, after=1.0)  # noqa: E731
    within("run_training_batch", 0.375, step)
    within("[Callback]Watch.on_train_batch_end", 0.5)
    assert parts.seconds == {
        REST: 0.875, "data": 1.5, "forward": 4.0, "backward": 8.0, "optimiser": 3.125, EMA: 0.0625, "callbacks": 1.25,
    }  # fmt: skip
    assert len(waits) == 2 * 11  # as often as something begins or ends


@pytest.mark.parametrize("name", ["on_train_start", "on_before_zero_grad", "optimizer_steps", "run_training_batch"])
def test_other_actions_belong_to_what_they_lie_in(name):
    assert part_of(f"{WAY}{name}") is None


class Tick(pl.Callback):
    """Takes a second after every step; keeps which profiler was at work."""

    def __init__(self, clock):
        self.clock, self.seen = clock, []

    def on_train_batch_end(self, trainer, *_):
        self.clock.now += 1
        self.seen.append(type(trainer.profiler).__name__)


def test_a_run_is_looked_at_after_its_warm_up_for_as_many_steps_and_no_longer(tmp_path, clock, capsys):
    from test_rates import Data

    made, tick = module("model.channels=8"), Tick(clock)
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[tick, Profile(2, after=1)], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = made.ema.update
    trainer.fit(made, Data(clock))
    assert tick.seen == ["PassThroughProfiler", "Parts", "Parts", *["PassThroughProfiler"] * 3]
    assert made.ema.update == before and isinstance(trainer.profiler, PassThroughProfiler)
    first, *lines = (tmp_path / "profile.txt").read_text().splitlines()
    assert first == f"profile: 2 steps of 4000.0 ms; {B} images a step, from step 1 on"  # a second of it the callback's
    found = {line.split()[0]: line.split()[1:] for line in lines[: len(PARTS)]}
    assert list(found) == list(PARTS)
    assert found["data"] == ["3000.00", "ms", "75.0%"] and found["callbacks"] == ["1000.00", "ms", "25.0%"]
    assert lines[len(PARTS)] == "operators by their own time, in 3 steps after these"
    assert any("convolution_backward" in line for line in lines[len(PARTS) + 1 :])
    assert (tmp_path / "profile.txt").read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_it_leaves_no_trace_in_the_weights(tmp_path):
    words = ["features=none", "trainer.max_steps=9", "callbacks.profile.after=1"]
    looked = train_here(tmp_path / "looked", "profile=true", "callbacks.profile.steps=3", *words)
    plain = train_here(tmp_path / "plain", *words)
    assert same_weights(looked, plain) and looked["identity"] == plain["identity"]
    assert (tmp_path / "looked/profile.txt").exists() and not (tmp_path / "plain/profile.txt").exists()


@pytest.mark.parametrize(("steps", "said"), [(4, "profile: 3 steps of"), (1, "profile: no steps were left after 1")])
def test_a_short_run_is_told_as_far_as_it_came(tmp_path, capsys, steps, said):
    words = ["profile=true", "features=none", f"trainer.max_steps={steps}", "callbacks.profile.after=1"]
    train_here(tmp_path, *words, "trainer.accumulate_grad_batches=2")
    assert said in capsys.readouterr().out and (tmp_path / "profile.txt").exists() == (steps == 4)


def test_an_error_on_the_way_leaves_the_trainer_its_own_profiler(tmp_path):
    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                self.trainer = trainer
                raise RuntimeError("on the way")

    made, fails = module("model.channels=8"), Fails()
    trainer = pl.Trainer(
        max_steps=6, accelerator="cpu", callbacks=[Profile(4, after=1), fails], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="on the way"):
        trainer.fit(made, Data(SimpleNamespace(now=0.0)))
    assert isinstance(trainer.profiler, PassThroughProfiler) and "update" not in vars(made.ema)
    assert torch.isfinite(next(made.ema.parameters())).all()


def test_what_could_not_be_done_is_refused(tmp_path):
    with pytest.raises(ValueError, match="steps=-1, after=5: neither may be below 0"):
        Profile(-1, 5)
    with pytest.raises(ConfigError, match="profile=true: callbacks has no profile"):
        train_here(tmp_path, "profile=true", "~callbacks.profile")
