import json

from anysigma.runs import listing


def test_a_run_whose_results_cannot_be_read_is_a_line_among_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "read", lambda path, sealed: {"step": 3})
    for name, results in {"a": {"format": 1}, "b": {"format": 3, "step": 3, "lines": ["fd_digits 7.25"]}, "c": None}.items():
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        if results:
            (tmp_path / name / "results.json").write_text(json.dumps(results))
    old, new, unfinished = listing.listing(tmp_path)
    assert old.startswith("a  ") and "format 1, this version reads 3; measure again" in old
    assert (new, unfinished) == ("b  step 3  fd_digits 7.25", "c  step 3  not finished")


def test_a_run_whose_last_is_gone_is_there_still(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "read", lambda path, sealed: {"step": 3 if path.name == "previous.ckpt" else 4})
    for run, names in {"a": ["previous"], "b": ["last", "previous"]}.items():
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        for name in names:
            (tmp_path / run / f"checkpoints/{name}.ckpt").touch()
    assert list(listing.listing(tmp_path)) == ["a  step 3  not finished", "b  step 4  not finished"]
    assert list(listing.listing(tmp_path, names=True)) == ["a", "b"]
