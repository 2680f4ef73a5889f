"""The jobs of a sweep: processes on submitit's local executor, how they run and stop, and what became of them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths
from submitit.local.local import LocalExecutor, LocalJob

from anysigma.machine.hardware import cores
from anysigma.report.results import read_results

LOOK_EVERY = 0.1  # seconds
GRACE = 5.0  # seconds that processes have between SIGTERM and SIGKILL when the one that started them has gone
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AN_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


class Alone(LocalExecutor):
    """submitit's local executor without its controller: a job is one process, in a session of its own.

    The controller hides every GPU, ends a job after a time limit, and at Ctrl-C kills it within a second.
    """

    def __init__(self, folder: str, job_id: str, env: dict[str, str]):
        super().__init__(folder)
        self.job_id, self.env = job_id, env

    def _submit_command(self, command: str) -> LocalJob:
        paths = JobPaths(self.folder, self.job_id)
        paths.folder.mkdir(parents=True, exist_ok=True)
        paths.submitted_pickle.unlink(missing_ok=True)  # of this job's last time: the new process must not read it
        env = {**self.env, "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": self.job_id}
        with paths.stdout.open("a") as out, paths.stderr.open("a") as err:
            process = subprocess.Popen(
                shlex.split(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True
            )
        return LocalJob(self.folder, self.job_id, process=process)


class Job:
    """A command with its folder. `code`: how it ended, None before; `reason`: one line where it failed.

    `needs`: what a trial of its hardware depends on, None where there is none to make; `env`: its own, beside all jobs'.
    """

    def __init__(
        self, number: int | str, total: int, words: str, folder: Path, command: list[str], submitit_folder: str,
        needs: str | None = None,
    ):  # fmt: skip
        self.needs, self.env = needs, {}
        self.words, self.folder, self.command, self.submitit_folder = words, folder, command, submitit_folder
        self.id, self.name = str(number), f"{number}/{total} {words}"
        self.code: int | None = None
        self.reason, self._asked, self._said_before = "", False, 0
        self._paths = JobPaths(submitit_folder, self.id)

    @property
    def log(self) -> str:
        """The file with its errors, as a person would type it."""
        return os.path.relpath(self._paths.stderr)

    def start(self, env: dict[str, str]) -> None:
        """Submit it: submitit's process unpickles one call, execv, and becomes the command."""
        say(self._begins())
        self._said_before = self._paths.stderr.stat().st_size if self._paths.stderr.exists() else 0
        job = Alone(self.submitit_folder, self.id, {**env, **self.env}).submit(os.execv, sys.executable, self.command)
        self._process: subprocess.Popen[Any] = job._process

    def stop(self, times: int) -> None:
        """SIGTERM, at which training saves; the second time SIGKILL for all of it."""
        self._asked = True
        if times < 2:
            self._process.terminate()
        else:
            self._signal_all(signal.SIGKILL)

    def ended(self) -> bool:
        """Whether it has; then its outcome is said, and nothing that it started is left behind."""
        self.code = self._process.poll()
        if self.code is None:
            return False
        if self.code != 0:
            self.clear()
            if not self._asked:
                self.reason = self._why()
        say(f"{self.name}  {self._outcome()}")
        if self.reason and os.environ.get("ANYSIGMA_TRACE") == "1":
            say(self._errors())
        return True

    def clear(self) -> None:
        """End whatever of it still runs: SIGTERM, and SIGKILL after a while."""
        until = time.monotonic() + GRACE
        self._signal_all(signal.SIGTERM)
        while self._signal_all(0) and time.monotonic() < until:
            self._process.poll()
            time.sleep(LOOK_EVERY)
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> bool:
        """Send it to every process of the job; whether there is any."""
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _begins(self) -> str:
        return f"{self.name}  → {self.folder}"

    def _outcome(self) -> str:
        if self.reason:
            return f"failed: {self.reason}"
        if self.code != 0:
            return "stopped and saved" if self.code == 128 + signal.SIGTERM else "stopped"
        with suppress(ValueError):  # there is none
            return "; ".join(lines(read_results(self.folder / "results.json")))
        return "done"

    def _why(self) -> str:
        said = [line.strip() for line in self._errors().splitlines() if line.strip()]
        error = next((line for line in reversed(said) if AN_ERROR.match(line)), None)
        if self.code < 0 and error is None:
            return f"ended by {signal.Signals(-self.code).name}"
        return (error or (said or [f"exit code {self.code}"])[-1]).removeprefix("error: ")

    def _errors(self) -> str:
        """What it said this time on stderr."""
        with self._paths.stderr.open("rb") as file:
            file.seek(self._said_before)
            return file.read().decode(errors="replace")


def lines(results: dict[str, Any]) -> list[str]:
    """What a person is told of results.json: a run's lines, or those of an evaluation's studies."""
    found = results.get("lines") or [line for section in results.get("sections", ()) for line in section["lines"]]
    return found or [f"finished at step {results['step']}" if "step" in results else "done"]


def run(jobs: Sequence[Job], at_once: int, env: dict[str, str], asked: Sequence[int]) -> None:
    """The jobs in turn, at most `at_once` at a time; none starts after a signal in `asked`, and none is left running."""
    waiting, running, heard = deque(jobs), [], 0
    try:
        while running or (waiting and not asked):
            while waiting and len(running) < at_once and not asked:
                waiting[0].start(env)
                running.append(waiting.popleft())
            time.sleep(LOOK_EVERY)
            while heard < len(asked):
                heard += 1
                if heard == 1:
                    say("stopping when what runs is saved; asked again, at once", sys.stderr)
                for job in running:
                    job.stop(heard)
            running = [job for job in running if not job.ended()]
    finally:
        for job in running:
            job.clear()


def environment(at_once: int) -> dict[str, str]:
    """This one, for jobs of which `at_once` share the cores; each of them cares for its own errors."""
    env = dict(os.environ)
    if env.get("ANYSIGMA_TRACE") != "1":
        env.pop("HYDRA_FULL_ERROR", None)  # set by anysigma.compose.cli for this process
    if at_once > 1 and not env.get("OMP_NUM_THREADS"):
        env["OMP_NUM_THREADS"] = str(max(1, cores() // at_once))
    return env


@contextmanager
def noted() -> Iterator[list[int]]:
    """The signals that ask to stop, as they come, in place of what they do; an ignored one (nohup) stays ignored."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPPING}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def say(line: str, file: Any = None) -> None:
    """One line, if anybody still listens: the terminal may have gone while jobs save."""
    with suppress(OSError):
        print(line, file=file, flush=True)
