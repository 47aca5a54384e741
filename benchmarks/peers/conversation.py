"""What the scripts that ``benchmarks/peers.py`` starts have in common: the case, peak memory, questions and answers.

Imports nothing of ours, so that a peer's environment needs the peer and torch only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[int], dict[str, Any]]  # seed ↦ microseconds per chain-step and λ̂ of the first draws


def build(specification: dict[str, Any]) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs and outputs of a case."""
    tensors = torch.load(specification["tensors"])
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in specification["layers"]))
    model.load_state_dict(tensors["weights"])
    return model, tensors["x"], tensors["y"]


def forget_peak() -> None:
    """Let the peak of memory begin anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that this process has held resident, since the peak was forgotten where that is possible.

    Not ``ru_maxrss`` where there is better: Linux starts it at what the parent held, and it cannot begin anew.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions(package: str) -> dict[str, Any]:
    return {
        package: importlib.metadata.version(package),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def serve(prepare: Callable[[dict[str, Any]], Run]) -> None:
    """Answer every line of standard input, a request as JSON, with one JSON line.

    The first request prepares the run. An answer is what the run says, the peak of memory beyond what was held before
    the first run, and the versions; or what ``failed``.
    """
    run: Run | None = None
    before = 0
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):  # whatever the library prints stays out of the answer
            try:
                if run is None:
                    torch.set_num_threads(request["threads"])
                    run = prepare(request)
                    forget_peak()
                    before = peak_bytes()
                answer = run(request["seed"])
                answer |= {"peak_bytes": peak_bytes() - before, "about": versions(request["package"])}
            except Exception as error:  # a way that does not work is a fact of the table
                first = next(iter(str(error).splitlines()), "")
                answer = {"failed": f"{type(error).__name__}: {first[:200]}"}
        print(json.dumps(answer), flush=True)
