"""Five kills in every suite; `make chaos` has fifty and more."""

import pytest
from chaos import KINDS, chaos


def test_a_run_that_is_killed_five_times_ends_as_the_uncut_one(tmp_path):
    said: list[str] = []
    assert chaos(5, 0, tmp_path, ["1 process"], said.append) == 0, "\n".join(said)
    assert sum(line.startswith("  step ") for line in said) == 5


@pytest.mark.slow
def test_so_do_runs_of_every_kind(tmp_path):
    said: list[str] = []
    assert chaos(50, 1, tmp_path, list(KINDS), said.append) == 0, "\n".join(said)
