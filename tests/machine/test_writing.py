"""A file is there whole or not at all, and what could not be written is named."""

import pytest

from anysigma.machine.writing import written


def test_it_takes_the_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "x.json"
    for text in ("one", "two"):
        with written(path) as aside:
            aside.write_text(text)
            assert not path.exists() or path.read_text() == "one"
    assert path.read_text() == "two" and [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("old")
    with pytest.raises(OSError, match=r"^x: not written \(No space left on device\)$"), written(tmp_path / "x") as aside:
        aside.write_text("half")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "x").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_any_other_end_leaves_the_old_one_too(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), written(tmp_path / "x") as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
