"""Thread counts of a run are on record, and a run that goes on takes them."""

from types import SimpleNamespace

import pytest
import torch
from test_training import LIGHT, same_weights, train_here

from anysigma.training.callbacks import switches
from anysigma.training.callbacks.switches import Switches, read
from anysigma.training.module import DiffusionModule

WORDS = [
    *LIGHT,
    "features=none",
    "callbacks.grid.every=1000",
    "~callbacks.held_out",
    "hardware.threads=0",
    "callbacks.last.every=4",
]
PLAN = {0: 2, 3: 1, 4: 1, 7: 2, 12: 1}  # what the free cores say, from these steps on


def planned(step, plan):
    return plan[max(at for at in plan if at <= step)]


@pytest.fixture
def seen(monkeypatch):
    """The threads of every step, in the order of the steps; and a way to say what the free cores are."""
    found, said, before = [], [PLAN], torch.get_num_threads()
    step = DiffusionModule.training_step

    def recorded(self, x_0, i):
        found.append((self.global_step, torch.get_num_threads()))
        return step(self, x_0, i)

    monkeypatch.setattr(DiffusionModule, "training_step", recorded)
    monkeypatch.setattr(Switches, "_count", lambda self, trainer, step: planned(step, said[0]))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    yield found, said
    torch.set_num_threads(before)


def test_switches_are_written_and_taken_again_and_a_cut_run_is_the_uncut_one(seen, tmp_path):
    found, said = seen
    whole = train_here(tmp_path / "whole", *WORDS)
    assert found == [(step, planned(step, PLAN)) for step in range(20)]
    assert read(tmp_path / "whole/threads.csv") == [(0, 2), (3, 1), (7, 2), (12, 1)]

    train_here(tmp_path / "cut", *WORDS, "trainer.max_steps=9")  # saved at 4, 8 and 9
    (tmp_path / "cut/checkpoints/last.ckpt").write_bytes(_at_step(tmp_path, 4))
    found.clear()
    said[0] = {0: 1, 8: 2, 12: 1}  # were it asked before the last line, at step 7, it would say otherwise
    resumed = train_here(tmp_path / "cut", *WORDS)
    assert found == [(step, planned(step, PLAN)) for step in range(4, 20)] and same_weights(whole, resumed)
    assert read(tmp_path / "cut/threads.csv") == [(0, 2), (3, 1), (7, 2), (12, 1)]


def _at_step(tmp_path, step):
    """last.ckpt as it was after so many steps."""
    train_here(tmp_path / f"to-{step}", *WORDS, f"trainer.max_steps={step}")
    return (tmp_path / f"to-{step}/checkpoints/last.ckpt").read_bytes()


def test_between_micro_steps_nothing_changes(seen, tmp_path):
    found, said = seen
    said[0] = {step: 1 + step % 2 for step in range(20)}
    train_here(tmp_path, *WORDS, "trainer.accumulate_grad_batches=2", "trainer.max_steps=5")
    assert found == [(step, 1 + step % 2) for step in range(5) for _ in range(2)]


def test_a_number_that_is_fixed_later_is_on_record_too(seen, tmp_path):
    found, _ = seen
    train_here(tmp_path, *WORDS, "trainer.max_steps=6")
    found.clear()
    train_here(tmp_path, *WORDS, "trainer.max_steps=9", "hardware.threads=2")
    train_here(tmp_path, *WORDS, "trainer.max_steps=14")
    assert found == [(step, 2 if step < 12 else 1) for step in range(6, 14)]
    assert read(tmp_path / "threads.csv") == [(0, 2), (3, 1), (6, 2), (12, 1)]


def test_a_fixed_number_follows_nothing_and_leaves_no_record(seen, tmp_path):
    found, _ = seen
    train_here(tmp_path, *WORDS, "hardware.threads=1", "trainer.max_steps=3")
    assert found == [(step, 1) for step in range(3)] and not (tmp_path / "threads.csv").exists()


ODD = ["", "a,b\n", "step,threads\n0,0\n", "0,9999999\n", "\x00\xff,\n", "step,threads\n7", "5,x\n"]


@pytest.mark.parametrize("text, lines", [
    *((text, []) for text in ODD), ("step,threads\n0,2\n7,1", [(0, 2)]),
    ("step,threads\r\n0,2\r\n7,1\r\n", [(0, 2), (7, 1)]),
    ("0,2\n9,1\n7,2\n", [(0, 2), (9, 1)]),
])  # fmt: skip
def test_a_line_that_is_none_does_not_count(tmp_path, text, lines):
    (tmp_path / "threads.csv").write_text(text)
    assert read(tmp_path / "threads.csv") == lines


@pytest.mark.parametrize("text", ["a,b\n", "step,threads\n8,2\n", "step,threads\n0,2\n1"])
def test_a_run_goes_on_beside_an_odd_record(seen, tmp_path, text):
    train_here(tmp_path, *WORDS, "trainer.max_steps=4")
    (tmp_path / "threads.csv").write_text(text)
    train_here(tmp_path, *WORDS, "trainer.max_steps=6")
    assert all(line.count(",") == 1 for line in (tmp_path / "threads.csv").read_text().split())


@pytest.mark.parametrize("node", [0, 1])
def test_the_processes_of_one_machine_share_its_cores_and_their_time_alone_is_ours(node, tmp_path, monkeypatch):
    class Seen:
        def __init__(self, most, team, load):
            self.team, self.count = team, most

    monkeypatch.setattr(switches, "Following", Seen)
    strategy = SimpleNamespace(broadcast=lambda value: value, reduce=lambda value, reduce_op: value)
    two_of_two = SimpleNamespace(global_step=0, world_size=4, num_nodes=2, node_rank=node, strategy=strategy)
    callback = Switches(tmp_path / "threads.csv", 4)
    callback.on_train_start(two_of_two, None)
    assert callback._following.team == 2 and callback._count(two_of_two, 0) == 4
    assert (callback._seconds > 0) == (node == 0)
