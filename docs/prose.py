"""The prose of README and docs against proselint, and against the words of the style guide in CONTRIBUTING.

python -m docs.prose [FILE ...]        (part of `make check`; prints FILE:LINE: what to write instead)

Of Python files, which are src/longlens unless others are given, string literals (errors, warnings, help, titles of
tables and captions) and docstrings are checked for words.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "src/longlens")
# Not prose: code, what a command wrote, comments and addresses.
NO_PROSE = re.compile(
    r"<!-- \w+: generated -->.*?<!-- end -->|^```.*?^```|<!--.*?-->|`[^`\n]*(?:\n[^`\n]+)?`|\]\([^)]*\)|https?://\S+|^:::.*?$",
    re.DOTALL | re.MULTILINE,
)
GENERATED = ("docs/cli.md", "docs/results.md")  # by docs.cli and benchmarks.claims: checked for words alone
PROMPTS = ("src/longlens/tasks/helmet/judging.py",)  # whose texts are data
# What is not said here, and what is said instead.
WORDS = {
    r"goes on\b|go on\b|going on\b|went on\b": "continue, or resume",
    r"(?<!there )\bis no (?!longer|such)|(?<!there )\bare no (?!longer|such)": "is not a, or has no",
    r"\bso many\b": "the number",
    r"\bstands?\b|\bstood\b|\bstanding\b": "is, or precedes",
    r"\bbeside\b": "next to, with, in addition to",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bin silence\b": "silently",
    r"\bby the clock\b": "wall-clock time",
    r"\bheld? against\b": "compare with",
    r"\bhand(s|ed)? (it |them |these )?on\b": "pass",
    r"\brun folders?\b": "run directory",
    r"\b(is|are|be|was|were|been) cut\b|\bcut (to|at|for|by)\b": "truncate",
    r"\bgo(es)? by\b": "depend on",
    r"\btakes? (no|all|any|what|these|it|them|documents|a model|models|rows|texts) ": "accept, use",
    r"\btakes? (up to |about )?[\d,]+ (GB|MB|tokens|bytes)": "accept, need",
    r"\b(runs?|pieces?) of characters\b": "span",
    r"\bthe other way round\b": "reversed",
    r"\bup already\b": "running",
    r"\bbut for\b": "except",
    r"\botherwise than\b": "differently than",
    r"\blikeliest\b": "most likely",
    r"\bfor want of\b": "because there is no",
    r"\b(one|rows?|documents?|bytes|seconds) a (row|token|document|model|GPU|step|process|batch|node)\b": "one per",
    r"\b(neighbour|colour|licence|behaviour|favour|labelled|(quant|summar|standard|optim)is[ei])": "American spelling",
    r"\bby and by\b|\bof old\b|\bthereby\b|\bthereof\b|\bwherein\b": "plain words",
    r"\bsettled\b": "significant, or decided",
    r"(?<!\|)\brefuse(s|d)?\b(?! to)": "reject, or is an error",
    r"\bshort (pass|score|window score)(es|s)?\b": "short-context pass, short-context score",
    r"\bwhole numbers?\b": "integer",
    r"\bfrom \d[\d,]* on\b": "at least N",
    r"\bdata sets?\b": "dataset",
    r"\bthe hub\b|\bhub ids?\b": "Hub",
    r"\bhold(s|ing)? no\b": "contain no",
    r"\bfor a moment\b": "briefly",
    r"\bweighs? (1|less|more|a token|nothing)\b": "have weight 1, give a weight",
    r"\b(keep|kept|keeps|tell|told|tells) (\w+ )?apart\b": "separate, distinguish",
    r"\b(is|are) told by\b": "is identified by",
    r"\b(is|are) there twice\b": "occurs twice",
    r"\btakes? the place of\b": "replace",
    r"\bin the process\b": "in-process",
    r"\bwritten down\b": "stored",
    r"\bto be had\b|\bdealt out\b|\bset against\b": "plain words",
    r"\blikelier\b": "more likely",
}
# And in docstrings.
DOCSTRINGS = {
    r"\bso many\b": "the number",
    r"\blikewise\b": "what the other one is",
    r"\bholds? (?:\S+ ){1,9}against\b": "compare with",
    r"\bgoes on\b|\bgo on\b": "continue, or resume",
    r"\bwell or not\b": "successfully or not",
    r"\bwhole or not at all\b": "atomically",
    r"\b(that|which) cannot be[.,;]": "is invalid",
    r"\bfor ever\b|\banew\b|\bthereby\b": "plain words",
}
# Of proselint: what is wrong about prose like this, or in Markdown.
IGNORED = (
    "typography",  # quotes and dashes are ASCII
    "lexical_illusions",  # headings and cells
    "restricted",
    "cliches",  # a needle in a haystack is a benchmark
    "misc.phrasal_adjectives",
    "misc.but",
    "uncomparables",
    "weasel_words",
    "hedging",
    "spelling",
    "skunked_terms",
    "needless_variants",
    "annotations",
    "dates_times",
    "industrial_language",
    "nonwords",
    "terms",
)


def prose_of(text: str) -> str:
    """The text with all that is no prose blanked, so that lines and columns stay."""
    return NO_PROSE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def unwanted(text: str, unwanted_words: Mapping[str, str] = WORDS) -> Iterator[tuple[int, str]]:
    """Lines, from 1, with words that are not to be used, and what to write instead."""
    for words, instead in unwanted_words.items():
        for match in re.finditer(words, text, re.IGNORECASE if "Hub" not in instead else 0):
            yield text.count("\n", 0, match.start()) + 1, f"{match[0]!r}: {instead}"


def messages_of(code: str) -> str:
    """Python code with all but its string literals blanked, so that lines stay; docstrings and single words go too."""
    lines = [""] * (code.count("\n") + 1)
    tree = ast.parse(code)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            lines[node.lineno - 1] += " ".join(node.value.split("\n")) + " | " if " " in node.value else ""
    return "\n".join(lines)


def docstrings_of(code: str) -> str:
    """Python code with all but its docstrings blanked, so that lines stay."""
    lines, kept = code.split("\n"), [""] * (code.count("\n") + 1)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            kept[node.lineno - 1 : node.end_lineno] = lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(kept)


def complaints(text: str) -> Iterator[tuple[int, str]]:
    """Lines, from 1, and what is wrong in them."""
    from proselint.checks import __register__
    from proselint.registry import CheckRegistry
    from proselint.tools import LintFile

    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(__register__)
    prose = prose_of(text)
    yield from unwanted(prose)
    for found in LintFile("page", prose).lint():
        if not found.check_result.check_path.startswith(IGNORED):
            yield found.pos[0], f"{found.check_result.check_path}: {found.check_result.message}"


def complaints_of(name: str, text: str) -> Iterator[tuple[int, str]]:
    """What is wrong in a file, by its kind."""
    if name.endswith(".py"):
        return chain(unwanted("" if name in PROMPTS else messages_of(text)), unwanted(docstrings_of(text), DOCSTRINGS))
    return unwanted(text) if name in GENERATED else complaints(text)


def main(names: list[str]) -> int:
    """Checks the files, or all pages and messages, and says how many complaints there are."""
    paths = [ROOT / name for name in names or PAGES]
    files = [
        file
        for path in paths
        for file in (sorted([*path.rglob("*.md"), *path.rglob("*.py")]) if path.is_dir() else [path])
        if path != ROOT / "docs" or file.suffix == ".md"
    ]
    number = 0
    for file in files:
        name = file.resolve().relative_to(ROOT).as_posix()
        for line, message in sorted(complaints_of(name, file.read_text(encoding="utf-8"))):
            print(f"{name}:{line}: {message}")
            number += 1
    print(f"{len(files)} files, {number} complaints")
    return min(number, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
