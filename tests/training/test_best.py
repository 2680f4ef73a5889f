"""What stood best stays best: on a run that goes on, in another place, with micro-steps."""

import pytest
from test_training import LIGHT, train_here

from anysigma.runs.checkpoint import read
from anysigma.training.callbacks.base import report
from anysigma.training.callbacks.distance import Distance


@pytest.fixture
def acted(monkeypatch):
    """The steps at which the distance was measured; it is 5 at step 10, 7 at 20, 3 at 30."""
    steps = []

    def act(self, trainer, module):
        steps.append(trainer.global_step)
        report(trainer, {self.metric: {10: 5.0, 20: 7.0, 30: 3.0}[trainer.global_step]})

    monkeypatch.setattr(Distance, "act", act)
    return steps


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_a_moved_run_keeps_its_best_and_acts_once_at_a_step(tmp_path, acted, micro_steps):
    words = (*LIGHT, f"trainer.accumulate_grad_batches={micro_steps}")
    train_here(tmp_path / "first", *words, "trainer.max_steps=10")
    best = (tmp_path / "first/checkpoints/best.ckpt").read_bytes()
    (tmp_path / "first").rename(tmp_path / "moved")
    train_here(tmp_path / "moved", *words, "trainer.max_steps=20")
    path = tmp_path / "moved/checkpoints/best.ckpt"
    assert path.read_bytes() == best and read(path)["step"] == 10
    last = train_here(tmp_path / "moved", *words, "trainer.max_steps=30")
    assert read(path)["step"] == 30 and acted == [10, 20, 30]
    assert last["callbacks"]["Best"]["score"] == 3.0 and read(path.with_name("previous.ckpt"))["step"] == 20
