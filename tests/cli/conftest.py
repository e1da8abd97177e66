"""Running the command line inside this process, and in real ones that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from zoopt_nas_cli.main import run

SMALL_SPACES = Path(__file__).parents[1] / "small_spaces"

# A process that has torch imported already and forks one child for each command: a child is a real
# process that runs the real main(), but it starts in milliseconds. With "at_write": [(n, signal)]
# it sends itself that signal before the n-th time that it opens a file of its folder for writing,
# makes a folder or renames something.
_SERVER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
from zoopt_nas import nas
from zoopt_nas.nas.search import run as search
from zoopt_nas.nas.retraining import retrain
from zoopt_nas_cli.main import main, run

# What is imported at the first option and at an optimizer's first step takes a second: do it here.
run(["search", "--epochs", "0"])
import array_api_compat.torch
weight = torch.zeros(1, requires_grad=True)
weight.grad = torch.ones(1)
sgd = torch.optim.SGD([weight], 0.1)
sgd.zero_grad(set_to_none=False)
sgd.step()

def signal_at_writes(signals, folder):
    signals = dict(signals)
    n_writes = 0
    def hook(event, args):
        nonlocal n_writes
        if event not in ("open", "os.rename", "os.mkdir") or isinstance(args[0], int):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.fsdecode(args[0])
        if not os.path.isabs(path) or path.startswith(folder):
            n_writes += 1
            if n_writes in signals:
                os.kill(os.getpid(), signals[n_writes])
    sys.addaudithook(hook)

for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    code = 99
    try:
        os.chdir(task["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        if task["at_write"]:
            signal_at_writes(task["at_write"], task["cwd"])
        sys.argv = ["zoopt-nas", *task["arguments"]]
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
"""


@dataclass
class Result:
    """What a command ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys) -> Callable[..., Result]:
    """``cli("search", "--epochs", 3)`` runs a command in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(cli, tmp_path, monkeypatch) -> Callable[..., str]:
    """``refused("search", ...)`` is the one line of a command that must end with exit code 2.

    It must leave the folder ``tmp_path``, in which it runs, as it was.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, code: int = 2) -> str:
        before = listing(tmp_path)
        result = cli(*arguments)
        assert result.code == code, result
        assert result.err.startswith("error: "), result
        assert result.err.count("\n") == 1, result
        assert result.err.endswith("\n"), result
        assert "Traceback" not in result.err
        assert listing(tmp_path) == before
        return result.err[len("error: ") : -1]

    return call


def listing(folder: Path) -> list[tuple[str, int, bytes]]:
    """Every file below a folder with its time and its contents."""
    return sorted(
        (
            str(path.relative_to(folder)),
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    )


class Process:
    """A command in a process of its own."""

    def __init__(self, server: Server, pid: int, out: Path, err: Path) -> None:
        self._server, self.pid, self._out, self._err = server, pid, out, err
        self._result: Result | None = None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)  # not waited for yet, so the id is still its own

    def kill(self) -> Result:
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self) -> Result:
        if self._result is None:
            code = self._server.ask(wait=self.pid)
            self._result = Result(code, self._out.read_text(), self._err.read_text())
        return self._result


class Server:
    """Starts commands in processes of their own, quickly.

    Attributes:
        environment: of processes that have the spaces ``small_s3`` and ``small_s4``.
    """

    def __init__(self) -> None:
        path = [str(SMALL_SPACES), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **task: object) -> int:
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(
        self, *arguments: object, cwd: Path, at_write: Sequence[tuple[int, int]] = ()
    ) -> Process:
        cwd.mkdir(parents=True, exist_ok=True)
        out, err = cwd.parent / f"{cwd.name}.out", cwd.parent / f"{cwd.name}.err"
        pid = self.ask(
            arguments=[str(argument) for argument in arguments],
            cwd=str(cwd),
            out=str(out),
            err=str(err),
            at_write=at_write,
        )
        return Process(self, pid, out, err)

    def run(
        self, *arguments: object, cwd: Path, at_write: Sequence[tuple[int, int]] = ()
    ) -> Result:
        return self.start(*arguments, cwd=cwd, at_write=at_write).wait()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def server():
    started = Server()
    yield started
    started.close()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Polls a condition, and fails if it does not come true."""

    def poll(condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.001)

    return poll
