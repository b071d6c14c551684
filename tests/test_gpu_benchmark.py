"""The check that is run on a GPU runs to its end without one, and without the packages that such a machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCKED = """
import importlib.machinery, importlib.metadata, sys
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = ("datasets", "typer", "rich", "click", "lm_eval", "trl", "peft", "matplotlib")
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
version = importlib.metadata.version
def without_longlens(name):
    if name == "longlens":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without_longlens
from benchmarks import gpu
raise SystemExit(gpu.main(["-o", sys.argv[1]]))
"""


def test_the_gpu_check_runs_from_a_checkout_with_few_packages(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert content["failed"] == content["left_out"] == []
    expected = {"peak", "numbers", "scoring", "long pass alone", "training step", "attention"}
    expected |= {"vocabulary head", "profile"}
    assert set(content["tables"]) == expected | {"dtypes on real documents"}
    assert all(row["holds"] for row in content["tables"]["numbers"])
    assert (tmp_path / "out" / "gpu.md").read_text().count("### ") == 9
