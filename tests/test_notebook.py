"""The mathematics alone, as README shows it: torch and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
ABSENT = ("lightning", "hydra", "omegaconf", "numpy", "wandb", "torchvision", "torchmetrics", "torch_fidelity", "matplotlib")


def test_the_lines_in_readme_run_with_torch_alone():
    [lines] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code = (
        f"import sys, warnings; sys.modules.update(dict.fromkeys({ABSENT}))\n"
        "warnings.filterwarnings('ignore')\n"  # torch's, that numpy is missing
        "eps = lambda x_t, t: x_t * t[:, None, None, None] / 1000\n"
        f"{lines}\n"
        "print([list(x_0.shape) for x_0 in images], all(bool(x_0.isfinite().all()) for x_0 in images))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[[8, 1, 8, 8], [8, 1, 8, 8]] True", done.stderr[-1000:]
