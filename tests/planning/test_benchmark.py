"""The comparison of plans and runs ends without a GPU, and without the packages that such a machine lacks."""

import json
import os
import subprocess
import sys

from tests.test_gpu_benchmark import BLOCKED, ROOT


def test_the_comparison_runs_from_a_checkout_with_few_packages(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    program = BLOCKED.replace("gpu", "plan")
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    content = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert content["left_out"] == []
    assert [run["model"] for run in content["runs"]] == ["tiny", "tiny"]
    assert all(run["planned_s"] > 0 and run["measured_s"] > 0 for run in content["runs"])
    assert (tmp_path / "out" / "plan.md").read_text().count("| tiny |") == 2
