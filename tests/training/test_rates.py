"""What every run logs of its speed, by a clock that the test moves."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from test_module import module
from torch.utils.data import DataLoader, Dataset

from anysigma.machine.flops import forward_flops
from anysigma.training.callbacks import rates
from anysigma.training.callbacks.rates import Rates

B, STEPS, EVERY = 4, 6, 3
FETCH, STEP, WATCH = 3.0, 2.0, 5.0  # seconds of one image's loading, of a step, of the callbacks after it


class Slow(Dataset):
    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return B * STEPS

    def __getitem__(self, index):
        self.clock.now += FETCH / B
        return torch.zeros(1, 8, 8)


class Data(pl.LightningDataModule):
    batch_size = B
    taken = int  # nothing is skipped

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def train_dataloader(self):
        return DataLoader(Slow(self.clock), batch_size=B)


class Watch(pl.Callback):
    """Takes its time before and after, and keeps what was logged."""

    def __init__(self, clock):
        self.clock, self.logged = clock, []

    def on_before_zero_grad(self, *_):
        self.clock.now += STEP

    def on_train_batch_end(self, trainer, *_):
        self.clock.now += WATCH
        if trainer.global_step % EVERY == 0:
            self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fitted(clock):
    made, watch = module("model.channels=8"), Watch(clock)
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[Rates(EVERY), watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(made, Data(clock))
    return made, watch.logged


def test_the_wait_for_data_is_its_share_of_the_time_and_the_callbacks_are_no_data(clock):
    _, (first, second) = fitted(clock)
    whole = EVERY * (FETCH + STEP + WATCH)
    assert first["train/data_wait"] == pytest.approx(EVERY * FETCH / (whole - WATCH))  # the last watch lies in the next
    assert second["train/data_wait"] == pytest.approx(EVERY * FETCH / whole)
    assert second["train/images_per_s"] == pytest.approx(EVERY * B / whole)


def test_memory_is_logged_and_a_cpu_has_no_utilisation(clock):
    _, logged = fitted(clock)
    for metrics in logged:
        assert 0.05 < metrics["train/memory_gib"] < 64 and "train/mfu" not in metrics


def test_utilisation_is_three_forwards_an_image_over_the_peak_of_all_devices(clock, monkeypatch):
    asked = []
    monkeypatch.setattr(rates, "peak", lambda device, precision: asked.append((device.type, precision)) or 1e9)
    made, logged = fitted(clock)
    assert asked == [("cpu", "32-true")]  # once, at the start
    flops = forward_flops(made.denoiser.network, (1, 8, 8))
    for metrics in logged:
        assert metrics["train/mfu"] == pytest.approx(3 * flops * metrics["train/images_per_s"] / 1e9)


def test_what_cannot_be_had_is_not_logged(clock, monkeypatch):
    monkeypatch.setattr(rates, "memory_gib", lambda device: None)
    monkeypatch.setattr(rates, "peak", lambda *_: 1e9)
    monkeypatch.setattr(rates, "forward_flops", lambda *_: None)
    _, logged = fitted(clock)
    assert all({"train/memory_gib", "train/mfu"} & metrics.keys() == set() for metrics in logged)


def test_two_devices_have_twice_the_peak(monkeypatch):
    monkeypatch.setattr(rates, "peak", lambda *_: 1e9)
    made = module("model.channels=8")
    one, two = (rates.share_of_peak(SimpleNamespace(precision="32-true", world_size=n), made) for n in (1, 2))
    assert one == 2 * two > 0
