"""Run every notebook in a process of its own, and write it with its outputs: what `make notebooks` does.

python .ci/notebooks.py                    at full size, to out/notebooks/
python .ci/notebooks.py --small            at the size of the tests, to out/notebooks-small/: `make notebooks-test`
python .ci/notebooks.py known_truth        one alone

The tests run the build itself, and not the files as plain scripts, so that what a reader gets is what was tested:
cells, kernel, and inline figures. Exit status 1 if a notebook fails, warns, draws nothing or asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1200  # seconds that one cell may take


def main() -> int:
    """Build what was asked for, one after another; how many failed is said at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of notebooks; all by default")
    parser.add_argument("--small", action="store_true", help="at the size of the tests")
    parser.add_argument("--out", type=Path, help="where the .ipynb files go")
    asked = parser.parse_args()
    out: Path = asked.out or ROOT / "out" / ("notebooks-small" if asked.small else "notebooks")
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted((ROOT / "notebooks").glob("*.py"))
    unknown = set(asked.names) - {path.stem for path in paths}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}; expected some of {', '.join(path.stem for path in paths)}")
    os.environ["SLT_NOTEBOOK_SIZE"] = "small" if asked.small else "full"
    os.environ.pop("MPLBACKEND", None)  # the kernel draws inline
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # or jupyter_core warns that it will become the default
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # no widgets are wanted in files
    failed = [path.stem for path in paths if path.stem in (asked.names or path.stem) and not _build(path, out)]
    print(f"{len(asked.names or paths) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


def _build(path: Path, out: Path) -> bool:
    """Run one notebook, write it, and say what came of it."""
    notebook = jupytext.read(path)
    start = perf_counter()
    wrong = []
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=LONGEST, kernel_name="python3", resources={"metadata": {"path": ROOT}}
        )
        # sockets that are files of this run's own: no port that others could talk to, and two builds may run at once
        client.config.KernelManager.transport = "ipc"
        client.config.KernelManager.ip = f"{folder}/kernel"
        try:
            client.execute()
        except CellExecutionError as error:
            wrong.append(str(error))
    seconds = perf_counter() - start
    nbformat.write(notebook, out / f"{path.stem}.ipynb")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    noise = "".join(output.text for output in outputs if output.get("name") == "stderr")
    if not figures and not wrong:
        wrong.append("it draws no figure")
    if noise:
        wrong.append(f"it writes to stderr:\n{noise}")
    if not re.search(r"^assert ", path.read_text(), re.MULTILINE):
        wrong.append("it asserts no figure")
    print(f"{path.stem:<28} {seconds:>6.0f} s  {figures:>2} figures  {'FAILED' if wrong else 'ok'}", flush=True)
    for reason in wrong:
        print(reason, file=sys.stderr, flush=True)
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
