"""Command lines of strangers: whatever words are said, a config that could be run, or one line."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict, read_write
from watched import ours, watched

from anysigma.compose import config
from anysigma.compose.checks import check_evaluate, check_train
from anysigma.compose.cli import dotted, options_first, spell_out
from anysigma.compose.config import build
from anysigma.compose.experiments import hold_to_program
from anysigma.machine.secrets import refuse_words

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
config.register()

PLAIN = {
    "deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
}  # fmt: skip


def of(program):
    """Every dotted key of a program's config, without what repeats it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = OmegaConf.to_container(compose(program), resolve=False)
    return [key for key in dotted(cfg) if not key.startswith("job.")] + ["job", "job.module.block", "job.module.seed"]


KEYS = {program: of(program) for program in ("train", "evaluate")}
OPTIONS = [f"{path.parent.relative_to(CONF)}={path.stem}" for path in sorted(CONF.rglob("*.yaml")) if path.parent != CONF]
MORE = [
    "hydra.run.dir",
    "hydra.job.name",
    "hydra.sweep.dir",
    "_target_",
    "model._args_",
    "data.source.extra",
    "sampler/tau",
    "x",
]
VALUES = st.one_of(
    st.integers(-3, 3000).map(str), st.floats().map(repr), st.booleans().map(str),
    st.sampled_from([
        "null", "", "[]", "{}", "[1,2]", "[a,[b]]", "{a:1}", "{_target_:os.system,command:ls}", "???", "1e999", "-1",
        "0", "abc", "${model}", "${.}", "${..}", "${nothing}", "${oc.create:{a:1}}", "${oc.env:HOME}",
        "${oc.env:NOTHING}", "${when:a,b,c}", "${run_name:}", "${oc.decode:[1}", "'\\x1b[31m'", "'a b'", "a b", "[",
        "}", "'", "\\", "a=b", "$", "${", "=", "1" * 400, "100000000000", "99999999999999999999999", "os.system",
        "builtins.eval", "anysigma.compose.config.build", "nan", "inf", "../../x", "/etc/passwd", "1,2", "range(1,5)",
        "choice(1,2)", "[1,5,3]", "{sigma:{_target_:torch.load}}", "ö", "true",
        "anysigma.diffusion.schedules.linear.Linear", "torch.optim.SGD", "auto", "cpu", "all", "7:7:7:7", "[0]",
        "x" * 500,
    ]),
)  # fmt: skip
PREFIX = st.sampled_from(["", "", "", "+", "++", "~"])


@st.composite
def words(draw, program):
    """One to three words, most of them about something that there is."""
    said = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 3)) == 0:
            word = draw(st.sampled_from(OPTIONS))
            said.append(word if draw(st.integers(0, 4)) else f"{word.split('=')[0]}={draw(VALUES)}")
        else:
            key = draw(st.one_of(st.sampled_from(KEYS[program]), st.sampled_from(MORE)))
            key += draw(st.sampled_from(["", "", "", "", "", "_", ".x", ".0", "._target_", "._partial_", "._args_"]))
            prefix, value = draw(PREFIX), draw(VALUES)
            said.append(f"{prefix}{key}" if prefix == "~" and draw(st.booleans()) else f"{prefix}{key}={value}")
    return said


@contextmanager
def composed(program, said):
    """The config of a command line, as Hydra gives it to the program, with the folder that it would run in."""
    said = options_first([spelled for word in said for spelled in spell_out(word)])
    refuse_words(said)
    hold_to_program(str(CONF / program), said)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose(program, said, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            assert str(cfg.hydra.run.dir)
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            yield cfg
        finally:
            HydraConfig.instance().cfg = None
            GlobalHydra.instance().clear()


def checked(program, said):
    """As far as the program comes before it opens a checkpoint or makes a folder."""
    with composed(program, said) as cfg:
        if program == "train":
            return check_train(cfg)
        if cfg.compare is None and cfg.report is None:
            node = check_evaluate(cfg)
            return [build(node[name]) for name in ("study", "sampler", "hardware")]


def held(program, said, place):
    sys.argv[:] = [f"{program}.py", *said]
    try:
        with watched(place):
            checked(program, said)
    except Exception as error:
        ours(error, str(CONF / program))
    except SystemExit as ended:  # Hydra's own options
        assert ended.code in (0, 2)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def prepared(place):
    return place


def strange_training(place, data):
    held("train", data.draw(words("train")), place)


def strange_evaluation(place, data):
    held("evaluate", data.draw(words("evaluate")), place)


@settings(max_examples=20, **PLAIN)
@given(data=st.data())
def test_words_for_train(place, data):
    strange_training(place, data)


@settings(max_examples=10, **PLAIN)
@given(data=st.data())
def test_words_for_evaluate(place, data):
    strange_evaluation(place, data)


@pytest.mark.slow
@settings(max_examples=1000, **PLAIN)
@given(data=st.data())
def test_many_words_for_train(place, data):
    strange_training(place, data)


@pytest.mark.slow
@settings(max_examples=1000, **PLAIN)
@given(data=st.data())
def test_many_words_for_evaluate(place, data):
    strange_evaluation(place, data)


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_without_words_all_is_well(program, place):
    with watched(place):
        checked(program, [])
