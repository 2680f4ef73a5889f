"""The mutation run's lists name what there is: files, tests, and lines of the source that no test can hold."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed(name):
    return tomllib.loads((ROOT / "mutation" / name).read_text())


def test_every_zone_has_files_and_tests():
    for zone in listed("zones.toml").values():
        assert all(list(ROOT.glob(pattern)) for pattern in zone["mutate"])
        places = [word.removeprefix("--deselect=").split("::")[0] for word in zone["tests"] if word != "--deselect"]
        assert all((ROOT / place).exists() for place in places)


def test_a_survivor_that_is_said_why_still_stands_in_the_source():
    for one in listed("known.toml").get("known", []):
        source = " ".join((ROOT / one["file"]).read_text().split())
        assert " ".join(one["was"].split()) in source, one["was"]
        assert one["why"] and one["becomes"] != one["was"]
