"""What pyproject.toml cannot say: the description that a package index shows, which cannot follow relative links."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def index_description() -> str:
    """The README with its links into the repository made absolute; as plain text while the project has no address."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = project["urls"].get("Repository", "").rstrip("/")

    def replaced(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if base:
            return f"{picture}[{words}]({base}/{'raw' if picture else 'blob'}/v{project['version']}/{target})"
        return "" if picture else words

    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)", replaced, text)


if __name__ == "__main__":
    setup(long_description=index_description(), long_description_content_type="text/markdown")
