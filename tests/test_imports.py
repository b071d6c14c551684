"""`import longlens` and `longlens --help` are quick: nothing heavy is imported before it is used."""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Collection
from importlib import import_module
from pathlib import Path

import pytest

import longlens
from longlens.errors import UserError, broken_package, library_errors, require

HEAVY = ("torch", "transformers", "pyarrow", "datasets", "scipy", "matplotlib", "jinja2")


def imported_by(program):
    """Which of the heavy packages a fresh Python has imported after a program."""
    report = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by("import longlens") == []


def test_the_check_can_fail():
    assert imported_by("import longlens\nlonglens.open_scores") == ["pyarrow"]


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["bench", "list"], ["--version"], ["--nosuch"]])
def test_asking_the_command_line_imports_nothing_heavy(arguments):
    assert imported_by(f"import longlens.cli\nlonglens.cli.main({arguments!r})") == []


def test_what_works_on_stored_scores_imports_no_torch():
    modules = ["keytokens", "metrics", "metrics.longppl", "metrics.comparison", "scoring.store", "scoring.scorer"]
    modules += [
        "metrics.context_reach",
        "report",
        "report.figures",
        "study.correlate",
        "bench.run",
        "bench.results",
        "bench.table",
        "tasks",
    ]
    program = "\n".join(f"import longlens.{module}" for module in modules)
    assert set(imported_by(program)) <= {"pyarrow", "scipy", "jinja2"}


def test_every_name_resolves():
    assert sorted(longlens.__all__) == longlens.__all__
    for name in longlens.__all__:
        assert callable(getattr(longlens, name)), name
    assert set(longlens.__all__) <= set(dir(longlens))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'longlens' has no attribute 'nosuch'"):
        longlens.nosuch  # noqa: B018


def imported(path: Path, modules: Collection[str]) -> set[str]:
    """Modules of longlens that a file imports, inside functions too, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found & set(modules)


def test_no_module_imports_itself_by_way_of_others():
    source = Path(longlens.__file__).parents[1]
    files = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (source / "longlens").rglob("*.py")
    }
    graph = {name: imported(path, files) - {name} for name, path in files.items()}
    assert sum(map(len, graph.values())) > len(graph), "the search finds nothing"
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


def install(folder, name, code):
    """A package whose import runs the code, as pip installs it."""
    (folder / name / "core").mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n")
    (info / "top_level.txt").write_text(f"{name}\n")


BROKEN = {
    "import nosuchmodule.part": r"\(No module named 'nosuchmodule'\): pip install nosuchmodule, or pip uninstall br",
    "from json import nosuch": r"\(cannot import name 'nosuch' from 'json' .*\): pip install --force-reinstall broken",
    "raise OSError('libnosuch.so: cannot open')": r"\(OSError: libnosuch.so: cannot open\): pip install --force-re",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_package_that_cannot_be_imported_is_named(code, tmp_path, monkeypatch):
    install(tmp_path, "broken", code)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("broken", "mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    said = f"the installed package broken cannot be imported {BROKEN[code]}"

    def load():
        try:
            import_module("broken")
        except Exception as error:
            raise ModuleNotFoundError("Could not import module 'Model'") from error  # as transformers does

    with pytest.raises(UserError, match=f"^{said}"), library_errors("a model", "check it"):
        load()
    with pytest.raises(UserError, match=f"^x needs the package 'broken': {said}"):
        require("broken", extra="gguf", purpose="x")
    with pytest.raises(UserError, match=r"^mine: .*: fix it$"), library_errors("mine", "fix it"):
        import_module("mine")
    with pytest.raises(UserError, match=r"^x needs the package 'absent', which is not installed"):
        require("absent", extra="gguf", purpose="x")


def test_a_package_that_longlens_requires_is_not_to_be_removed(tmp_path, monkeypatch):
    install(tmp_path, "needed", "from json import nosuch")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["needed[all]>=1", "other; extra == 'x'"])
    with pytest.raises(ImportError) as raised:
        import_module("needed")
    assert (broken_package(raised.value) or "").endswith("): pip install --force-reinstall needed")


def test_a_broken_package_that_transformers_imports_ends_commands_in_one_line(tmp_path):
    install(tmp_path, "hqq", "import nosuchmodule")
    command = [sys.executable, "-m", "longlens", "plan", "score", "--model", "smollm2", "--length", "64"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    said = "(No module named 'nosuchmodule'): pip install nosuchmodule, or pip uninstall hqq\n"
    assert (ended.returncode, ended.stderr) == (2, f"error: the installed package hqq cannot be imported {said}")
