"""The wheel, alone in a clean environment without extras: it imports and runs the README's ten lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_documents import python_blocks

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_alone(tmp_path):
    def run(*command, **changes):
        without_compiler = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")
        }
        result = subprocess.run(
            [str(part) for part in command],
            capture_output=True, text=True, check=False, cwd=tmp_path, env={**without_compiler, **changes},
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("slt_toolkit-*-py3-none-any.whl")  # pure Python: nothing to compile
    run(sys.executable, "-m", "venv", tmp_path / "clean")
    python = tmp_path / "clean/bin/python"
    # only-binary: a dependency that would need a compiler is an error
    run(python, "-m", "pip", "install", "-q", "--only-binary", ":all:", "-c", ROOT / "constraints.txt", wheel)
    installed = run(python, "-m", "pip", "list", "--format", "freeze")
    for extra in ("transformers", "safetensors", "scikit-learn", "lightning", "zarr", "pytest"):
        assert f"\n{extra}==" not in installed
    (tmp_path / "lines.py").write_text(python_blocks()[0])
    assert "LLC" in run(python, "lines.py", CC="/nonexistent", PATH=f"{tmp_path / 'clean/bin'}:/usr/bin:/bin")
    assert "healthy" in run(tmp_path / "clean/bin/slt", "validate", "--cases", "quadratic")
    run(python, "-c", "import slt, samplers; assert 'site-packages' in slt.__file__")
