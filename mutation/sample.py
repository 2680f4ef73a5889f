"""How many of a seeded sample of small changes to the source the tests notice: `make mutants ARGS="--n 300 --seed 0"`.

mutmut makes the mutants (one operator, number, argument or assignment changed; strings are left out) and runs, in
processes forked from one that has imported everything, the tests that reach the changed function. zones.toml says which
files and which tests, known.toml which survivors no test can find. All it writes lies below logs/mutants.
"""

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
WORK = ROOT / "logs/mutants"
WANTED = 0.9
FOUND = {1, 3, 24, -24, 36, 152, 255}  # mutmut's exit codes: a test failed, or time ran out


@dataclass(frozen=True)
class Mutant:
    """One change: mutmut's name for it, its zone, where it stands and the lines it replaces by others."""

    name: str
    zone: str
    file: str
    line: int
    was: str
    becomes: str


def main() -> int:
    """Draw, run, report."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--n", type=int, default=300, help="how many mutants")
    words.add_argument("--seed", type=int, default=0, help="which of them")
    words.add_argument("--zones", nargs="*", help="of zones.toml; all where none is named")
    words.add_argument("--processes", type=int, default=1)
    given = words.parse_args()
    zones = tomllib.loads((HERE / "zones.toml").read_text())
    zones = {zone: zones[zone] for zone in given.zones or zones}
    every = [mutant for zone, one in zones.items() for mutant in mutants(zone, one["mutate"])]
    chosen = random.Random(given.seed).sample(every, min(given.n, len(every)))
    exit_codes: dict[str, int | None] = {}
    for zone, one in zones.items():
        names = [mutant.name for mutant in chosen if mutant.zone == zone]
        try:
            exit_codes |= run(zone, one, names, given.processes) if names else {}
        except RuntimeError as stopped:
            print(f"{zone}: {stopped}\n")
    done = [mutant for mutant in chosen if mutant.name in exit_codes]
    return max(report(done, exit_codes, len(every)), int(done != chosen))


def mutants(zone: str, patterns: list[str]) -> list[Mutant]:
    """Every mutant of the files, in their order, but those that change strings alone."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    found = []
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        source = path.read_text()
        mutated = mutate_file_contents(str(path), source)
        lines, spans = mutated.code.splitlines(), mutated.line_span_by_function_name
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for name in mutated.mutant_names:
            of = name.rsplit("__mutmut_", 1)[0]
            was, becomes = ("\n".join(lines[spans[key].start - 1 : spans[key].end]) for key in (f"{of}__mutmut_orig", name))
            plain = of.removeprefix("x").removeprefix("_").split("ǁ")[-1]
            was, becomes = was.replace(f"{of}__mutmut_orig", plain), becomes.replace(name, plain)
            if without_strings(was) != without_strings(becomes):
                file = str(path.relative_to(ROOT))
                found.append(Mutant(f"{module}.{name}", zone, file, *changed(source, of, was, becomes)))
    return found


def without_strings(function: str) -> str:
    """Its syntax tree with every string emptied."""
    tree = ast.parse(textwrap.dedent(function))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def changed(source: str, of: str, was: str, becomes: str) -> tuple[int, str, str]:
    """The line in the source, and the lines that differ, stripped."""
    parts = of.removeprefix("x").removeprefix("_").strip("ǁ").split("ǁ")
    body, before, after = ast.parse(source).body, was.splitlines(), becomes.splitlines()
    for part in parts:
        node = next(one for one in body if getattr(one, "name", "") == part)
        body = node.body
    marks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    (_, a, b, c, d), *_ = (mark for mark in marks if mark[0] != "equal")
    return node.lineno + a, *(" ".join(line.strip() for line in text) for text in (before[a:b], after[c:d]))


def run(zone: str, one: dict[str, list[str]], names: list[str], processes: int) -> dict[str, int | None]:
    """Exit codes of the named mutants, from a copy of the working tree below logs/."""
    place = WORK / zone
    shutil.rmtree(place, ignore_errors=True)
    place.with_suffix(".log").unlink(missing_ok=True)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    settings = {
        "source_paths": ["src"], "only_mutate": one["mutate"], "pytest_add_cli_args_test_selection": one["tests"],
        "pytest_add_cli_args": ["-n", "0", "-p", "no:cacheprovider"], "use_git_change_detection": ["false"],
        "also_copy": sorted({name.split("/")[0] for name in listed.stdout.splitlines()} - {"src", "tests", "logs"}),
    }  # fmt: skip
    lines = (f"{key} =\n    " + "\n    ".join(value) for key, value in settings.items())
    (place / "setup.cfg").write_text("[mutmut]\n" + "\n".join(lines) + "\n")
    codes = tried(place, names, processes)
    left = [name for name in names if codes[name] not in FOUND]
    if left:
        widen(place / "mutants/mutmut-stats.json")
        codes |= tried(place, left, processes)
    return codes


def tried(place: Path, names: list[str], processes: int) -> dict[str, int | None]:
    """Exit codes of the named mutants, by mutmut."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "mutmut", "run", "--max-children", str(processes), *names]
    with open(place.with_suffix(".log"), "a") as log:
        done = subprocess.run(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"mutmut stopped with {done.returncode}: the end of {log.name} says why")
    metas = (json.loads(path.read_text()) for path in (place / "mutants").rglob("*.meta"))
    codes = {name: code for meta in metas for name, code in meta["exit_code_by_key"].items()}
    return {name: codes[name] for name in names}


def widen(stats: Path) -> None:
    """To each function all tests of the files that reach it: what a shared fixture reaches, mutmut gives to one test."""
    found = json.loads(stats.read_text())
    reach = found["tests_by_mangled_function_name"]
    for function, tests in reach.items():
        files = {test.split("::")[0] for test in tests}
        reach[function] = [test for test in found["duration_by_test"] if test.split("::")[0] in files]
    stats.write_text(json.dumps(found))


def report(chosen: list[Mutant], exit_codes: dict[str, int | None], of: int) -> int:
    """Prints the survivors and the share found; 1 where it is below WANTED or a survivor is not said why."""
    known = {
        (one["was"], one["becomes"]): one["why"] for one in tomllib.loads((HERE / "known.toml").read_text()).get("known", [])
    }
    unsaid = 0
    for mutant in sorted(chosen, key=lambda one: (one.file, one.line)):
        code = exit_codes[mutant.name]
        if code in FOUND:
            continue
        why = known.get((mutant.was, mutant.becomes))
        unsaid += why is None
        kind = {0: "", 33: " (no test reaches it)"}.get(code, f" (exit code {code})")
        print(f"{mutant.file}:{mutant.line}{kind}\n  - {mutant.was}\n  + {mutant.becomes}\n  {why or 'not said why'}\n")
    for zone in sorted({mutant.zone for mutant in chosen}):
        mine = [exit_codes[mutant.name] in FOUND for mutant in chosen if mutant.zone == zone]
        print(f"{zone}: {sum(mine)} of {len(mine)} found")
    share = sum(code in FOUND for code in exit_codes.values()) / max(1, len(chosen))
    print(f"{share:.1%} of {len(chosen)} found, drawn from {of}; {unsaid} survivors not said why")
    return int(share < WANTED or unsaid > 0)


if __name__ == "__main__":
    sys.exit(main())
