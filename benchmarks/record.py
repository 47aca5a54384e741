"""What a benchmark records beside its figures: of which commit and machine they are, and how they scatter."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent


def machine_facts() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    facts = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return facts | {"torch": torch.__version__, "python": platform.python_version()}


def commit() -> str:
    """Such as ``ea143d3``, with ``-dirty`` behind it where files differ from it; empty outside of git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
