"""`logger=tensorboard`: what event files hold, after a whole run, after a cut one, and where tensorboard is missing."""

import csv
import importlib
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from test_training import train_here

from anysigma.compose.config import build
from anysigma.metrics.anchors import Anchor
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row

pytest.importorskip("tensorboard", reason="an extra: pip install tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
FILM = np.stack([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 9, np.uint8)])
PLOT = Plot("a line", "x", "y", [Curve("one", [0, 1], [0, 1])])
NUMBER, PICTURE = 7.25, np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)


RESULT = Result(
    "fidelity", rows=[Row("fd_digits", NUMBER, n=3, better=-1, anchors={"held-out images": Anchor(1.0)})],
    pictures={"grid": PICTURE, "film": FILM},
    plots={"curve": PLOT},
)  # fmt: skip


def recorded(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def steps(events, tag):
    return [event.step for event in events.Scalars(tag)]


def decoded(event):
    return np.asarray(Image.open(BytesIO(event.encoded_image_string)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_here(folder, "logger=tensorboard", result=RESULT)
    return folder


def test_the_same_numbers_lie_in_the_event_file_and_in_metrics_csv(run):
    events = recorded(run)
    with open(run / "metrics.csv") as file:
        rows = [(row["metric"], int(row["step"]), float(row["value"])) for row in csv.DictReader(file)]
    found = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    assert sorted(row[:2] for row in rows) == sorted(row[:2] for row in found)
    values = {row[:2]: row[2] for row in rows}
    assert all(values[tag, step] == pytest.approx(value, rel=1e-6) for tag, step, value in found)  # float32 there
    assert {"train/loss", "held_out/loss", "distance/fd_digits", "final/fd_digits"} <= set(events.Tags()["scalars"])


def test_pictures_and_the_final_result_can_be_read_back(run):
    events = recorded(run)
    assert [e.step for e in events.Images("samples/grid")] == [10, 20]
    assert [e.step for e in events.Images("samples/data")] == [0]
    (final,) = events.Images("final/grid")
    assert final.step == 20 and np.array_equal(decoded(final), PICTURE)
    assert (decoded(events.Images("final/film")[0]) == 9).all() and events.Images("final/curve")
    table, settings = (
        events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode() for name in ("final/table", "config")
    )
    assert "| fidelity | fd_digits | 7.25 |" in table and '"precision": "32-true"' in settings


def test_an_evaluation_lies_below_its_studys_name(tmp_path):
    logger = build(compose_logger())["tensorboard"](folder=tmp_path, config={})
    logger.log_study(RESULT)
    logger.finish(0)
    events = recorded(tmp_path)
    assert np.array_equal(decoded(events.Images("fidelity/grid")[0]), PICTURE)
    assert "fidelity/table/text_summary" in events.Tags()["tensors"]


def compose_logger():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["logger=tensorboard"]).logger


def test_all_lies_in_the_runs_folder_in_one_file(run):
    (file,) = (run / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents")


def test_a_cut_run_shows_every_step_once(tmp_path):
    """Cut at step 13 after a checkpoint at 10, as a kill would leave it: what came after 10 is logged again."""
    words = ["logger=tensorboard", "features=none", "trainer.log_every_n_steps=1"]
    train_here(tmp_path, *words, "callbacks.last.every=10", "trainer.max_steps=10")
    early = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    train_here(tmp_path, *words, "trainer.max_steps=13")
    (tmp_path / "checkpoints/last.ckpt").write_bytes(early)
    assert steps(recorded(tmp_path), "train/loss") == list(range(1, 14))
    train_here(tmp_path, *words, "trainer.max_steps=20")
    events = recorded(tmp_path)
    assert steps(events, "train/loss") == list(range(1, 21))
    assert [e.step for e in events.Images("samples/data")] == [0]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


@pytest.mark.filterwarnings("ignore")
def test_without_tensorboard_it_is_one_line_and_nothing_is_built(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "anysigma.training.loggers_tensorboard", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "debug=true", "logger=tensorboard"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    train = importlib.import_module("train")
    built = []
    monkeypatch.setattr(train, "build", built.append)
    from anysigma.compose.cli import entry

    with pytest.raises(SystemExit) as ended:
        entry(train.main, f"{ROOT}/conf/train")
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and built == []
    assert said == "error: logger=tensorboard: tensorboard is not installed; pip install tensorboard, or choose logger=csv"
    assert not list(tmp_path.rglob("metrics.csv"))


def test_other_loggers_do_not_ask_for_it():
    code = (
        "import sys; sys.modules['tensorboard'] = None; import anysigma, anysigma.training.job, anysigma.training.loggers;"
        "print([m for m in sys.modules if m.startswith('tensorboard.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr[-500:]


def test_a_run_that_begins_again_hides_what_the_first_attempt_logged(tmp_path):
    words = ["logger=tensorboard", "features=none", "trainer.log_every_n_steps=1", "trainer.max_steps=2"]
    train_here(tmp_path, *words)
    (tmp_path / "checkpoints/last.ckpt").unlink()
    train_here(tmp_path, *words)
    events = recorded(tmp_path)
    assert steps(events, "train/loss") == [1, 2] and [e.step for e in events.Images("samples/data")] == [0]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from anysigma.training.loggers_tensorboard import TensorBoard

logger = TensorBoard(Path(sys.argv[1]), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the system then refuses to write, as on a full disk
logger.cut_back(0)
for step in range(1, 200):
    logger.log_metrics({"a": 1.0}, step)
    logger.log_image("b", [np.zeros((8, 8, 3), np.uint8)], step)
    logger.save()
logger.finalize("success")
logger.finish(0)
"""


def test_a_full_disk_costs_the_event_file_and_one_line(tmp_path):
    pytest.importorskip("resource", reason="limits are Unix's")
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"TensorBoard is left alone: [Errno 27] File too large; figures are in {tmp_path}\n"


def test_a_call_that_raises_costs_tensorboard_and_not_the_run(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", broken)
    train_here(tmp_path, "logger=tensorboard", "features=none", "trainer.max_steps=5")
    said = [line for line in capsys.readouterr().out.splitlines() if "TensorBoard" in line]
    assert said == [f"TensorBoard is left alone: broken; figures are in {tmp_path}"]
    assert "train/loss" in (tmp_path / "metrics.csv").read_text()
