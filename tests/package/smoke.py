"""Is an installed wheel whole? Runs away from the checkout: data files, the commands, a score of a real model."""

import importlib.resources
import subprocess
import sys
import tempfile
from pathlib import Path

import longlens

FILES = (
    "py.typed",
    "recipes/studies",
    "recipes/train",
    "report/page",
    "study/published",
)
SCORE = "stdlib:textwrap --model gemma3-270m --context 64 --stride 32 --max-length 256 --dtype float32"


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", "longlens", *arguments], check=True)


def main() -> None:
    assert "site-packages" in str(longlens.__file__), longlens.__file__
    for file in FILES:
        assert importlib.resources.files("longlens").joinpath(file).exists(), file
    assert all(hasattr(longlens, name) for name in longlens.__all__)
    with tempfile.TemporaryDirectory() as folder:
        run("--version")
        run("score", *SCORE.split(), "-o", f"{folder}/scores")
        run("perplexity", f"{folder}/scores", "--evaluator-scores", f"{folder}/scores")
        run("report", f"{folder}/scores", "--evaluator-scores", f"{folder}/scores", "-o", f"{folder}/report.html")
        run("study", "published", "5")
        assert Path(folder, "report.html").stat().st_size > 10_000
    print("the wheel works")


if __name__ == "__main__":
    main()
