"""What `auto` becomes: the environment's word, what was kept, a trial; plain on a busy machine."""

import json

import pytest
import torch

from anysigma.machine import choice
from anysigma.machine.choice import SAID, chosen, for_sampling, of_sampling
from anysigma.machine.hardware import Hardware
from anysigma.networks.mlp import MLP

FOUND = {"training": {"precision": "bf16-mixed"}, "sampling": {"precision": "32-true"}, "gains": [2.0, 1.0]}


class Machine:
    """How busy others are, reading by reading."""

    def __init__(self, *said):
        self.said = said or (0.0,)

    def __call__(self):
        return self

    def others(self):
        first, *rest = self.said
        self.said = rest or (first,)
        return first


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.delenv(SAID)
    monkeypatch.setattr(choice, "FIRST", 0.0)
    monkeypatch.setattr(choice, "Load", Machine())
    monkeypatch.chdir(tmp_path)


def counted(found=FOUND):
    calls = []

    def trial():
        calls.append(1)
        return found

    return trial, calls


def test_a_trial_is_kept_by_what_it_depends_on(tmp_path):
    trial, calls = counted()
    for facts in ({"device": "A"}, {"device": "A"}, {"device": "B"}):
        found = chosen(facts, trial)
        assert found["training"] == FOUND["training"] and found["facts"] == facts
    assert len(calls) == 2 and len(json.loads((tmp_path / "logs/cache/hardware.json").read_text())) == 2


@pytest.mark.parametrize("said", [(1.0,), (0.0, 1.0)])
def test_on_a_busy_machine_the_plain_one_is_taken_and_nothing_kept(monkeypatch, said, tmp_path, capsys):
    monkeypatch.setattr(choice, "Load", Machine(*said))
    trial, calls = counted()
    assert chosen({}, trial) == {"tried": False} and len(calls) == len(said) - 1
    assert "hardware=auto: the machine" in capsys.readouterr().out
    assert not (tmp_path / "logs/cache/hardware.json").exists()


def test_what_was_kept_is_taken_on_a_busy_machine_too(monkeypatch):
    chosen({}, counted()[0])
    monkeypatch.setattr(choice, "Load", Machine(1.0))
    assert chosen({}, None)["training"] == FOUND["training"]


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00", '{"KEY": "x"}', '{"KEY": {"training": 1, "gains": [1, 2]}}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / "logs/cache").mkdir(parents=True)
    (tmp_path / "logs/cache/hardware.json").write_text(content.replace("KEY", choice.digest({})))
    trial, calls = counted()
    assert chosen({}, trial)["gains"] == [2.0, 1.0] and calls


def test_a_process_that_was_started_by_another_takes_its_word(monkeypatch):
    monkeypatch.setenv(SAID, json.dumps(FOUND))
    assert chosen({}, None) == FOUND


@pytest.mark.parametrize(
    "said", [{}, {"training": {"precision": "bf16-mixed"}}, {"tried": False}, {"sampling": {}, "gains": [1, 2.5]}]
)
def test_an_environment_may_say_a_part_of_it(monkeypatch, said):
    monkeypatch.setenv(SAID, json.dumps(said))
    assert chosen({}, None) == said


@pytest.mark.parametrize(
    "said",
    ["", "bf16-mixed", "{", "[]", "3", "null", '{"precision": "bf16-mixed"}', '{"training": "bf16-mixed"}', '{"gains": [1]}',
     '{"gains": "ab"}', "[" * 100_000],
)  # fmt: skip
def test_an_environment_that_says_something_else_is_refused_in_a_line(monkeypatch, said):
    monkeypatch.setenv(SAID, said)
    with pytest.raises(ValueError, match=r"^ANYSIGMA_HARDWARE=.*: a choice as JSON, .* unset, a trial is made$") as error:
        chosen({}, None)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_of_several_tasks_none_tries(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert chosen({}, None) == {"tried": False}


def test_sampling_follows_what_the_run_recorded():
    record = {"accelerator": "cpu", "precision": "bf16-mixed", "memory_format": "contiguous",
              "sampling": {"precision": "32-true", "memory_format": "channels_last"}}  # fmt: skip
    hardware = Hardware(accelerator="cpu").placed()
    found = for_sampling(hardware, None, (1, 8, 8), record)
    assert (found.precision, found.memory_format) == ("32-true", "channels_last")
    said = for_sampling(Hardware(accelerator="cpu", precision="bf16-mixed").placed(), None, (1, 8, 8), record)
    assert (said.precision, said.memory_format) == ("bf16-mixed", "channels_last")


@pytest.mark.parametrize(
    "record", [None, {}, {"accelerator": "gpu", "sampling": {"precision": "bf16-mixed"}}, {"sampling": 3}]
)
def test_without_a_record_of_this_accelerator_sampling_is_tried(record):
    network = MLP((1, 2, 2), width=8, layers=1)
    found = for_sampling(Hardware(accelerator="cpu").placed(), network, (1, 2, 2), record)
    assert found.precision in ("32-true", "bf16-mixed") and "auto" not in (found.precision, found.memory_format)
    assert json.loads(choice.KEPT.read_text())  # and kept


def test_nothing_is_tried_where_all_is_said():
    hardware = Hardware(accelerator="cpu", precision="32-true", memory_format="contiguous")
    assert for_sampling(hardware.placed(), None, (1, 8, 8), None).precision == "32-true"
    assert not choice.KEPT.exists()


@pytest.mark.parametrize(
    "found", [{"precision": "17"}, {"precision": ["a"]}, {"fused": torch.ones(2)}, {"memory_format": 3}, {"fused": "yes"}]
)
def test_a_record_that_is_none_of_ours_becomes_plain(found):
    settled = Hardware(accelerator="cpu").placed().settled(found)
    assert (settled.precision, settled.memory_format, settled.fused) == ("32-true", "contiguous", False)
    assert of_sampling({"sampling": [1]}) == {}


def test_random_numbers_are_given_back():
    network = MLP((1, 2, 2), width=8, layers=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for_sampling(Hardware(accelerator="cpu").placed(), network, (1, 2, 2), None)
    assert torch.equal(torch.rand(1), expected)
