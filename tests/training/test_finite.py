"""NaN and infinities on purpose: in losses, gradients, weights; on one process of two; once and for good."""

import csv
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_ddp import QUICK, TWO
from test_training import LIGHT, ROOT

from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.data.datamodule import Order, unskipped
from anysigma.data.digits import Digits
from anysigma.diffusion.noise import Draws
from anysigma.machine.signals import ASKING, SIGNALS
from anysigma.runs.checkpoint import load_weights, read
from anysigma.runs.identity import identity
from anysigma.runs.not_finite import NotFinite, hold_finite, not_finite
from anysigma.training.callbacks.finite import Finite, GoneBack
from anysigma.training.ema import EMA
from anysigma.training.ending import Outcome
from anysigma.training.first_bad import FirstBad
from anysigma.training.job import Facts, TrainingJob
from anysigma.training.module import DiffusionModule
from anysigma.training.starts import NOT_FINITE, to_the_end

WORDS = [*QUICK, *LIGHT, "debug=true", "logger=csv", "~callbacks.progress", "callbacks.last.every=3", "trainer.max_steps=9"]
B = 16


def trained(folder, *words):
    """A run as train.py makes it; its exit code."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", [*WORDS, *words]))
    facts = Facts({name: value for name, value in node.items() if name != "job"}, identity(node))
    return to_the_end(lambda: build(node["job"]), node["seed"], folder, facts).code


def together(folder, *words):
    """The same of two processes, forked from this one, so that what is patched is theirs; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork").Process
    members = [fork(target=member, args=(rank, port, folder, [*TWO, *words])) for rank in (0, 1)]
    for one in members:
        one.start()
    for one in members:
        one.join(60)
    return [one.exitcode for one in members]


def member(rank, port, folder, words):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(trained(folder, *words))


def loss_of(value, combine):
    """The loss of one image is combined with a value; adding an infinity leaves every gradient finite."""

    def spoil(module):
        whole = module.objective

        class Spoilt(type(whole)):
            def __call__(self, *given):
                losses = super().__call__(*given)
                return torch.cat([combine(losses[:1], value), losses[1:]])

        module.objective = Spoilt(whole.gamma, whole.draw)
        return lambda: setattr(module, "objective", whole)

    return spoil


def gradient_of(value):
    """One element of one gradient, before processes share it."""

    def spoil(module):
        def hook(gradient):
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
            return gradient

        return next(module.denoiser.parameters()).register_hook(hook).remove

    return spoil


NAN, INF = float("nan"), float("inf")
KINDS = {
    "loss x NaN": loss_of(NAN, torch.mul), "loss + Inf": loss_of(INF, torch.add),
    "gradient NaN": gradient_of(NAN), "gradient Inf": gradient_of(INF),
}  # fmt: skip


@pytest.fixture
def spoilt(monkeypatch):
    """spoilt(kind, when, rank): `kind` in the micro-steps (stream's number, step's number) for which `when` says so."""
    step = DiffusionModule.training_step

    def also(kind, when, rank=0):
        def training_step(self, x_0, i):
            if self.global_rank != rank or not when(self.trainer.datamodule.taken(i), i):
                return step(self, x_0, i)
            undo = KINDS[kind](self)
            loss = step(self, x_0, i)
            if "loss" in kind:
                undo()  # a gradient is spoilt after the loss
            else:
                self.on_after_backward = lambda: (undo(), delattr(self, "on_after_backward"))
            return loss

        monkeypatch.setattr(DiffusionModule, "training_step", training_step)

    return also, lambda: monkeypatch.setattr(DiffusionModule, "training_step", step)


def same(a, b):
    """Whether two checkpoints agree bit for bit in all that trains on."""
    names = ("state_dict", "optimizer_states", "lr_schedulers", "step", "images_seen", "ImageDataModule")
    return all(equal(a.get(name), b.get(name)) for name in names) and a["callbacks"]["Finite"] == b["callbacks"]["Finite"]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def last(folder):
    return read(folder / "checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Nine steps in which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    assert trained(folder) == 0
    return last(folder)


# --- stop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_it_stops_in_the_step_of_it_names_the_batch_and_keeps_what_was_saved(
    kind, micro_steps, spoilt, tmp_path, capsys, whole
):
    """At step 5, from 1: the file of step 3 stays, and the same command goes on from it as if nothing had been."""
    also, undo = spoilt
    also(kind, lambda place, i: i == 4 * micro_steps + micro_steps - 1)
    words = [f"trainer.accumulate_grad_batches={micro_steps}"]
    assert trained(tmp_path, *words) == NOT_FINITE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    images = Order(1437, B, 0, total=0).batch(4)
    ts = (1 + (Draws(0, "t").uniform(torch.arange(4 * B, 5 * B)) * 1000).long()).tolist()
    first = f"images {', '.join(map(str, images[:8]))}, … at t = {', '.join(map(str, ts[:8]))}, …"
    assert line.startswith(f"error: step 5: the gradient is not finite; {first} (all 16 in ")
    assert "training stopped at step 5" in line and "last.ckpt holds step 3" in line
    with open(tmp_path / "not-finite.csv") as file:
        rows = [{name: int(value) for name, value in row.items() if name != "mirrored"} for row in csv.DictReader(file)]
    assert rows == [
        {"step": 5, "position": p, "image": image, "t": t} for p, image, t in zip(range(64, 80), images, ts, strict=True)
    ]
    assert last(tmp_path)["step"] == 3 and not_finite(last(tmp_path)["state_dict"]) is None
    undo()
    assert trained(tmp_path, *words) == 0
    assert micro_steps > 1 or same(last(tmp_path), whole)


def test_the_table_names_what_the_network_saw(spoilt, tmp_path, monkeypatch):
    """The images of the table, mirrored where it says so, are those of the training step."""
    also, _ = spoilt
    also("loss x NaN", lambda place, i: i == 2)
    seen, now = [], DiffusionModule.training_step
    monkeypatch.setattr(DiffusionModule, "training_step", lambda self, x_0, i: (seen.append(x_0), now(self, x_0, i))[1])
    assert trained(tmp_path, "data.flips=true") == NOT_FINITE
    with open(tmp_path / "not-finite.csv") as file:
        rows = list(csv.DictReader(file))
    images = Digits().train[[int(row["image"]) for row in rows]] / 127.5 - 1
    mirrored = torch.tensor([row["mirrored"] == "True" for row in rows])
    assert 0 < mirrored.sum() < B
    expected = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    torch.testing.assert_close(seen[2], expected)


def test_a_learning_rate_far_too_high_ends_in_a_line_and_no_file(tmp_path, capsys):
    assert trained(tmp_path, "optimizer.adam.lr=1e30", "callbacks.last.every=100") == NOT_FINITE
    line = capsys.readouterr().err
    assert "error: step 2: the gradient is not finite" in line and "nothing was saved before" in line
    assert "a lower optimizer.adam.lr may do" in line and not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("kind", ["loss + Inf", "gradient NaN"])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_on_one_process_of_two_it_stops_both(kind, micro_steps, spoilt, tmp_path, capfd):
    also, _ = spoilt
    also(kind, lambda place, i: i == 4 * micro_steps, rank=1)
    began = time.monotonic()
    assert together(tmp_path, f"trainer.accumulate_grad_batches={micro_steps}") == [NOT_FINITE] * 2
    assert time.monotonic() - began < 30
    assert capfd.readouterr().err.count("error: step 5: the gradient is not finite; images ") == 1
    assert last(tmp_path)["step"] == 3 and not_finite(last(tmp_path)["state_dict"]) is None


@pytest.mark.parametrize("algorithm", ["value", "norm"])
@pytest.mark.parametrize("most", ["1.0", "null"])
def test_however_gradients_are_clipped(algorithm, most, spoilt, tmp_path):
    also, _ = spoilt
    also("gradient Inf", lambda place, i: i == 1)
    clip = [f"trainer.gradient_clip_val={most}", f"trainer.gradient_clip_algorithm={algorithm}"]
    assert trained(tmp_path, *clip) == NOT_FINITE


def test_an_average_that_is_not_finite_is_never_saved(tmp_path, monkeypatch, capsys):
    """Nothing of it shows in a gradient."""
    update = EMA.update

    def spoils(self, denoiser, k):
        update(self, denoiser, k)
        if k == 4:
            next(self.parameters()).data.view(-1)[0] = INF

    monkeypatch.setattr(EMA, "update", spoils)
    assert trained(tmp_path) == NOT_FINITE
    assert "step 6: weights.ema.network." in (line := capsys.readouterr().err) and "holds step 3" in line
    assert last(tmp_path)["step"] == 3


def test_best_is_held_to_it_as_last_is(tmp_path, monkeypatch):
    """A figure that looks better than ever, of an average that is not finite."""
    update = EMA.update

    def spoils(self, denoiser, k):
        update(self, denoiser, k)
        if k >= 5:
            next(self.parameters()).data.fill_(NAN)

    words = [word for word in WORDS if word not in ("~callbacks.best", "~callbacks.held_out")]
    monkeypatch.setattr(sys.modules[__name__], "WORDS", [*words, "callbacks.held_out.every=3", "callbacks.last.every=9"])
    monkeypatch.setattr("anysigma.training.callbacks.held_out.HeldOut._loss", lambda *_: -time.monotonic())
    monkeypatch.setattr(EMA, "update", spoils)
    assert trained(tmp_path) == NOT_FINITE
    assert read(tmp_path / "checkpoints/best.ckpt")["step"] == 3


def test_what_writes_checkpoints_holds_them_to_it_without_the_callback(tmp_path):
    """The last door: moments too."""
    with pytest.raises(NotFinite, match=r"^step 7: optimizer_states.0.state.0.exp_avg holds NaN or infinite numbers"):
        hold_finite({"global_step": 7, "optimizer_states": [{"state": {0: {"exp_avg": torch.tensor([0.0, INF])}}}]})
    hold_finite({"global_step": 7, "state_dict": {"w": torch.ones(2), "n": torch.tensor(2**40)}})


# --- skip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_left_out_changes_nothing(kind, spoilt, tmp_path, capsys):
    also, _ = spoilt
    also(kind, lambda place, i: i == 4)
    before, after = tmp_path / "before", tmp_path / "after"
    assert trained(before, "callbacks.finite.policy=skip", "trainer.max_steps=4") == 0
    assert trained(after, "callbacks.finite.policy=skip", "trainer.max_steps=5") == 0
    assert "step 5: the gradient is not finite, the step is left out (1 of at most 10); images " in capsys.readouterr().out
    a, b = last(before), last(after)
    moments = [one["optimizer_states"][0]["state"] for one in (a, b)]
    assert equal(a["state_dict"], b["state_dict"]) and moments[0] and equal(*moments)
    assert (b["step"], b["images_seen"], b["callbacks"]["Finite"]) == (5, 5 * B, {"left_out": [4]})


def test_the_first_step_of_all_may_be_left_out(spoilt, tmp_path):
    also, _ = spoilt
    also("loss x NaN", lambda place, i: i == 0)
    assert trained(tmp_path, "callbacks.finite.policy=skip", "trainer.max_steps=1") == 0
    (optimizer,) = last(tmp_path)["optimizer_states"]
    assert optimizer["state"] == {}


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_a_run_that_was_cut_after_a_step_left_out_goes_on_as_the_uncut_one(micro_steps, spoilt, tmp_path):
    also, _ = spoilt
    also("loss x NaN", lambda place, i: i in (2 * micro_steps, 6 * micro_steps))
    words = ["callbacks.finite.policy=skip", f"trainer.accumulate_grad_batches={micro_steps}"]
    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    assert trained(uncut, *words) == trained(cut, *words, "trainer.max_steps=4") == trained(cut, *words) == 0
    assert same(last(cut), last(uncut)) and last(cut)["callbacks"]["Finite"] == {"left_out": [2, 6]}


def test_two_processes_leave_out_one_step_together(spoilt, tmp_path):
    also, _ = spoilt
    also("loss + Inf", lambda place, i: i == 4, rank=1)
    assert together(tmp_path, "callbacks.finite.policy=skip") == [0, 0]
    assert (last(tmp_path)["step"], last(tmp_path)["callbacks"]["Finite"]) == (9, {"left_out": [4]})
    assert not_finite(last(tmp_path)["state_dict"]) is None


def test_too_many_steps_left_out_stop_it_also_after_a_cut(spoilt, tmp_path, capsys):
    also, _ = spoilt
    also("loss x NaN", lambda place, i: i in (1, 4, 7))
    words = ["callbacks.finite.policy=skip", "callbacks.finite.most=2"]
    assert trained(tmp_path, *words, "trainer.max_steps=6") == 0
    assert trained(tmp_path, *words) == NOT_FINITE
    assert "error: step 8: " in (line := capsys.readouterr().err) and "finite.most=2 steps were left out before" in line


# --- rollback ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4], ids=["before the first save", "after it"])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_it_goes_back_and_takes_that_batch_no_more(k, micro_steps, spoilt, tmp_path, capsys, monkeypatch):
    """The batch spoils whatever step takes it; the steps take all others in turn."""
    also, _ = spoilt
    taken = []
    also("loss x NaN", lambda place, i: taken.append((place, i)) or place == k * micro_steps)
    words = ["callbacks.finite.policy=rollback", f"trainer.accumulate_grad_batches={micro_steps}"]
    assert trained(tmp_path, *words) == 0
    said = capsys.readouterr().out
    assert f"step {k + 1}: the gradient is not finite; images " in said and "(1 of at most 10)" in said
    checkpoint = last(tmp_path)
    assert (checkpoint["step"], checkpoint["ImageDataModule"]) == (9, {"skipped": [k]})
    final = dict((i, place) for place, i in taken)
    numbers = [unskipped(step, [k]) * micro_steps + m for step in range(9) for m in range(micro_steps)]
    assert [final[i] for i in range(9 * micro_steps)] == numbers and k * micro_steps not in numbers


def test_a_run_that_was_cut_after_going_back_goes_on_as_the_uncut_one(spoilt, tmp_path):
    also, _ = spoilt
    also("loss x NaN", lambda place, i: place in (4, 7))
    words = ["callbacks.finite.policy=rollback"]
    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    assert trained(uncut, *words) == trained(cut, *words, "trainer.max_steps=6") == 0
    assert last(cut)["ImageDataModule"] == {"skipped": [4]}
    assert trained(cut, *words) == 0
    assert same(last(cut), last(uncut)) and last(cut)["ImageDataModule"] == {"skipped": [4, 7]}


def test_a_signal_while_it_goes_back_stops_the_next_start_saved(spoilt, tmp_path, monkeypatch, capsys):
    """It came in the first training and is heard by the second."""
    also, _ = spoilt
    also("loss x NaN", lambda place, i: place == 4)
    back = Finite._go_back

    def told(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        back(*args)

    monkeypatch.setattr(Finite, "_go_back", told)
    before = {number: signal.getsignal(number) for number in ASKING}
    try:
        with SIGNALS.heard():
            assert trained(tmp_path, "callbacks.finite.policy=rollback") == 128 + signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert last(tmp_path)["step"] == 4 and "stopped at step 4 and saved" in capsys.readouterr().out


def test_the_time_that_is_left_is_the_next_starts(tmp_path):
    """Going back does not begin the job's time anew."""
    found = []

    class Job:
        def __init__(self, *ends):
            self.data, self.left = SimpleNamespace(skipped=[]), None

        def run(self, *_):
            found.append((self.data.skipped, self.left))
            if len(found) < 3:
                raise GoneBack("", [len(found)], 10.0 - len(found))
            return Outcome(0, True, [])

    to_the_end(Job, 0, tmp_path, Facts({}, {}))
    assert found == [([], math.inf), ([1], 9.0), ([2], 8.0)]


def test_a_start_whose_time_is_over_stops_at_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingJob, "left", -1.0)
    assert trained(tmp_path, "trainer.max_time=00:01:00:00") == 0 and last(tmp_path)["step"] == 1


def test_a_step_left_out_is_left_out_of_the_mean_loss(spoilt, tmp_path):
    also, _ = spoilt
    also("loss x NaN", lambda place, i: place == 4)
    assert trained(tmp_path, "callbacks.finite.policy=skip", "trainer.log_every_n_steps=3") == 0
    with open(tmp_path / "metrics.csv") as file:
        losses = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "train/loss"]
    assert len(losses) == 3 and all(map(math.isfinite, losses))


def test_what_is_skipped_is_on_the_disk_before_it_goes_back(spoilt, tmp_path, monkeypatch):
    """Killed between going back and the next save, it takes it up."""
    also, _ = spoilt
    also("loss x NaN", lambda place, i: place == 4)
    monkeypatch.setattr("anysigma.training.starts.say", lambda line: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "callbacks.finite.policy=rollback")
    assert (last(tmp_path)["step"], last(tmp_path)["ImageDataModule"]) == (3, {"skipped": [4]})
    assert trained(tmp_path, "callbacks.finite.policy=stop") == 0  # the batch would have stopped it
    assert last(tmp_path)["ImageDataModule"] == {"skipped": [4]}


def test_steps_after_a_skipped_batch_train_on_the_images_and_noise_of_their_own(spoilt, tmp_path):
    """As a run does that never had that batch: images, t and eps come from the same positions."""
    also, _ = spoilt
    seen = {}

    def when(place, i):
        seen[i] = place
        return place == 0

    also("loss x NaN", when)
    assert trained(tmp_path / "back", "callbacks.finite.policy=rollback", "trainer.max_steps=2") == 0
    with open(tmp_path / "back/metrics.csv") as file:
        rows = {row["step"]: row["value"] for row in csv.DictReader(file) if row["metric"] == "train/loss"}
    assert seen == {0: 1, 1: 2}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", WORDS))
    torch.manual_seed(node["seed"])
    module = build(node["job"]).module
    x_0 = Digits().train[Order(1437, B, 0, total=0).batch(1)] / 127.5 - 1
    positions = torch.arange(B, 2 * B)
    t = 1 + (Draws(0, "t").uniform(positions) * 1000).long()
    loss = module.objective(module.denoiser, x_0, t, Draws(0, "eps").normal(positions, (1, 8, 8))).mean().item()
    assert float(rows["1"]) == pytest.approx(loss, rel=1e-5)


def test_two_processes_go_back_together(spoilt, tmp_path):
    also, _ = spoilt
    also("loss x NaN", lambda place, i: place == 4, rank=1)
    assert together(tmp_path, "callbacks.finite.policy=rollback") == [0, 0]
    assert (last(tmp_path)["step"], last(tmp_path)["ImageDataModule"]) == (9, {"skipped": [4]})


def test_going_back_has_an_end(spoilt, tmp_path, capsys):
    """Whatever batch it takes at step 5: two are skipped, then it stops."""
    also, _ = spoilt
    also("loss x NaN", lambda place, i: i == 4)
    assert trained(tmp_path, "callbacks.finite.policy=rollback", "callbacks.finite.most=2") == NOT_FINITE
    said = capsys.readouterr()
    assert said.out.count("going back") == 2 and "finite.most=2 batches were skipped before" in said.err
    assert (last(tmp_path)["step"], last(tmp_path)["ImageDataModule"]) == (3, {"skipped": [4, 5]})


@pytest.mark.parametrize("skipped, first", [([], [0, 1, 2]), ([0], [1, 2, 3]), ([1, 2, 5], [0, 3, 4, 6]), ([2, 1], [0, 3])])
def test_what_is_not_skipped_comes_in_turn(skipped, first):
    assert [unskipped(k, skipped) for k in range(len(first))] == first


# --- the flag ------------------------------------------------------------------------------------------------------


def test_a_flag_tells_what_stood_when_it_was_last_asked():
    flag = FirstBad(torch.device("cpu"))
    assert flag.asked() is None
    flag.note(torch.tensor(1.0), 0)
    flag.note(torch.tensor(INF), 1)
    flag.note(torch.tensor(NAN), 2)
    assert flag.asked() is None and flag.asked() == 1 and flag.now() == 1
    flag.note(torch.tensor(1.0), 3)
    assert flag.now() == 1  # for good


def test_under_a_loss_scaler_so_many_in_a_row_are_needed():
    flag = FirstBad(torch.device("cpu"), patience=3)
    for k, value in enumerate([NAN, NAN, 1.0, NAN, NAN, NAN]):
        assert flag.now() is None
        flag.note(torch.tensor(value), k)
    assert flag.now() == 3


@pytest.mark.parametrize("words", [{"policy": "rolback"}, {"every": 0}, {"most": -1}])
def test_bad_words_are_refused_by_name(words):
    (name,) = words
    with pytest.raises(ValueError, match=rf"callbacks\.finite.*{name}"):
        Finite(**{"policy": "stop", "every": 1, "most": 0, **words})


# --- a checkpoint that holds such weights --------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_evaluated(whole):
    state = {name: tensor.clone() for name, tensor in whole["state_dict"].items()}
    first = next(name for name in state if name.startswith("ema."))
    state[first].view(-1)[0] = NAN
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        denoiser = build(check_train(compose("train", WORDS))["job"]).module.denoiser
    line = rf"^weights=ema: {first.removeprefix('ema.')} of the checkpoint holds NaN .* weights=raw"
    with pytest.raises(ValueError, match=line):
        load_weights(denoiser, {**whole, "state_dict": state})
    load_weights(denoiser, {**whole, "state_dict": state}, "raw")
