"""A fit of a few steps, recomputed by hand from the weights before and after each: loss, rate, average, held-out curve."""

import copy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from conftest import randomized
from test_module import module
from torch.utils.data import DataLoader

from anysigma.data.images import from_uint8
from anysigma.diffusion.noise import Draws, stream_seed
from anysigma.training.callbacks.held_out import HeldOut

B, MICRO_STEPS, STEPS, WARMUP, DECAY, SEED = 6, 2, 5, 4, 0.3, 3
WORDS = ["model.channels=8", "objective/draw=uniform", "optimizer.adam.lr=0.01", f"optimizer.warmup={WARMUP}"]


class Images(pl.LightningDataModule):
    """Five batches of six images, each in two micro-steps."""

    batch_size = B
    taken = int  # nothing is skipped

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = from_uint8(torch.randint(0, 256, (STEPS * B, 1, 8, 8), generator=generator, dtype=torch.uint8))

    def train_dataloader(self):
        return DataLoader(self.images, batch_size=B // MICRO_STEPS)


class Watch(pl.Callback):
    """Loss of every micro-step; weights, averages, images seen and rate of every step."""

    def __init__(self):
        self.losses, self.rates, self.weights, self.averages, self.seen = [], [], [], [], []

    def on_train_start(self, trainer, made):
        self.keep(made)

    def on_before_optimizer_step(self, trainer, made, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, made, outputs, *_):
        self.losses.append(outputs["loss"].item() * MICRO_STEPS)
        if trainer.global_step == len(self.weights):
            self.keep(made)

    def keep(self, made):
        self.weights.append(copy.deepcopy(made.denoiser.state_dict()))
        self.averages.append(copy.deepcopy(made.ema.state_dict()))
        self.seen.append(made.images_seen)


@pytest.fixture(scope="module")
def fitted():
    made, watch, data = module(*WORDS, f"ema.decay={DECAY}", f"seed={SEED}"), Watch(), Images()
    randomized(made.denoiser.network)
    trainer = pl.Trainer(
        max_steps=STEPS, accumulate_grad_batches=MICRO_STEPS, accelerator="cpu", callbacks=[watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(made, data)
    return made, watch, data


def test_the_average_takes_the_weights_after_the_step_and_starts_with_the_first(fitted):
    _, watch, _ = fitted
    assert len(watch.weights) == STEPS + 1
    for k in range(STEPS):
        d = min(DECAY, (1 + k) / (10 + k))
        for name, average in watch.averages[k].items():
            assert name not in watch.weights[k] or not torch.equal(watch.weights[k][name], watch.weights[k + 1][name])
            expected = d * average + (1 - d) * watch.weights[k + 1][name]
            torch.testing.assert_close(watch.averages[k + 1][name], expected, rtol=1e-5, atol=1e-7)


def test_the_rate_rises_over_the_warm_up(fitted):
    assert fitted[1].rates == pytest.approx([0.01 * min(1, (k + 1) / WARMUP) for k in range(STEPS)])


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warm_up_the_rate_is_whole_from_the_first_step(warmup):
    made = module("model.channels=8", "optimizer.adam.lr=0.01", f"optimizer.warmup={warmup}")
    assert made.configure_optimizers()["lr_scheduler"]["scheduler"].get_last_lr() == [0.01]


def test_the_images_of_every_step_are_counted(fitted):
    made, watch, _ = fitted
    assert watch.seen == [B * k for k in range(STEPS + 1)]
    checkpoint = {}
    made.on_save_checkpoint(checkpoint)
    assert checkpoint == {"images_seen": B * STEPS}
    other = module(*WORDS)
    other.on_load_checkpoint(checkpoint)
    assert other.images_seen == B * STEPS


def test_the_loss_is_that_of_the_t_and_eps_of_its_positions(fitted):
    made, watch, data = fitted
    network, q, share = copy.deepcopy(made.denoiser.network), made.denoiser.process, B // MICRO_STEPS
    for i, found in enumerate(watch.losses):
        network.load_state_dict({k.removeprefix("network."): v for k, v in watch.weights[i // MICRO_STEPS].items()})
        rows = torch.arange(i * share, (i + 1) * share)
        t = 1 + (Draws(SEED, "t").uniform(rows) * q.T).long()
        eps = Draws(SEED, "eps").normal(rows, (1, 8, 8))
        a = q.schedule.alpha[t].float().reshape(-1, 1, 1, 1)
        with torch.no_grad():
            error = network(a.sqrt() * data.images[rows] + (1 - a).sqrt() * eps, t) - eps
        assert found == pytest.approx(error.square().mean().item(), rel=1e-4), i


def test_the_optimizer_moves_the_trained_weights_alone(fitted):
    made = fitted[0]
    moved = {id(weight) for group in made.configure_optimizers()["optimizer"].param_groups for weight in group["params"]}
    assert moved == {id(weight) for weight in made.denoiser.parameters()}


def shared(made, rank=0, world=1, micro_steps=1):
    """The module as rank `rank` of `world` has it."""
    made._trainer = SimpleNamespace(
        global_rank=rank, world_size=world, accumulate_grad_batches=micro_steps,
        precision_plugin=SimpleNamespace(forward_context=torch.inference_mode), datamodule=SimpleNamespace(taken=int),
    )  # fmt: skip
    return made


@pytest.mark.parametrize(("world", "micro_steps"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 2)])
def test_the_ranks_and_micro_steps_of_a_step_share_its_positions(world, micro_steps):
    made, b = module("model.channels=8"), 4
    whole = world * micro_steps * b
    for step in range(3):
        taken = []
        for i in range(step * micro_steps, (step + 1) * micro_steps):
            for rank in range(world):
                batch, mine = shared(made, rank, world, micro_steps).positions(b, i)
                assert batch.tolist() == list(range(step * whole, (step + 1) * whole))  # all of it, for a rule that looks
                taken += batch[mine].tolist()
        assert taken == list(range(step * whole, (step + 1) * whole))


def test_dropout_is_a_function_of_seed_rank_and_micro_step():
    made = module("model.channels=8", f"seed={SEED}")
    for rank, i in [(0, 0), (1, 0), (1, 7)]:
        shared(made, rank, world=2).training_step(torch.zeros(2, 1, 8, 8), i)
        assert torch.initial_seed() == stream_seed(SEED, rank, i)


def test_positions_and_no_images_lie_where_the_module_does():
    made = shared(module("model.channels=8"))
    assert made.sample([]).shape == (0, 1, 8, 8)
    assert made.to("meta").positions(4, 0)[0].device.type == made.sample([]).device.type == "meta"


@pytest.mark.parametrize("n", [3, 7, 1000])
def test_the_held_out_curve_is_of_the_averaged_weights_over_all_t(n):
    made = module("model.channels=8", f"seed={SEED}")
    for denoiser, seed in ((made.denoiser, 1), (made.ema, 2)):
        randomized(denoiser.network, seed, std=0.3)
    made.block = 4
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (10, 1, 8, 8), generator=generator, dtype=torch.uint8)
    precision = SimpleNamespace(forward_context=torch.inference_mode)
    made._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(held_out=images), precision_plugin=precision, callback_metrics={}, loggers=[],
        strategy=SimpleNamespace(reduce=lambda total, reduce_op: total if reduce_op == "sum" else None),
    )  # fmt: skip
    HeldOut(1, n).act(made._trainer, made)
    found, n = made._trainer.callback_metrics["held_out/loss"].item(), min(n, 10)
    rank = Draws(SEED, "held out", "t").uniform(torch.arange(n)).argsort().tolist()
    t = torch.tensor([1 + int((one + 0.5) * 1000 / n) for one in rank])
    assert sorted(int((one - 1) * n / 1000) for one in t.tolist()) == list(range(n))  # one t in each n-th of 1..T
    eps = Draws(SEED, "held out", "eps").normal(torch.arange(n), (1, 8, 8))
    a = made.ema.process.schedule.alpha[t].float().reshape(-1, 1, 1, 1)
    x_t, loss = a.sqrt() * from_uint8(images[:n]) + (1 - a).sqrt() * eps, {}
    with torch.no_grad():
        for name, denoiser in (("raw", made.denoiser), ("average", made.ema)):
            loss[name] = (denoiser.network(x_t, t) - eps).square().mean().item()
    assert found == pytest.approx(loss["average"], rel=1e-4) and abs(loss["raw"] / found - 1) > 0.01
