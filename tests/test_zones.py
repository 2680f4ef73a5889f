"""The borders of the house: who may import what, and that each heavy library stays in its zone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anysigma"

# From the ground up: a zone may import the floors below its own, none of its own floor's others and none above.
FLOORS = (
    {"diffusion", "networks", "machine"},
    {"data"},
    {"metrics"},
    {"report"},
    {"studies", "runs", "hydra_plugins"},
    {"training", "interop", "compose"},
    {"evaluation"},
)
FLOOR = {zone: number for number, zones in enumerate(FLOORS) for zone in zones}
TORCH_ALONE = ("diffusion", "networks")
# Which heavy library may be imported from which floor up; hydra and omegaconf belong to compose and what stands on it.
FROM = {"lightning": "data", "torchmetrics": "metrics", "torch_fidelity": "metrics", "wandb": "training"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth of its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "hydra_plugins").rglob("*.py")])


def zone(path: Path) -> str:
    """The folder below the package that a file belongs to; "" for what lies loose."""
    parts = path.relative_to(PACKAGE if PACKAGE in path.parents else PACKAGE.parent).parts
    return parts[0] if len(parts) > 1 else ""


def entered(path: Path) -> set[str]:
    """The other zones of ours that a file imports."""
    ours = (name.split(".") for name in imports(path) if name.startswith("anysigma."))
    return {parts[1] for parts in ours} - {zone(path)}


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_every_module_has_a_room():
    assert [path.name for path in sources() if zone(path) == ""] == ["__init__.py"]
    assert {zone(path) for path in sources()} - {""} <= FLOOR.keys()


@pytest.mark.parametrize("path", [p for p in sources() if zone(p)], ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_imports_run_downhill(path):
    uphill = {other for other in entered(path) if FLOOR[other] >= FLOOR[zone(path)]}
    assert uphill == set()


def test_compose_knows_of_ours_what_makes_a_run_what_is_secret_and_no_more():
    for path in (p for p in sources() if zone(p) == "compose"):
        ours = {name for name in imports(path) if name.startswith("anysigma.") and not name.startswith("anysigma.compose")}
        assert ours <= {"anysigma.runs.identity", "anysigma.machine.secrets"}, path


@pytest.mark.parametrize("path", [p for p in sources() if zone(p) in TORCH_ALONE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_maths_imports_torch_and_the_standard_library_alone(path):
    assert roots(path) <= {"torch", "anysigma", *sys.stdlib_module_names}
    assert entered(path) == set()


def test_every_heavy_library_stays_on_its_floor():
    for path in sources():
        for library, lowest in FROM.items():
            assert library not in roots(path) or FLOOR[zone(path)] >= FLOOR[lowest], (path, library)


def test_only_composition_and_what_stands_on_it_knows_hydra_and_omegaconf():
    knowing = {zone(path) for path in sources() if roots(path) & {"hydra", "omegaconf"}}
    assert knowing <= {"compose", "evaluation", "hydra_plugins"}


def test_names_say_where_one_is():
    stems = [path.stem for path in sources() if path.stem not in ("__init__", "base", "job")]
    assert {stem for stem in stems if stems.count(stem) > 1} == set()
    assert not set(stems) & {"utils", "helpers", "common", "misc"}


def test_the_border_check_sees_a_breach(tmp_path):
    path = tmp_path / "breach.py"
    path.write_text("def f():\n    import lightning.pytorch\n")
    assert not roots(path) <= {"torch", "anysigma", *sys.stdlib_module_names}


def test_instantiate_is_called_once_in_the_whole_house():
    calls = [
        path.name
        for path in [*PACKAGE.rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "instantiate"
    ]
    assert calls == ["config.py"]


def test_range_conversions_stand_in_one_file():
    assert [p.name for p in PACKAGE.rglob("*.py") if "127.5" in p.read_text()] == ["images.py"]


def test_the_mathematics_starts_without_any_heavy_library():
    code = (
        "import sys, anysigma.diffusion.samplers.generalized, anysigma.diffusion.objective;"
        "import anysigma.networks.unet, anysigma.diffusion.schedules.linear;"
        "print([m for m in ('lightning', 'hydra', 'omegaconf', 'wandb', 'torchvision', 'torchmetrics') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_anysigma_makes_torchvision_importable():
    code = "import anysigma, torchvision, torchmetrics, lightning.pytorch, torch_fidelity; print('all')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "all", done.stderr[-500:]


def test_nothing_that_must_never_happen_is_in_the_source():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}: bare except"
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "load"
                and getattr(node.func.value, "id", "") == "torch"
            ):
                keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert keywords.get("weights_only") is True, f"{path}: torch.load without weights_only=True"
