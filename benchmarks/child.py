"""The parent's side: one process a contestant, which computes only while it is asked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.task import Task

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks/.venv/bin/python"


class Child:
    """A contestant in a process of its own. `who`: `module.function`; `facts`: what it said of itself when it was ready."""

    def __init__(self, who: str, task: Task, python: str | Path = sys.executable):
        self.who, self.task, self._log = who, task, Path(task.folder) / "log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, cwd=task.folder, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
            )  # fmt: skip
        self.facts = self.ask(who=who, task=task.plain())

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for its answer; raises RuntimeError with the end of its log where the child has died."""
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.who} ended: {self._log.read_text()[-3000:]}")
        return json.loads(line)

    def rate(self, **order: Any) -> tuple[float, dict[str, Any]]:
        """Images a second of one turn, and all that was answered."""
        answer = self.ask(**order)
        return answer["steps"] * self.task.batch / answer["seconds"], answer

    def close(self) -> None:
        """No more orders: it ends."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
