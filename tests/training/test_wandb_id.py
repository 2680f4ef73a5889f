"""Which W&B run a folder is: drawn once, kept through every move, drawn anew for every copy."""

import json
import re
import shutil
import socket

import pytest
import torch

from anysigma.runs.checkpoint import FORMAT, write
from anysigma.training.wandb_id import FILE, tracked


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs" / "train" / "a"


def checkpoint(folder, record):
    """A last checkpoint that says which W&B run it is."""
    content = {"config": {}, "format": FORMAT, "step": 1, "state_dict": {"w": torch.zeros(1)}, "wandb": record}
    write(content, folder / "checkpoints" / "last.ckpt")


def elsewhere(folder, monkeypatch):
    """From here on this is another machine, to which the folder's old place means nothing."""
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    there = folder.parents[2] / "other" / folder.name
    there.parent.mkdir()
    return shutil.move(folder, there)


def test_one_config_in_two_places_draws_two_ids_and_asking_again_changes_nothing(tmp_path):
    a, b = tracked(tmp_path / "one" / "run"), tracked(tmp_path / "two" / "run")
    assert a["id"] != b["id"] and re.fullmatch("[0-9a-f]{16}", a["id"])
    assert tracked(tmp_path / "one" / "run") == a and json.loads((tmp_path / "one" / "run" / FILE).read_text()) == a


def test_it_is_drawn_from_no_seed(tmp_path):
    found = set()
    for k in range(3):
        torch.manual_seed(0)
        found.add(tracked(tmp_path / str(k))["id"])
    assert len(found) == 3


def test_a_moved_or_renamed_folder_keeps_it(folder):
    first = tracked(folder)["id"]
    assert tracked(shutil.move(folder, folder.with_name("b")))["id"] == first
    assert tracked(shutil.move(folder.with_name("b"), folder))["id"] == first  # and back


def test_a_copy_under_another_name_draws_its_own_and_the_first_keeps_its(folder):
    first = tracked(folder)["id"]
    copy = tracked(shutil.copytree(folder, folder.with_name("b")))["id"]
    assert copy != first and tracked(folder)["id"] == first and tracked(folder.with_name("b"))["id"] == copy


def test_a_link_to_the_folder_is_no_copy(folder):
    first = tracked(folder)["id"]
    folder.with_name("link").symlink_to(folder)
    assert tracked(folder.with_name("link"))["id"] == first


def test_on_another_machine_the_same_name_is_a_move_and_another_name_a_copy(folder, monkeypatch):
    first = tracked(folder)["id"]
    there = elsewhere(folder, monkeypatch)
    assert tracked(shutil.copytree(there, there.with_name("b")))["id"] != first
    assert tracked(there)["id"] == first


def test_a_lost_or_damaged_file_is_made_good_by_the_checkpoint(folder):
    first = tracked(folder)
    checkpoint(folder, first)
    for damage in (None, "", "{", "[]", '{"id": 3}', json.dumps({**first, "id": "../../x"})):
        (folder / FILE).unlink() if damage is None else (folder / FILE).write_text(damage)
        assert tracked(folder)["id"] == first["id"]


def test_a_copy_of_the_checkpoints_alone_draws_its_own(folder):
    first = tracked(folder)
    checkpoint(folder, first)
    shutil.copytree(folder / "checkpoints", folder.with_name("b") / "checkpoints")
    assert tracked(folder.with_name("b"))["id"] != first["id"]


@pytest.mark.parametrize("record", [None, "x", 3, [], {"id": "../x", "folder": "x", "host": "x"}, {"id": "0" * 16}])
def test_a_strangers_checkpoint_names_no_id_of_ours(folder, record):
    checkpoint(folder, record)
    assert re.fullmatch("[0-9a-f]{16}", tracked(folder)["id"])


def test_a_checkpoint_that_cannot_be_read_is_left_to_those_who_go_on_from_it(folder):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    assert tracked(folder)["id"]
