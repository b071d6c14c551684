"""The command line as a user has it: a folder with documents and models in it, and one call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from longlens.cli import main

TEXT = "It was the best of times, it was the worst of times. " * 4


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong, checked to be the only one."""
        assert (self.code, self.out) == (2, ""), self
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        return lines[0]


@pytest.fixture
def work(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with texts and links to the models."""
    folder = tmp_path / "work"
    folder.mkdir()
    for model in models.iterdir():
        (folder / model.name).symlink_to(model)
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text("Another text, Straße 🙂 naïve. " * 5)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command in this process; `run.json` gives the object that it printed."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    def as_json(*arguments: object) -> dict:
        ended = call(*arguments, "--json")
        assert ended.code == 0, ended.err
        assert ended.out.count("\n") == 1
        return json.loads(ended.out)

    call.json = as_json
    return call


@pytest.fixture(scope="session")
def scored(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders: `llama` and `other` on the same two texts."""
    folder = tmp_path_factory.mktemp("scored")
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"{name} text with some words in it. " * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model in ("llama", "other"):
            options = ["--context", "32", "--stride", "16", "-o", model]
            assert main(["score", "a.txt", "b.txt", "--model", str(models / model), *options]) == 0
    return folder
