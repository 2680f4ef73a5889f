"""Canaries in every place where secrets lie: after a real run none of them is in a file, in what is said, or in `ps`."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["debug=true", "model.channels=8", "model.multipliers=[1]", "run=small"]
KEY, TOKEN, AWS = "cafe" * 10, "hf_canaryTOKENcanary", "canaryAWScanaryAWScanary"
PROXY, BASE, NETRC = "canaryPROXY", "canaryBASE", "canaryNETRC0"
CANARIES = (KEY, TOKEN, AWS, PROXY, BASE, NETRC)


@pytest.fixture
def environment(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and not k.lower().endswith("_proxy")}
    return {
        **kept, "HOME": str(home), "WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": AWS,
        "HTTPS_PROXY": f"http://user:{PROXY}@127.0.0.1:9", "http_proxy": f"http://user:{PROXY}@127.0.0.1:9",
        "WANDB_BASE_URL": f"http://user:{BASE}@127.0.0.1:9",
    }  # fmt: skip


def arguments(stop, seen):
    """What `ps` shows of every process, again and again."""
    while not stop.wait(0.05):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                seen.add(path.read_bytes())


def ran(script, words, place, environment, **more):
    """(what was said, exit code, arguments of all processes meanwhile)."""
    stop, seen = threading.Event(), set()
    watch = threading.Thread(target=arguments, args=(stop, seen))
    watch.start()
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *words], cwd=place, capture_output=True, text=True, timeout=300,
            stdin=subprocess.DEVNULL, env={**environment, **more},
        )  # fmt: skip
    finally:
        stop.set()
        watch.join()
    return done.stdout + done.stderr, done.returncode, b"\n".join(seen).decode(errors="replace")


def leaks(place, *texts):
    """Canaries that lie in a file below `place` or stand in a text, each with where."""
    found = [(canary, "said") for canary in CANARIES for text in texts if canary in text]
    for path in place.rglob("*"):
        if path.is_file() and path.name != ".netrc":
            content = path.read_bytes()
            found += [(canary, str(path)) for canary in CANARIES if canary.encode() in content or canary in path.name]
    return found


def test_none_of_them_leaves_its_place(tmp_path, environment):
    said, code, shown = ran("train.py", [*SMALL, "logger=wandb"], tmp_path, environment, WANDB_MODE="offline")
    assert code == 0, said
    run = tmp_path / "logs/train/small"
    assert list(run.rglob("*.wandb")) and (run / ".hydra/config.yaml").exists() and (run / "checkpoints/last.ckpt").exists()
    assert leaks(tmp_path, said, shown) == []
    words = ["checkpoint=small", "study=trajectory", "debug=true", "logger=csv"]
    said, code, shown = ran("evaluate.py", words, tmp_path, environment)
    assert code == 0, said
    assert list(tmp_path.rglob("report.html")) and leaks(tmp_path, said, shown) == []


@pytest.mark.slow
def test_a_sweep_hands_none_of_them_on_in_files(tmp_path, environment):
    words = ["-m", "seed=0,1", *SMALL[:-1], "logger=csv", "study=trajectory", "study.n=0"]
    said, _, shown = ran("train.py", words, tmp_path, environment)
    assert list(tmp_path.rglob(".submitit/*/*.pkl")) and leaks(tmp_path, said, shown) == []


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("evaluate.py", f"checkpoint=https://user:{BASE}@host/x.ckpt"), ("train.py", f"data.root=https://user:{BASE}@host"),
        ("train.py", "+data.extra=${oc.env:WANDB_API_KEY}"), ("train.py", f"run={TOKEN}"),
        ("train.py", f"+logger.wandb.api_key={AWS}x"),
    ],
)  # fmt: skip
def test_a_word_with_one_of_them_is_refused_in_one_line_and_nothing_is_stored(script, word, tmp_path, environment):
    said, code, _ = ran(script, [word], tmp_path, environment)
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "logs").exists() and leaks(tmp_path, said) == []
