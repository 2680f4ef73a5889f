"""Training without room, on purpose: one line that says what fits and how to train so; nothing saved is lost."""

import re

import pytest
import test_finite
import torch
from test_finite import last, same, together, trained

from anysigma.diffusion.denoiser import Denoiser
from anysigma.training.callbacks.grid import Grid
from anysigma.training.fitting import micro_steps
from anysigma.training.module import DiffusionModule
from anysigma.training.starts import NO_MEMORY

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture
def room(monkeypatch):
    """room(n): from step `after` on a network takes at most n images at once while it trains."""
    output, step, full = Denoiser.output, DiffusionModule.training_step, []

    def narrow(n, after=0, rank=0, error=CUDA):
        def training_step(self, x_0, i):
            if self.global_step >= after and self.global_rank == rank:
                full.append(n)
            return step(self, x_0, i)

        def narrowed(self, x_t, t):
            if full and torch.is_grad_enabled() and len(x_t) > full[0]:
                raise error
            return output(self, x_t, t)

        monkeypatch.setattr(DiffusionModule, "training_step", training_step)
        monkeypatch.setattr(Denoiser, "output", narrowed)

    return narrow


@pytest.mark.parametrize("error", [CUDA, CPU])
def test_it_says_how_many_fit_and_how_to_train_with_them(error, room, tmp_path, capsys):
    """Of 16 images 5 fit: 4 micro-steps of 4 are tried after 2 of 8. What was saved stays, and goes on so."""
    room(5, after=4, error=error)
    assert trained(tmp_path) == NO_MEMORY
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.fullmatch(
        r"error: out of memory with 16 images at once: 4 fit; trainer\.accumulate_grad_batches=4 makes the same steps of 16"
        r" images of them; .*checkpoints/last\.ckpt holds step 3", line,
    )  # fmt: skip
    assert last(tmp_path)["step"] == 3
    assert trained(tmp_path, "trainer.accumulate_grad_batches=4") == 0
    assert last(tmp_path)["step"] == 9


def test_before_anything_was_saved_and_with_micro_steps(room, tmp_path, capsys):
    room(3)
    assert trained(tmp_path, "trainer.accumulate_grad_batches=2") == NO_MEMORY
    line = capsys.readouterr().err
    assert "with 8 images at once: 2 fit; trainer.accumulate_grad_batches=8" in line and "nothing was saved before" in line
    assert not list(tmp_path.rglob("*.ckpt"))


def test_where_nothing_fits_it_says_so(room, tmp_path, capsys):
    room(0)
    assert trained(tmp_path) == NO_MEMORY
    assert "not even 1 fits; a smaller model" in capsys.readouterr().err


def test_where_the_step_itself_fits_it_names_what_does_not(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Grid, "act", full)
    monkeypatch.setattr(test_finite, "WORDS", [word for word in test_finite.WORDS if word != "~callbacks.grid"])
    assert trained(tmp_path, "callbacks.grid.every=2") == NO_MEMORY
    assert "the step alone fits; callbacks sample job.module.block=64 images at once" in capsys.readouterr().err


def test_another_error_keeps_its_trace(room, tmp_path):
    room(5, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trained(tmp_path)


def test_a_run_that_goes_on_with_micro_steps_goes_on_as_if_nothing_had_been(room, tmp_path):
    """Going on from what was saved is going on from what the failed start had saved."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["trainer.accumulate_grad_batches=4"]
    assert trained(whole, "trainer.max_steps=3") == 0
    room(5, after=4)
    assert trained(cut) == NO_MEMORY
    assert trained(cut, *words) == trained(whole, *words) == 0
    assert same(last(cut), last(whole))


def test_the_process_that_has_no_room_says_so_and_ends_with_its_code(room, tmp_path, capfd):
    room(2, rank=1)
    codes = together(tmp_path)
    assert codes[1] == NO_MEMORY and codes[0] not in (0, None)
    line = "error: process 1: out of memory with 8 images at once: 2 fit; trainer.accumulate_grad_batches=4 makes"
    assert line in capfd.readouterr().err


TRIED = [(16, 1, [1, 2, 4, 8, 16]), (12, 3, [3, 6, 12]), (15, 1, [1, 3, 15]), (7, 7, [7])]


@pytest.mark.parametrize("most, k, expected", TRIED)
def test_the_shares_that_are_tried_divide_the_batch_and_at_least_halve(most, k, expected):
    assert list(micro_steps(most, k)) == expected
