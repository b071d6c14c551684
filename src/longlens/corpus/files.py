"""Reads documents from files, folders and datasets, one by one."""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from longlens.corpus.document import Document
from longlens.corpus.rows import JSONL_ENDINGS, PARQUET_ENDINGS, Row, document_of_row, open_dataset, rows_reader
from longlens.errors import LonglensWarning, UserError, check_unicode, one_line, shown, utf8
from longlens.files import COMPRESSED, ending_of, opened
from longlens.settings.options import Reading

# Suffixes searched for in folders, in addition to JSON Lines and Parquet; a file passed directly may have any suffix.
TEXT_ENDINGS = frozenset(
    """
    .txt .text .md .markdown .mdx .rst .adoc .org .tex .htm .html
    .asm .bash .bat .c .cc .clj .cmake .cpp .cs .css .cu .cuh .cxx .d .dart .el .erl .ex .exs .f .f90 .fish .fs .go
    .gradle .groovy .h .hh .hpp .hs .hxx .java .jl .js .jsx .kt .kts .lean .less .lisp .lua .m .mjs .ml .mli .mm .nim
    .php .pl .pm .proto .ps1 .py .pyi .pyx .r .rb .rkt .rs .s .scala .scm .scss .sh .sol .sql .sv .svelte .swift .tcl
    .ts .tsx .v .vb .vhd .vhdl .vue .zig .zsh
    """.split()  # noqa: SIM905
)


STDLIB = "stdlib:"
RUN_MANIFEST = "manifest.json"
HEAD_BYTES = 2**16
"""Number of bytes of a file that are checked before any document is read."""


def read_documents(
    sources: Sequence[str | os.PathLike[str]],
    options: Reading | None = None,
    *,
    decoder: Callable[[Sequence[int]], str] | None = None,
) -> Iterator[Document]:
    r"""Reads documents lazily; sources are checked immediately and opened when they are reached.

    A source is a file, a folder or a dataset:

    - A file that ends in ``.jsonl``, ``.ndjson``, ``.json`` (an array of objects, or JSON Lines) or ``.parquet`` has
      one document per row. Tables (``.csv``, ``.tsv``, ``.arrow``) are rejected. Any other file is one text.
    - Texts and JSON may be compressed: ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` after the ending.
    - A folder is searched in sorted order for files of `TEXT_ENDINGS`, JSON Lines and Parquet. Hidden entries, empty
      text files and folders that were already visited (loops of links) are skipped. A warning lists the files that were
      skipped, and links that lead out of the folder, which are followed.
    - ``hf:NAME`` is a dataset on the Hub, in a local folder of data files, or saved there with ``save_to_disk``.
    - ``stdlib:NAME`` is the source code of a module or package of Python's standard library, one document per file.

    Text must be valid UTF-8. A byte order mark at its start is removed; newlines and NUL are unchanged. JSON Lines end
    only at ``\n``. Of a row, `Reading.text_field` (or the decoded ``input_ids``), `Reading.id_field` and
    ``answer_spans`` are used; other fields of at most 1,000 characters as JSON become metadata.

    Ids: the id of a file is its path as passed, of a file in a folder ``FOLDER/PATH/IN/IT``, and of a row its id field
    or else ``FILE#000000012``, counted from 1 (in JSON Lines: the line), so that sorted ids are in the order of the
    file.

    Args:
        sources: Files, folders, ``hf:NAME`` and ``stdlib:NAME``.
        options: Fields, split and filters; by default ``Reading()``.
        decoder: Decodes ``input_ids`` to text, with special tokens as in the published script
            (``tokenizer.decode``); requires `Reading.tokenized_with`.

    Returns:
        A generator that keeps one document in memory, and the id of every document read.

    Raises:
        UserError: Immediately for a source that is missing, unreadable, empty, of an unsupported kind or an unknown
            dataset; when reached for invalid contents, and for two documents with one id.

    Warns:
        LonglensWarning: Files of a folder were skipped, or links in it lead out of it.
    """
    options = Reading() if options is None else options
    if isinstance(sources, (str, bytes, os.PathLike)):
        raise UserError(f"`sources` is {shown(sources)}, expected a list of them: pass [{shown(sources)}]")
    if (decoder is None) != (options.tokenized_with is None):
        raise UserError(
            "tokenized rows need both the tokenizer's name, `tokenized_with`, and a `decoder`: pass both or none"
        )
    plan = [planned for source in sources for planned in _plan(source, options)]
    if not plan:
        raise UserError("no documents given: pass files, folders, or datasets as hf:NAME")
    if options.subset is not None and not any(isinstance(s, str) and s.startswith("hf:") for s in sources):
        raise UserError(f"`subset` is {shown(options.subset)}, for datasets, but none is read: remove `subset`")
    return _documents(plan, options, decoder)


class Sources:
    """Documents of files, folders and datasets, which are read again on each iteration.

    Attributes:
        are_files: Whether all sources are local text files, which are cheap to read again.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        options: Reading | None = None,
        *,
        decoder: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """Checks the sources; the arguments are those of `read_documents`."""
        self._read = partial(read_documents, sources, options, decoder=decoder)
        self._first: Iterator[Document] | None = self._read()
        self.are_files = decoder is None and not any(str(source).startswith("hf:") for source in sources)

    def __iter__(self) -> Iterator[Document]:
        documents, self._first = self._first or self._again(), None
        return documents

    def _again(self) -> Iterator[Document]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LonglensWarning)  # shown on the first pass
            return self._read()


@dataclass(frozen=True, slots=True)
class _Source:
    """A file or a dataset that was found but not yet read; if `rows` is None, it is one text."""

    id: str
    name: str
    rows: Callable[[], Iterator[Row]] | None = None
    skip_empty: bool = False


def _plan(source: str | os.PathLike[str], options: Reading) -> Iterator[_Source]:
    if isinstance(source, str) and source.startswith("hf:"):
        check_unicode(source, f"the name {shown(source)}", "rename the folder")
        yield _Source(id=source[3:], name=source, rows=open_dataset(source[3:], options))
        return
    if isinstance(source, str) and source.startswith(STDLIB):
        for id, file in module_files(source.removeprefix(STDLIB)):
            yield _planned_file(id, file, options, in_folder=True)
        return
    if not os.fspath(source):
        raise UserError("a document's name is empty: pass a file, a folder, or a dataset as hf:NAME")
    path = Path(os.fsdecode(source))
    try:
        if path.is_dir():
            endings = TEXT_ENDINGS | JSONL_ENDINGS | PARQUET_ENDINGS
            files = files_of_folder(path, endings, "text, Markdown, source, .jsonl or .parquet")
        elif path.is_file():
            files = [(path.as_posix(), path)]
        elif not path.exists():
            raise UserError(f"no such file or folder: {shown(source)}; a dataset on the Hub is written hf:NAME")
        else:
            raise UserError(f"{shown(source)} is neither a file nor a folder: copy its content into a file")
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read {shown(source)}: {one_line(error)}: check the name and permissions") from error
    for id, file in files:
        _refuse_scores(file)
        yield _planned_file(id, file, options, in_folder=file != path)


def _refuse_scores(file: Path) -> None:
    """Rejects files of a run directory, whose rows are scores although they have texts."""
    run = next((one for one in list(file.absolute().parents)[1:3] if (one / RUN_MANIFEST).is_file()), None)
    if run is not None and file.suffix == ".parquet" and (run / "long").is_dir():
        shown_run = shown(run if file.is_absolute() else Path(os.path.relpath(run)))
        raise UserError(
            f"{shown_run} is a run directory of longlens score, not documents: pass the documents that were scored, or "
            f"read its scores with longlens perplexity {shown_run}"
        )


def _planned_file(id: str, path: Path, options: Reading, *, in_folder: bool) -> _Source:
    check_unicode(id, f"the file name {shown(path)}", "rename the file")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {shown(path)}: permission denied: make it readable, or exclude it")
    rows = rows_reader(path)
    if rows is None and options.tokenized_with is not None:
        raise UserError(f"`tokenized_with` is for input_ids, but {shown(path)} is a text: remove `tokenized_with`")
    skip_empty = in_folder and rows is None
    if not skip_empty and path.stat().st_size == 0:
        raise UserError(f"{shown(path)} is empty: exclude it, or add text to it")
    if rows is None and not in_folder:
        _check_head(path)
    return _Source(id=id, name=str(path), rows=rows, skip_empty=skip_empty)


def files_of_folder(
    folder: Path, endings: Collection[str], wanted: str, *, says: bool = True
) -> list[tuple[str, Path]]:
    """Id and path of a folder's files with one of the suffixes, sorted by id.

    Args:
        folder: The folder.
        endings: Lower-case; see `longlens.files.ending_of`.
        wanted: Description of the suffixes, for messages.
        says: Whether to warn about files that are skipped.

    Raises:
        UserError: No such file exists, a link is broken, or the folder is a saved dataset.

    Warns:
        LonglensWarning: Files were skipped, or links lead out of the folder.
    """
    if (folder / "dataset_dict.json").exists() or {"dataset_info.json", "state.json"} <= set(os.listdir(folder)):
        raise UserError(f"{shown(folder)} is a dataset saved with save_to_disk: write {shown(f'hf:{folder}')}")
    base = Path(os.path.realpath(folder))
    root = base.name if folder.name in ("", "..") else folder.name
    found: list[tuple[str, Path]] = []
    others: Counter[str] = Counter()
    outside: list[Path] = []
    met: set[tuple[int, int]] = set()
    pending = deque([folder])
    while pending:
        here = pending.popleft()
        status = here.stat()
        if (status.st_dev, status.st_ino) in met:
            continue
        met.add((status.st_dev, status.st_ino))
        for path in sorted(here.iterdir()):
            if path.name.startswith("."):
                continue
            leads_out = path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(base)
            if path.is_dir():
                # Links are visited last, so that a folder gets its real path.
                (pending.append if path.is_symlink() else pending.appendleft)(path)
            elif ending_of(path) not in endings:
                others["".join(path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else path.suffix).lower()] += 1
                leads_out = False
            elif path.is_file():
                found.append((Path(root, path.relative_to(folder)).as_posix(), path))
            elif not os.path.lexists(os.path.realpath(path)):
                raise UserError(f"{shown(path)} is a broken link: fetch its target, or remove it")
            if leads_out:
                outside.append(path)
    kinds = [f"{number} {ending or 'without ending'}" for ending, number in others.most_common(8)]
    left_out = ", ".join(kinds) + (", …" if len(others) > len(kinds) else "")
    if not found:
        raise UserError(
            f"folder {shown(folder)} has no {wanted} file{left_out and f', it has {left_out}'}: "
            "pass text files with other suffixes one by one"
        )
    if left_out and says:
        warnings.warn(
            f"folder {shown(folder)}: read {len(found):,} files, skipped {others.total():,} ({left_out}): "
            "pass those that you want to read one by one",
            LonglensWarning,
            stacklevel=2,
        )
    if outside:
        example = f"{shown(outside[0])} -> {shown(os.path.realpath(outside[0]))}"
        warnings.warn(
            f"folder {shown(folder)}: links that lead out of it are followed ({len(outside):,}, such as {example}): "
            "remove those that are not intended",
            LonglensWarning,
            stacklevel=2,
        )
    return sorted(found)


def _documents(
    plan: Sequence[_Source], options: Reading, decoder: Callable[[Sequence[int]], str] | None
) -> Iterator[Document]:
    places: dict[str, str] = {}
    for source in plan:
        for place, document in _read(source, options, decoder):
            if document.id in places:
                raise UserError(
                    f"two documents have the id {shown(document.id)}: {places[document.id]} and {place}: "
                    "rename one, or pass another `id_field`"
                )
            places[document.id] = place
            yield document
            if len(places) == options.samples:
                return
    if not places and options.min_tokens is not None:
        raise UserError(f"no row has {options.min_tokens} input_ids or more: lower `min_tokens`")
    if not places:
        raise UserError(f"all files are empty, such as {shown(plan[0].name)}: pass files with text")


def _read(
    source: _Source, options: Reading, decoder: Callable[[Sequence[int]], str] | None
) -> Iterator[tuple[str, Document]]:
    """Yields the documents of one source, each with its location for messages."""
    if source.rows is None:
        text = _read_text(Path(source.name))
        if text and not text.isspace():
            yield shown(source.name), Document(id=source.id, text=text)
        elif not source.skip_empty:
            raise UserError(f"{shown(source.name)} is empty, it has only whitespace: exclude it, or add text to it")
        return
    row = None
    for row in source.rows():
        document = document_of_row(row, source.id, options, decoder)
        if document is not None:
            yield row.place, document
    if row is None:
        raise UserError(f"{shown(source.name)} is empty, it has no row: exclude it")


def _check_head(path: Path) -> None:
    """Rejects a file whose first bytes are not text, before a model is loaded for the documents before it."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if len(head) == HEAD_BYTES:  # its last character may be truncated
        head = re.sub(rb"[\xc0-\xff][\x80-\xbf]{0,2}\Z", b"", head)
    utf8(head, shown(path))


def _read_text(path: Path) -> str:
    with opened(path) as file:
        return utf8(file.read(), shown(path))


def module_files(name: str) -> list[tuple[str, Path]]:
    """The source files of a module, or of all modules of a package, each with its id. Nothing is imported.

    Args:
        name: Name of the module, such as ``typing`` (id ``stdlib:typing.py``), ``email`` (``stdlib:email/parser.py``
            and so on) or ``email.mime``.

    Raises:
        UserError: The module does not exist or has no Python source (built in, or an extension), or this Python has no
            sources.
    """
    top, *others = name.split(".")
    if not all(part.isidentifier() for part in others):
        raise UserError(f"{shown(STDLIB + name)} is not a module name, such as {STDLIB}email.mime")
    if top not in sys.stdlib_module_names:
        close = difflib.get_close_matches(top, sys.stdlib_module_names, n=1, cutoff=0.5)
        known = f" (nearest: {close[0]!r})" if close else ""
        raise UserError(f"{shown(STDLIB + name)}: Python's standard library has no module {shown(top)}{known}")
    library = Path(sysconfig.get_path("stdlib"))
    path = library.joinpath(top, *others)
    file = path.with_name(f"{path.name}.py")
    files = [file] if file.is_file() else sorted(path.rglob("*.py"))
    if not files and not (library / "typing.py").is_file():
        raise UserError(
            f"{shown(STDLIB + name)} needs the sources of Python's standard library, which this Python lacks (no "
            f"{library / 'typing.py'}): use your own files"
        )
    if not files or not (file.is_file() or (path / "__init__.py").is_file()):
        what = "no module of it" if "." in name else "built in or an extension, and has no Python source"
        raise UserError(f"{shown(STDLIB + name)} is {what}: pass another module, such as {STDLIB}typing")
    return [(f"{STDLIB}{file.relative_to(library).as_posix()}", file) for file in files]
