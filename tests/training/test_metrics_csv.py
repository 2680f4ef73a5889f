"""metrics.csv as the record of a run: what a cut or a full disk leaves of it."""

import os

import pytest

from anysigma.training.loggers import MetricsCSV, numbers


@pytest.fixture
def logger(tmp_path):
    return MetricsCSV(tmp_path, {})


def test_what_was_logged_is_read_back_bit_for_bit(logger):
    logger.log_metrics({"a": 0.1 + 0.2, "epoch": 0}, step=1)
    logger.log_metrics({"a": 1e-300, "b": float("inf")}, step=2)
    assert list(numbers(logger.path)) == [(1, "a", 0.1 + 0.2), (2, "a", 1e-300), (2, "b", float("inf"))]


def test_a_file_cut_at_any_byte_gives_its_whole_lines_and_goes_on(logger):
    for step in (1, 2, 3):
        logger.log_metrics({"a": step / 3, "b": step / 7}, step)
    content, whole = logger.path.read_bytes(), list(numbers(logger.path))
    for end in range(len(content)):
        logger.path.write_bytes(content[:end])
        assert list(numbers(logger.path)) == whole[: max(content[:end].count(b"\n") - 1, 0)]
        logger.cut_back(2)
        logger.log_metrics({"a": 1.0}, 3)
        found = list(numbers(logger.path))
        assert found[-1] == (3, "a", 1.0) and found[:-1] == [row for row in whole if row[0] <= 2][: len(found) - 1]


def test_lines_of_others_are_passed_over(logger):
    logger.log_metrics({"a": 1.0}, 1)
    with open(logger.path, "a") as file:
        file.write("x,0,a,1\n2,0,a,much\n2,0\n\n2,0,a,1,1\n\x00\n3,0,a,5\n")
    assert list(numbers(logger.path)) == [(1, "a", 1.0), (3, "a", 5.0)]
    assert list(numbers(logger.path.with_name("none.csv"))) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is Linux's")
def test_a_full_disk_is_one_line_that_names_the_file_and_the_way_on(logger):
    logger.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.csv cannot be written \(No space left on device\): the same command"):
        logger.log_metrics({"a": 1.0}, 1)
