"""Run both columns of ``docs/migration.md``, and write what they give to ``benchmarks/results/migration.json``.

    python benchmarks/migration.py --devinterp-python PATH --devinterp2-python PATH  # of environments that have them
    python benchmarks/migration.py --make-environments .venv-peers                   # made there first

The page's own blocks are run, in order: those of the left column by devinterp (1.3.2 in the first part, 2.0.1 in the
second), those of the right by this package, each part in one process of one thread; blocks outside the table in both.
The number of a block is the last name that it assigns. Of λ̂ on the left the standard error is found from its own
losses as we find ours, by ``samplers.diagnose`` over windows of an epoch.

A pair agrees where it differs by less than Z standard errors of both, or by rounding where nothing is random. The exit
status is 1 where one does not. With Z = 3.5 one of the seven random pairs fails in 1 of 300 runs
though all are equal.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samplers import diagnose

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "migration.md"
RESULTS = HERE / "results" / "migration.json"
Z = 3.5
ROUNDING = 5e-6  # relative: of losses in float32 λ̂ is a difference, 1.2e-7 · nβL/λ̂, and nβL is 20 times λ̂ here
PEERS = {"1": "devinterp==1.3.2", "2": "devinterp==2.0.1"}
EPOCHS = {"1": 10, "2": 4}  # batches in one, in the parts of the page


class Pair(NamedTuple):
    """A row of the page: what stands above it, and its two blocks."""

    title: str
    left: str
    right: str


class Part(NamedTuple):
    """What one version of devinterp is compared on: blocks that both need, or ours alone, and pairs, in order."""

    peer: str
    blocks: list[str | Pair]


def parts(page: str) -> list[Part]:
    """The parts of the page with their blocks.

    Args:
        page: Its text.

    Returns:
        One for each version.
    """
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        if not (version := re.match(r"devinterp (\d)\.x\n", section)):
            continue
        blocks: list[str | Pair] = []
        title = ""
        pieces = re.finditer(r"^### (?P<title>[^\n]*)$|<table>(?P<table>.*?)</table>|^```python\n(?P<code>.*?)^```",
                             section, re.DOTALL | re.MULTILINE)  # fmt: skip
        for piece in pieces:
            if piece["title"]:
                title = piece["title"].replace("`", "")
            elif piece["table"]:
                left, right = re.findall(r"^```python\n(.*?)^```", piece["table"], re.DOTALL | re.MULTILINE)
                blocks.append(Pair(title, left, right))
            else:
                blocks.append(piece["code"])
        found.append(Part(version[1], blocks))
    return found


def ours_alone(code: str) -> bool:
    """Whether a block outside the tables is of our side."""
    return "slt." in code


def columns(part: Part) -> tuple[list[str], list[str]]:
    """What is run on the left, and on the right."""
    left = [block.left if isinstance(block, Pair) else block for block in part.blocks
            if isinstance(block, Pair) or not ours_alone(block)]  # fmt: skip
    return left, [block.right if isinstance(block, Pair) else block for block in part.blocks]


def fingerprint(page: str) -> str:
    """Of all code of the page, in order, however it is laid out."""
    code = [column for part in parts(page) for column in columns(part)]
    trees = [[ast.dump(ast.parse(block)) for block in column] for column in code]
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()[:16]


def ask(python: str, blocks: list[str], folder: str) -> dict[str, Any]:
    # PYTHONPATH would put our packages, and whatever lies beside them, into the peer's environment
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(HERE.parent.resolve())
    command = [python, "-W", "ignore", str(HERE.resolve() / "peers" / "run_blocks.py")]
    answer = subprocess.run(
        command, input=json.dumps(blocks), env=environment, text=True, stdout=subprocess.PIPE, check=True, cwd=folder
    )
    return json.loads(answer.stdout.splitlines()[-1])


def error_of(found: dict[str, Any], window: int) -> float:
    """The standard error of λ̂ from the losses of its draws, in units of the loss."""
    return diagnose(np.array(found["losses"]), window).mcse


def n_beta_of(code: str, n_beta: float) -> float:
    """nβ of a block: a number in it, or the name of one that was found before."""
    stated = re.search(r"n_?beta\"?[:=] ?([\d.]+)", code)
    return float(stated[1]) if stated else n_beta


def compare(part: Part, peer_python: str) -> dict[str, Any]:
    """Both columns of a part, run, and their numbers side by side."""
    left_code, right_code = columns(part)
    with tempfile.TemporaryDirectory() as folder:  # where the right column finds what the left one wrote
        left, right = ask(peer_python, left_code, folder), ask(sys.executable, right_code, folder)
    of_left, of_right = iter(left["blocks"]), iter(right["blocks"])
    rows, n_beta = [], math.nan
    for block in part.blocks:
        ours = next(of_right)
        if not isinstance(block, Pair):
            if not ours_alone(block):
                next(of_left)
            elif "number" in ours:
                rows.append({"title": "alone", "right": rounded(ours)})
            continue
        theirs = next(of_left)
        if re.search(r"^n_beta = ", block.left, re.MULTILINE):
            n_beta = theirs["number"]
        if "losses" in theirs:
            theirs["mcse"] = n_beta_of(block.left, n_beta) * error_of(theirs, EPOCHS[part.peer])
        apart = abs(theirs["number"] - ours["number"])
        error = math.hypot(theirs.get("mcse", 0.0), ours.get("mcse", 0.0))
        agrees = apart <= (Z * error if error else ROUNDING * abs(ours["number"]))
        rows.append({
            "title": block.title,
            "left": rounded(theirs),
            "right": rounded(ours),
            "standard_errors_apart": round(apart / error, 2) if error else None,
            "agrees": agrees,
        })
        said = [block.title, shown(rows[-1]["left"]), shown(rows[-1]["right"]), "" if agrees else "NOT EQUAL"]
        print("{:40} {:20} {:20} {}".format(*said), flush=True)
    return {"peer": PEERS[part.peer], "rows": rows, "versions": {"left": left["versions"], "right": right["versions"]}}


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "losses"}


def shown(found: dict[str, Any]) -> str:
    """A number as it stands on the page.

    Args:
        found: With its ``number`` and, where it is random, ``mcse``.

    Returns:
        Such as ``2.512 ± 0.041``; with seven digits where nothing is random, or all of a count.
    """
    number, mcse = found["number"], found.get("mcse")
    if mcse is not None:
        digits = max(0, 1 - math.floor(math.log10(mcse)))
        return f"{number:.{digits}f} ± {mcse:.{digits}f}"
    return f"{number:.0f}" if number == int(number) else f"{number:.6f}"


def environment(folder: Path, requirement: str) -> str:
    """The Python of an environment that has a peer, made there or used again."""
    folder = folder / requirement.replace("==", "-")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "-c", str(HERE.parent / "constraints.txt")]
    subprocess.run([*pip, requirement, "torch"], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devinterp-python", help="of an environment that has devinterp 1.3.2")
    parser.add_argument("--devinterp2-python", help="of an environment that has devinterp 2.0.1")
    parser.add_argument("--make-environments", metavar="DIR", type=Path, help="make them there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    pythons = {"1": options.devinterp_python, "2": options.devinterp2_python}
    if options.make_environments is not None:
        pythons = {name: environment(options.make_environments, requirement) for name, requirement in PEERS.items()}
    if None in pythons.values():
        parser.error("give --devinterp-python and --devinterp2-python, or --make-environments")
    page = PAGE.read_text()
    found = {
        "code": fingerprint(page),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}",
        "z": Z,
        "parts": [compare(part, pythons[part.peer]) for part in parts(page)],
    }
    options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return int(not all(row.get("agrees", True) for part in found["parts"] for row in part["rows"]))


if __name__ == "__main__":
    sys.exit(main())
