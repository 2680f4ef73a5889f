"""What may be built is what conf/ names; a person's own classes come in by their own YAML."""

import subprocess
import sys
from pathlib import Path

import pytest

from anysigma.compose.all_studies import all_studies
from anysigma.compose.config import build, check
from anysigma.compose.targets import CONF, ConfigError, allowed

ROOT = Path(__file__).parents[2]
ETA = "anysigma.diffusion.samplers.sigma.SigmaHat"

HOSTILE = [
    "os.system", "posix.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "torch.load", "pickle.loads",
    "pdb.run", "functools.partial", "hydra.utils.instantiate", "hydra.utils.get_method",
    "anysigma.runs.checkpoint.os.system",
    "anysigma.runs.checkpoint.pickle.loads", "anysigma.runs.checkpoint.torch.load", "anysigma.compose.cli.sys.exit",
    "anysigma.diffusion.noise.hashlib.new", "logging.os.system", "torch.optim.Adam.__init__.__globals__", "anysigma", "",
    "anysigma.nothing.at.all", "lightning.pytorch.trainer.trainer.os.system", "anysigma.compose.config.build",
    "anysigma.runs.checkpoint.write", "anysigma.runs.checkpoint.read", "anysigma.data.download.fetch",
    "anysigma.evaluation.stored.opened", "anysigma.report.page.write_report", "torch.optim.SGD", "torch.nn.Linear",
    "lightning.pytorch.callbacks.ModelCheckpoint", "importlib.import_module", "webbrowser.open", "shutil.rmtree",
    "anysigma.machine.distributed.one_at_a_time", "anysigma.training.loggers_wandb.Wandb.log_image",
]  # fmt: skip


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("key", ["model", "callbacks"])
def test_hostile_targets_are_refused_before_anything_runs(target, key):
    with pytest.raises(ConfigError, match="_target_"):
        check({key: {"_target_": target, "_partial_": True}})


@pytest.mark.parametrize("word", ["_args_", "_recursive_", "_convert_"])
def test_hidden_words_are_refused(word):
    with pytest.raises(ConfigError, match=word):
        check({"sampler": {"_target_": ETA, word: [0.5]}})


def test_a_target_stands_in_its_own_group_alone():
    check({"sampler": {"_target_": ETA}})
    check({"study": {"_target_": ETA}})  # studies and callbacks are made of everything
    for key in ("model", "schedule", "data", "trainer", "job", "features", "nowhere"):
        with pytest.raises(ConfigError, match="belongs elsewhere"):
            check({key: {"_target_": ETA}})


def test_the_job_is_train_yamls_own_at_its_own_places():
    may = allowed([CONF])
    assert {one.target.rsplit(".", 1)[-1] for one in may.at("job")} == {"TrainingJob"}
    assert {one.target.rsplit(".", 1)[-1] for one in may.at("job.module.denoiser.process")} == {"GaussianProcess"}
    assert may.at("job.module.objective") == may.at("objective") != set()
    assert may.at("job.trainer") == may.at("trainer") != set()
    assert may.at("job.module.other") == set()


def test_what_is_built_is_not_resolved_again():
    for text in ("${oc.env:HOME}", "a ${oc.create:{_target_: os.system}}", "${x}"):
        for node in ({"_target_": ETA, "x": text}, {"_target_": ETA, "x": [[text]]}, {"_target_": ETA, text: 1}):
            with pytest.raises(ConfigError, match="resolved"):
                build(node)
            with pytest.raises(ConfigError, match="resolved"):
                check({"sampler": node})


MINE = {
    "mypkg.py": """
import dataclasses, torch
from lightning.pytorch import Callback
from anysigma.diffusion.samplers.generalized import Generalized
class Mine(Callback):
    def __init__(self, word: str):
        self.word = word
    def on_train_start(self, trainer, module):
        print("mine says", self.word, flush=True)
class Net(torch.nn.Module):
    def __init__(self, shape: list[int], width: int):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(shape[0], 1, 1))
    def forward(self, x_t, t):
        return self.scale * x_t
class Mild(Generalized):
    pass
class Points:
    grey_levels = 256
    train = torch.arange(64, dtype=torch.uint8).reshape(16, 1, 2, 2)
    held_out = torch.arange(32, dtype=torch.uint8).reshape(8, 1, 2, 2)
""",
    "conf/callbacks/mine.yaml": "defaults:\n  - default\nmine:\n  _target_: mypkg.Mine\n  word: hello\n",
    "conf/model/net.yaml": "_target_: mypkg.Net\nshape: ${data.shape}\nwidth: 3\n",
    "conf/sampler/mild.yaml": "defaults:\n  - ddim\n  - _self_\n_target_: mypkg.Mild.with_eta\nsteps: 3\n",
    "conf/data/points.yaml": "_target_: anysigma.data.datamodule.ImageDataModule\nsource:\n  _target_: mypkg.Points\n"
    "  _partial_: true\nshape: [1, 2, 2]\nbatch_size: 4\nflips: false\nseed: ${seed}\n",
}


def command(script, *words, cwd, code=0):
    import os

    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{cwd}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-1500:] + done.stderr[-1500:]
    return done


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A person's folder: a package, YAML beside it, and a run made of both."""
    place = tmp_path_factory.mktemp("own")
    for name, text in MINE.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    words = ["data=points", "model=net", "callbacks=mine", "sampler=mild", "debug=true", "logger=csv", "features=none"]
    (place / "said").write_text(command("train.py", "--config-dir", "conf", *words, "run=own", cwd=place).stdout)
    return place


def test_a_persons_own_classes_come_in_by_their_own_yaml_in_training(own):
    said = (own / "said").read_text()
    assert "mine says hello" in said and "finished at step 20" in said


def test_in_evaluation_they_need_the_same_folder_and_the_refusal_says_so(own):
    words = ["checkpoint=own", "study=speed", "debug=true", "logger=csv"]
    refused = command("evaluate.py", *words, cwd=own, code=2)
    assert "mypkg." in refused.stderr and "--config-dir" in refused.stderr and refused.stderr.count("\n") == 1
    assert "images/s" in command("evaluate.py", "--config-dir=conf", *words, "sampler=mild", cwd=own).stdout


def test_in_a_sweep_too(own):
    words = ["data=points", "model=net", "callbacks=mine", "debug=true", "logger=csv", "features=none", "seed=0,1"]
    said = command("train.py", "--config-dir", "conf", "-m", *words, cwd=own).stdout
    assert said.splitlines()[-1] == "2 jobs, 0 failed"


def test_study_all_is_made_of_the_studies_there_are_in_their_order(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    (tmp_path / "study/mine.yaml").write_text("_target_: mypkg.Study\norder: 15\n")
    (tmp_path / "study/apart.yaml").write_text("_target_: mypkg.Study\norder: null\n")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config-dir", str(tmp_path), "study=all"])
    names = [next(iter(one.values())) for one in all_studies(CONF)["defaults"][:-1]]
    assert names[:3] == ["fidelity", "mine", "table"] and not {"all", "plane", "apart"} & set(names)
    (tmp_path / "study/mine.yaml").write_text("order: first\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: order=first"):
        all_studies(CONF)


def test_a_wrong_key_beside_a_persons_own_option_is_one_line_too(own):
    said = command("train.py", "--config-dir", "conf", "data=points", "data.rot=3", cwd=own, code=2).stderr
    assert said.startswith("error: unknown key data.rot; did you mean data") and said.count("\n") == 1
