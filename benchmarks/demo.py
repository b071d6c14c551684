"""Records the output of `longlens demo` for its page.

python -m benchmarks.demo        (about two minutes on two cores)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from benchmarks.tables import fill_block, machine


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "longlens", "demo", "-o", f"{folder}/run"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(printed)
    where = f"(`python -m benchmarks.demo`: {machine()}, Python {sys.version.split()[0]})"
    fill_block("docs/demo.md", "demo", f"```\n{printed.rstrip()}\n```\n\n{where}\n")


if __name__ == "__main__":
    main()
