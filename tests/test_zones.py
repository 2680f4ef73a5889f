"""The borders of the house: who may import what, and that each heavy library stays in its zone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "anysigma"
MATHS = [
    "schedules",
    "samplers",
    "networks",
    "gaussian.py",
    "parameterizations.py",
    "denoiser.py",
    "objective.py",
    "noise.py",
    "bound.py",
    "exact.py",
]
COMPOSITION = ["config.py", "cli.py", "names.py", "stored.py"]


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth of its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def files(places: list[str]) -> list[Path]:
    return [f for place in places for f in ([PACKAGE / place] if place.endswith(".py") else (PACKAGE / place).rglob("*.py"))]


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files(MATHS), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_maths_imports_torch_and_the_standard_library_alone(path):
    assert roots(path) <= {"torch", "anysigma", *sys.stdlib_module_names}


def test_maths_imports_no_other_room():
    allowed = {f"anysigma.{m.removesuffix('.py')}" for m in MATHS}
    for path in files(MATHS):
        ours = {name for name in imports(path) if name.startswith("anysigma")}
        assert all(any(name == a or name.startswith(a + ".") for a in allowed) for name in ours), path


def test_only_composition_knows_hydra_and_omegaconf():
    outside = [p for p in PACKAGE.rglob("*.py") if p.name not in COMPOSITION]
    assert {
        str(p.relative_to(PACKAGE)): roots(p) & {"hydra", "omegaconf"} for p in outside if roots(p) & {"hydra", "omegaconf"}
    } == {}


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
    assert [p.name for p in PACKAGE.rglob("*.py") if "127.5" in p.read_text() and p.name != "fidelity.py"] == ["images.py"]


def test_the_mathematics_starts_without_any_heavy_library():
    code = (
        "import sys, anysigma.samplers.generalized, anysigma.objective, anysigma.networks.unet, anysigma.schedules.linear;"
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
