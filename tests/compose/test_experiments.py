"""The experiments pinned: what a recipe says must not drift with a default."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def composed(name, program="train.py"):
    done = subprocess.run(
        [sys.executable, ROOT / program, f"experiment={name}", "--cfg", "job", "--resolve"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return yaml.safe_load(done.stdout)


def at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


SNAPSHOTS = {
    "ddpm_cifar10": {  # hojonathanho/diffusion, scripts/run_cifar.py
        "schedule._target_": "anysigma.diffusion.schedules.linear.Linear", "schedule.T": 1000,
        "schedule.beta_start": 1e-4, "schedule.beta_end": 0.02,
        "model._target_": "anysigma.networks.unet.UNet", "model.channels": 128, "model.multipliers": [1, 2, 2, 2],
        "model.blocks": 2, "model.attention": [16], "model.dropout": 0.1, "model.fit": False,
        "model.groups": 32, "model.norm_eps": 1e-6, "model.downsample": "asymmetric", "model.head_dim": None,
        "model.freq_shift": 1, "model.flip_sin_to_cos": False, "model.first_t": 0, "model.first_weights": "fan_average",
        "parameterization._target_": "anysigma.diffusion.parameterizations.Eps",
        "objective.gamma._target_": "anysigma.diffusion.objective.Simple",
        "sampler.sigma._target_": "anysigma.diffusion.samplers.sigma.SigmaHat", "sampler.steps": None, "sampler.clip": True,
        "data.source._target_": "anysigma.data.cifar10.CIFAR10", "data.flips": True, "data.batch_size": 128,
        "optimizer.adam._target_": "torch.optim.Adam", "optimizer.adam.lr": 2e-4, "optimizer.warmup": 5000,
        "trainer.gradient_clip_val": 1.0, "trainer.max_steps": 800000, "trainer.accumulate_grad_batches": 1,
        "ema.decay": 0.9999, "ema.warmup": False,
    },
    "fashion_mnist": {
        "data.source._target_": "anysigma.data.fashion_mnist.FashionMNIST", "data.shape": [1, 32, 32], "data.batch_size": 64,
        "data.flips": False, "schedule._target_": "anysigma.diffusion.schedules.cosine.Cosine", "model.channels": 40,
        "model.attention": [8, 4], "optimizer.adam.lr": 1e-3, "optimizer.warmup": 200, "ema.decay": 0.999,
        "trainer.max_steps": 6000, "features.name": "fashion_mnist", "hardware.precision": "bf16-mixed",
        "sampler.steps": 50,
    },
    "digits_ddpm": {
        "data.source._target_": "anysigma.data.digits.Digits",
        "schedule._target_": "anysigma.diffusion.schedules.linear.Linear",
        "sampler.steps": None, "sampler.eta": 1.0, "trainer.max_steps": 3000, "ema.decay": 0.995,
    },
}  # fmt: skip


TABLE_1 = {  # ermongroup/ddim: η unclipped, σ̂ ("ddpm_noisy") clipped, quadratic τ for CIFAR-10, FID of 50,000 images
    "study._target_": "anysigma.studies.table.SamplerTable", "study.n": 50000, "study.sets": 1, "study.full": True,
    "study.steps": [10, 20, 50, 100], "study.taus": {"quadratic": {"_target_": "anysigma.diffusion.samplers.tau.Quadratic"}},
    "study.samplers.ddim.eta": 0.0, "study.samplers.eta_02.eta": 0.2, "study.samplers.eta_05.eta": 0.5,
    "study.samplers.ddpm.eta": 1.0, "study.samplers.ddim.clip": False, "study.samplers.eta_02.clip": False,
    "study.samplers.eta_05.clip": False, "study.samplers.ddpm.clip": False, "study.samplers.ddpm_large.clip": True,
    "sampler.eta": 0.0, "sampler.clip": False, "weights": "ema",
    "features._target_": "anysigma.metrics.inception.InceptionFeatures",
}  # fmt: skip


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_an_experiment_is_what_it_was(name):
    config = composed(name)
    wanted = SNAPSHOTS[name]
    assert {path: at(config, path) for path in wanted} == wanted


def test_the_papers_table_is_its_protocol_to_the_letter():
    config = composed("ddim_table1", "evaluate.py")
    assert {path: at(config, path) for path in TABLE_1} == TABLE_1


def test_every_experiment_is_pinned():
    assert {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} == {*SNAPSHOTS, "ddim_table1"}


@pytest.mark.parametrize(
    ("program", "name", "other"), [("train.py", "ddim_table1", "evaluate.py"), ("evaluate.py", "ddpm_cifar10", "train.py")]
)
def test_the_other_programs_experiment_is_refused_in_one_line(program, name, other):
    done = subprocess.run(
        [sys.executable, ROOT / program, f"experiment={name}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr == f"error: experiment={name} is for {other}\n"
