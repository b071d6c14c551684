"""`import longlens` and `longlens --help` are quick: nothing heavy is imported before it is used."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

import longlens

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
