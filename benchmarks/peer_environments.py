"""Environments in which other tools run, and conversations with a script of ``benchmarks/peers/`` that runs in one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "peers"
TORCH = "torch==2.13.0"  # of every peer, as of ours


def python_of(folder: Path) -> str:
    """The Python of the virtual environment in that folder."""
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def make_environment(folder: Path, packages: Sequence[str], alone: Sequence[str] = ()) -> str:
    """The Python of a virtual environment with these packages, made there or, where it is already, used again.

    Args:
        folder: Of the environment.
        packages: As pip takes them, with what they depend on.
        alone: Packages without what they depend on, whichever Python they ask for.

    Raises:
        RuntimeError: Something cannot be installed.
    """
    python = python_of(folder)
    if not Path(python).exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *packages])
    if alone:
        _run([*pip, "--no-deps", "--ignore-requires-python", *alone])
    return python


def _run(command: list[str]) -> None:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(_last_line(found.stderr) or f"{' '.join(command)}: ended with {found.returncode}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def ask_peer(python: str, specification: dict[str, Any], script: str) -> dict[str, Any]:
    """The answer of a script to one specification, in a process of its own."""
    command = [python, "-W", "ignore", str(SCRIPTS / script)]
    specified = json.dumps(specification)
    return json.loads(subprocess.check_output(command, input=specified, env=clean_environment(), text=True))


def clean_environment() -> dict[str, str]:
    """This process's, without PYTHONPATH: it would put our packages, and what lies beside them, among the peer's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Worker:
    """A script's process, which answers one request after the other; what it writes as error is kept for a failure."""

    def __init__(self, python: str, script: str, *arguments: str, environment: dict[str, str] | None = None):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(SCRIPTS / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=clean_environment() if environment is None else environment,
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(_last_line(self.errors.read()) or f"ended with {code}, without a word")
        return json.loads(line)

    def close(self) -> None:
        """Let the process come to its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
