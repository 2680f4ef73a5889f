"""Secrets by name, by value and in URLs: refused where they would be stored, *** where they would be said."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf.errors import OmegaConfBaseException

from anysigma.compose import config
from anysigma.compose.cli import one_line
from anysigma.compose.config import check, plain
from anysigma.machine.distributed import say
from anysigma.machine.secrets import redacted, refuse_values, refuse_words, secrets
from anysigma.training.wandb_run import reason

ROOT = Path(__file__).parents[2]
config.register()

KEY, PROXY, NETRC = "canary0key0value0123456789", "canary1proxy", "canary2netrc"


@pytest.fixture(autouse=True)
def canaries(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{PROXY}@proxy:3128")
    monkeypatch.setenv("KEYBOARD", "us")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")


def test_what_is_secret_is_known_by_its_name_its_value_or_its_place(tmp_path):
    found = secrets()
    assert found[KEY] == "WANDB_API_KEY" and found[PROXY] == "HTTPS_PROXY" and found[NETRC] == "netrc"
    assert {"us", "Somebody Else", str(tmp_path)}.isdisjoint(found)  # a setting, an author, a place


@pytest.mark.parametrize("content", ["machine", "machine x login y password", "\x00", "macdef a\n", "ö" * 10])
def test_a_netrc_that_cannot_be_read_has_no_secrets(content, tmp_path):
    (tmp_path / "netrc").write_text(content)
    assert "netrc" not in secrets().values()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"401 for {KEY}!", "401 for ***!"), (f"password {NETRC}", "password ***"),
        (f"http://user:{PROXY}@proxy:3128 is down", "http://***@proxy:3128 is down"),
        ("https://u:p@h/x", "https://***@h/x"), ("https://token@h/x", "https://***@h/x"),
        ("https://u:p@ss@h/x", "https://***@h/x"), ("https://u:p/w@h/x", "https://***@h/x"),
        ("s3://b/x?X-Amz-Signature=abc&part=1", "s3://b/x?X-Amz-Signature=***&part=1"),
        ("https://h/x?sig=a%2Fb", "https://h/x?sig=***"), ("https://h/x?a=1&access_token=abc", "https://h/x?a=1&access_token=***"),
        ("https://h/x@v1?design=3", "https://h/x@v1?design=3"), ("/home/a@b/c:d@e", "/home/a@b/c:d@e"),
        ("no secret, but a key", "no secret, but a key"),
    ],
)  # fmt: skip
def test_secrets_are_starred_wherever_they_are_said(text, said):
    assert redacted(text) == said and redacted(said) == said


@pytest.mark.parametrize(
    "word",
    [
        "data.root=https://user:abc@host/x", "checkpoint=https://user:abc@host/x.ckpt", f"run={KEY}", f"+x={NETRC}",
        "data.root=${oc.env:WANDB_API_KEY}", "data.root=${oc.env: 'HF_TOKEN', none}", "data.root=${oc.env:HTTPS_PROXY}",
        "+logger.wandb.api_key=abc", "hydra.job.env_set.HF_TOKEN=abc", "++a.b.my-secret=abc", "+password=abc",
        "data.root=s3://bucket/x?X-Amz-Signature=abc",
    ],
)  # fmt: skip
def test_a_word_with_a_secret_is_refused_before_anything_is_stored(word):
    with pytest.raises(ValueError, match="libraries read secrets from the environment") as caught:
        refuse_words(["seed=1", word])
    said = str(caught.value)
    assert not any(secret in said for secret in (KEY, PROXY, NETRC, "abc")) and "\n" not in said


@pytest.mark.parametrize(
    "word",
    [
        "seed=1", "data.root=${oc.env:HOME}/images", "study.key=3", "features.sha256=6726825d", "checkpoint=https://h/x.ckpt",
        "+logger.wandb.api_key=null", "data.root=/a@b/c:d@e", "sampler.tau=[1,5]", "sampler/tau@x=uniform", "-m", "--cfg",
    ],
)  # fmt: skip
def test_other_words_pass(word):
    refuse_words([word])


def composed(*words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["logger=csv", *words])


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HTTPS_PROXY", "HF_TOKEN"])
def test_no_yaml_gets_a_secret_out_of_the_environment(name):
    cfg = composed("+data.source.extra=${oc.env:" + name + ",none}")
    with pytest.raises(OmegaConfBaseException) as caught:
        plain(cfg)
    assert name in one_line(caught.value, None) and "secret" in one_line(caught.value, None)


def test_other_variables_are_read_as_before(monkeypatch):
    monkeypatch.setenv("PLACE", "/somewhere")
    found = plain(composed("+data.a=${oc.env:PLACE}", "+data.b=${oc.env:NOWHERE,3}"))["data"]
    assert (found["a"], found["b"]) == ("/somewhere", "3")
    with pytest.raises(OmegaConfBaseException, match="NOWHERE"):
        plain(composed("+data.b=${oc.env:NOWHERE}"))


@pytest.mark.parametrize("value", [KEY, [1, {"x": f"a{NETRC}b"}], {f"{PROXY}x": 1}, "http://u:p@h"])
def test_a_config_that_holds_a_secret_is_refused_by_its_key(value):
    with pytest.raises(ValueError, match=r"^a\.b") as caught:
        refuse_values({"a": {"b": value}})
    assert not any(secret in str(caught.value) for secret in (KEY, PROXY, NETRC, "u:p"))
    with pytest.raises(ValueError, match="secrets from the environment"):
        check({"model": {"extra": value}})


@pytest.mark.parametrize("text", ["://" * 10**5, "?" + "a-" * 10**5, "://" + "a:" * 10**5, "~" * 9999 + "a." * 10**5])
def test_a_long_text_is_no_trap(text):
    start = time.process_time()
    refuse_values({"x": text})
    refuse_words([text])
    assert time.process_time() - start < 20  # by the square of its length it would be minutes


def test_what_is_said_is_starred(capsys):
    say(f"no distance: http://u:p@h says {KEY}")
    assert capsys.readouterr().out == "no distance: http://***@h says ***\n"


def test_what_wandb_answers_is_starred():
    assert reason(OSError("http://u:p@h: refused\nmore")) == "http://***@h: refused"


def test_errors_and_traces_are_starred(tmp_path):
    code = "import sys; from anysigma.compose.cli import traced; sys.excepthook = traced; raise KeyError(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, f"http://u:p@h {KEY}"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("KeyError: 'http://***@h ***'")
    assert done.stderr.startswith("Traceback")
    assert one_line(ValueError(f"checkpoint=https://u:p@h/{KEY}: a URL"), None) == "checkpoint=https://***@h/***: a URL"
