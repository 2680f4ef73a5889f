"""Every option composes, checks and builds; YAML and signatures agree; bad input ends in one line."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from anysigma.compose import config, names
from anysigma.compose.checks import check_train
from anysigma.compose.config import build, check
from anysigma.compose.signatures import fits
from anysigma.compose.targets import locate
from anysigma.compose.targets import nodes as targets
from anysigma.metrics.features import NoFeatures

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
config.register()


def composed(name="train", *words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(words))


def options():
    """Every option of every group, as the word a person types."""
    for path in sorted(CONF.rglob("*.yaml")):
        if path.parent != CONF and path.parent.name != "experiment" and path.stem != "run":
            yield f"{path.parent.relative_to(CONF)}={path.stem}"
    yield "study=all"


# What an option may answer where this machine lacks what it needs.
ABSENT = (NoFeatures, FileNotFoundError)


def needs(word):
    """Other words that an option makes sense with; weights that would be downloaded are looked for where none are."""
    return {
        "model=unet_ddpm": ["data=cifar10"],
        "data=cifar10": ["features=none"],
        "data=folder": ["features=none", "data.root=somewhere"],
        "features=fashion_mnist": ["data=fashion_mnist"],
        "features=inception": ["features.weights_path=/nowhere"],
        "features=auto": ["features.weights_path=/nowhere"],
        "schedule=zero_terminal_snr": ["parameterization=v"],
    }.get(word, [])


@pytest.mark.parametrize("word", list(options()))
def test_every_option_composes_checks_and_builds_or_says_what_is_absent(word):
    root = "evaluate" if word.startswith("study=") else "train"
    cfg = composed(root, word, *needs(word))
    try:
        if root == "train":
            check_train(cfg)
        else:
            check(cfg)
        node = OmegaConf.select(cfg, word.split("=")[0].replace("/", "."))
        built = build(node)
        if word.startswith("features="):
            built()
    except (*ABSENT, ValueError) as error:
        assert "\n" not in str(error), error
        assert isinstance(error, ABSENT) or "no CUDA device here" in str(error), error
    else:
        assert built is not None


def test_experiments_are_what_they_are_named_for():
    """A snapshot: a recipe that changes silently is no recipe."""
    cfg = composed("train", "experiment=digits_ddpm")
    check_train(cfg)
    assert cfg.schedule._target_.endswith("Linear") and cfg.sampler.eta == 1.0 and cfg.sampler.steps is None
    assert cfg.trainer.max_steps == 3000 and cfg.data.shape == [1, 8, 8]


def test_every_yaml_default_is_the_constructors():
    """A default is written once: where our constructors have one too, it must be the YAML's."""
    compared = 0
    for word in options():
        cfg = composed("evaluate" if word.startswith("study=") else "train", word)
        node = OmegaConf.to_container(OmegaConf.select(cfg, word.split("=")[0].replace("/", ".")), resolve=True)
        default = not (CONF / word.split("=")[0]).joinpath("auto.yaml").exists() or word.endswith("=auto")
        for key, found in targets(node, word):
            if not found["_target_"].startswith("anysigma.") or not default:
                continue
            parameters = inspect.signature(locate(found["_target_"], key)).parameters
            for name, parameter in parameters.items():
                if parameter.default is not parameter.empty and name in found:
                    value = build(found[name]) if isinstance(found[name], dict) else found[name]
                    value = tuple(value) if isinstance(value, list) else value
                    same = value == parameter.default or word in DIFFERS.get(name, ()) or name == "order"  # a study's own
                    assert same, f"{key}.{name}: YAML {value}, constructor {parameter.default}"
                    compared += 1
    assert compared > 15


# Options that exist to differ from the constructor's default.
PAPERS = ("channels", "blocks", "attention", "dropout", "fit", "groups", "norm_eps", "downsample", "first_weights")
STUDIES = tuple(word for word in options() if word.startswith("study="))
DIFFERS = {
    "decay": ("ema=default",), "flips": ("data=cifar10",), **dict.fromkeys(PAPERS, ("model=unet_ddpm",)), "order": STUDIES
}  # fmt: skip


def test_yaml_lists_every_tunable_of_our_own_targets():
    for word in options():
        cfg = composed("evaluate" if word.startswith("study=") else "train", word)
        node = OmegaConf.to_container(OmegaConf.select(cfg, word.split("=")[0].replace("/", ".")), resolve=True)
        for key, found in targets(node, word):
            if found["_target_"].startswith("anysigma."):
                parameters = inspect.signature(locate(found["_target_"], key)).parameters
                given_later = {"folder", "config", "denoiser"} | ({"features"} if found.get("_partial_") else set())
                given_later |= {"root", "download"} if key.startswith("data=") else set()  # where the data set has them
                assert parameters.keys() - found.keys() <= given_later, f"{key} lacks {parameters.keys() - found.keys()}"


def test_no_config_outside_its_group_interpolates_into_the_schedule():
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        assert "${schedule." not in text and (path.name == "train.yaml" or "${schedule}" not in text)
    assert (CONF / "train.yaml").read_text().count("${schedule}") == 1


def test_the_whole_tree_is_built_with_one_schedule():
    job = build(composed("train", "logger=csv").job)
    assert job.module.denoiser.process is job.module.ema.process
    assert job.module.denoiser.process.T == 1000


@pytest.mark.parametrize(
    ("word", "S", "eta"),
    [("sampler=ddim", 50, 0.0), ("sampler=ddpm", 1000, 1.0), ("sampler.eta=0.2", 50, 0.2), ("sampler.steps=20", 20, 0.0)],
)
def test_samplers_are_data(word, S, eta):
    sampler = build(composed("train", word).sampler)
    assert len(sampler.pairs(1000)) == S and sampler.sigma.eta == eta


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (1, int, True), (1.5, int, False), (True, int, False), (1, float, True), ("a", float, False), 
        (None, int | None, True),
        (None, int, False), ([1, 2], list[int] | None, True), ("a", str, True), ({"_target_": "x"}, int, False),
        ({"_target_": "x"}, torch.nn.Module, True), (3, torch.nn.Module, False),
    ],
)  # fmt: skip
def test_types_of_yaml_values_against_hints(value, hint, good):
    assert fits(value, hint) is good


def said(*words, script="train.py", cwd=None):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stderr.strip()


BAD = [
    ("samplerr=ddim", "unknown key samplerr; did you mean sampler"),
    ("sampler=dim", "unknown option sampler=dim; did you mean ddim? Available: ddim, ddpm"),
    ("sampler.etaa=1", "unknown key sampler.etaa; did you mean sampler.eta"),
    ("trainer.max_stepss=3", "did you mean trainer.max_steps"),
    ("+optimizer.adam.lrr=3", "torch.optim.Adam takes no such argument; did you mean lr?"),
    ("+sead=1", "unknown key sead; did you mean seed?"),
    ("seed=abc", "seed=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    ("sampler.eta=abc", "sampler.eta='abc'"),
    ("model.channels=40.5", "model.channels=40.5: anysigma.networks.unet.UNet wants int, not float"),
    ("sampler.eta=2", "η must lie in [0, 1]"),
    ("sampler.eta=-0.1", "η must lie in [0, 1]"),
    ("sampler.steps=0", "sampler.steps=0: at least 1 step is needed"),
    ("sampler.steps=1001", "sampler.steps=1001 is more than schedule.T=1000"),
    ("sampler.tau=[1,5,3]", "an explicit τ must be a rising or a falling list"),
    ("sampler.tau=[2000,10]", "every step must lie in 1..1000"),
    ("schedule.T=0", "schedule.T=0"),
    ("trainer.max_steps=0", "trainer.max_steps=0: at least 1 step is needed"),
    ("hardware.precision=16-mixed", "fp16 needs a GPU"),
    ("resume=maybe", "resume=maybe: auto"),
    ("run=a/b", "run=a/b: a folder's name"),
    ("data.batch_size=0", "data.batch_size=0"),
    ("+trainer.max_epochs=3", "trainer.max_epochs: not a run's to set; say trainer.max_steps instead"),
    ("+trainer.limit_train_batches=7", "trainer.limit_train_batches: not a run's to set; say trainer.max_steps instead"),
    ("+trainer.barebones=true", "not a run's to set; beside train.yaml's keys pass profiler, detect_anomaly"),
    ("+trainer.max_stepz=3", "lightning.pytorch.Trainer takes no such argument; did you mean max_steps"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: at least 1 micro-step is needed"),
    ("trainer.max_steps=1.5", "trainer.max_steps=1.5: a whole number of steps"),
    ("hardware.precision=bf16-true", "hardware.precision=bf16-true: auto, 32-true, bf16-mixed, 16-mixed"),
    ("run=..", "run=..: a folder's name"),
    ("~callbacks.last", "callbacks: without last nothing of the run would be saved"),
    ("job.module.seed=5", "job.module.seed=5: job is put together of the other words; say seed="),
    ("trainer.max_time=abc", "trainer.max_time=abc: DD:HH:MM:SS or null"),
    ("trainer.max_time=1:2:3:4", "trainer.max_time=1:2:3:4: DD:HH:MM:SS or null"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: a number above 0, or null"),
    ("trainer.gradient_clip_algorithm=foo", "trainer.gradient_clip_algorithm=foo: norm or value"),
    ("+trainer.profiler=foo", "trainer.profiler=foo: simple, advanced or pytorch"),
    ("trainer.max_steps=inf", "trainer.max_steps=inf: a whole number of steps"),
    ("trainer.max_steps=nan", "trainer.max_steps=nan: a whole number of steps"),
    ("hardware.strategy=foo", "hardware.strategy=foo: auto, ddp"),
    ("hardware.accelerator=foo", "hardware.accelerator=foo: auto, cpu"),
    ("hardware.devices=0", "at least 1 node and device are needed"),
    ("hardware.threads=-3", "hardware.threads=-3"),
    ("optimizer.adam.lr=-1", "optimizer.adam: Invalid learning rate"),
    ("study.block=0", "study.block=0: at least 1 image is computed at once"),
    ("init=nothere", "init=nothere: neither a run below logs/train"),
    ("features=digitz", "unknown option features=digitz; did you mean digits?"),
    ("features=run", "features=run: a run has none yet"),
    ("callbacks.grid.every=0", "every=0"),
    ("callbacks.grid=null", "callbacks.grid=None: settings with a _target_; ~callbacks.grid leaves it out"),
    ("callbacks.last=1", "callbacks.last=1: settings with a _target_"),
    ("data=3", "Config group override must be a string or a list. Got int"),
]
if not torch.cuda.is_available():
    BAD += [("hardware=gpu", "no CUDA device here"), ("hardware.devices=[0]", "hardware.devices=[0]: a list names GPUs")]


@pytest.mark.parametrize(("word", "message"), BAD)
def test_bad_input_ends_in_one_line(word, message, tmp_path, monkeypatch, capsys):
    """In this process, which has the libraries loaded; two real command lines follow below."""
    import importlib

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["train.py", "debug=true", "logger=csv", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    train = importlib.import_module("train")
    from anysigma.compose.cli import entry

    with pytest.raises(SystemExit) as ended:
        entry(train.main, f"{CONF}/train")
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert error.startswith("error: ") and "\n" not in error and message in error, error
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("metrics.csv"))


def test_a_real_command_line_ends_in_one_line_and_code_2(tmp_path):
    code, error = said("sampler.etaa=1", cwd=tmp_path)
    assert code == 2 and error.startswith("error: unknown key sampler.etaa") and "\n" not in error


def test_a_shape_the_strides_do_not_divide_is_refused(tmp_path):
    code, error = said("model=unet_ddpm", "data.shape=[1,12,12]", "debug=true", "logger=csv", cwd=tmp_path)
    assert code == 2 and "halves its input 3 times: 12x12 must be divisible by 8" in error and "\n" not in error


def test_an_unwritable_logs_folder_is_one_line(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    code, error = said("debug=true", "logger=csv", cwd=tmp_path)
    assert code == 2 and error.startswith("error: ") and "logs" in error and "\n" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], None),
        (["sampler=ddim"], "checkpoint=<run> is missing"),
        (["checkpoint=nothing"], "neither a run below logs/train, nor a folder, nor a file"),
        (["checkpoint=https://example.org/a.ckpt"], "a URL; download the file first"),
        (["checkpoint=nothing", "data.shape=[1,2,3]"], "unknown key data.shape"),
        (["checkpoint=nothing", "save=jpg"], "save=jpg: png, npz or null"),
        (["checkpoint=nothing", "study=trajectory", "save=png"], "save=png: this study has no such setting"),
        (["checkpoint=nothing", "study=speed", "n=7"], "n=7: this study has no such setting"),
    ],
)
def test_evaluate_says_what_it_lacks(words, message, tmp_path):
    code, error = said(*words, script="evaluate.py", cwd=tmp_path)
    assert (code, error) == (0, "") if message is None else (code == 2 and message in error and "\n" not in error), error


def run_folder(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return names.run_name(_root_=compose("train", list(words), return_hydra_config=True))


SAME = [
    "trainer.max_steps=7", "trainer.max_time=00:01:00:00", "hardware=cpu", "logger=csv", "resume=never", "sampler=ddpm",
    "sampler.eta=0.5", "study=table", "study.n=7", "features=none", "callbacks.grid.every=3", "~callbacks.distance",
    "trainer.accumulate_grad_batches=2", "hardware.precision=bf16-mixed", "optimizer.adam.lr=0.002", "schedule.T=1000",
    "profile=true", "trainer.log_every_n_steps=7", "trainer.gradient_clip_val=1", "optimizer.adam.betas=[0.9,0.999]",
]  # fmt: skip
OTHER = [
    "seed=1", "model.channels=48", "schedule=linear", "schedule.T=999", "parameterization=v", "objective=p2",
    "objective/draw=stratified", "optimizer.adam.lr=1e-3", "optimizer=adamw", "optimizer.warmup=7", "ema.decay=0.9",
    "data.batch_size=64", "data.flips=true", "init=other", "trainer.gradient_clip_val=2", "debug=true",
    "trainer.gradient_clip_algorithm=value",
]  # fmt: skip


def test_a_run_is_what_makes_its_weights():
    default = run_folder()
    assert re.fullmatch(r"digits-unet-[0-9a-f]{8}", default)
    assert {word: run_folder(word) for word in SAME} == dict.fromkeys(SAME, default)
    others = {word: run_folder(word) for word in OTHER}
    assert len({default, *others.values()}) == len(OTHER) + 1, others
    assert run_folder("run=mine") == "mine"


def test_an_experiment_is_what_it_resolves_to():
    assert run_folder("experiment=digits_ddpm") == run_folder("schedule=linear")


def test_help_and_cfg_work(tmp_path):
    for word, expected in (("--help", "sampler: ddim, ddpm"), ("--cfg=job", "max_steps")):
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), word], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and expected in done.stdout
    assert list(tmp_path.iterdir()) == []
