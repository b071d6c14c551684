"""Documents, and the readers that make them from files, folders and datasets."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.errors import UserError

if TYPE_CHECKING:
    from longlens.corpus_rows import Row

JSONL_ENDINGS = frozenset({".jsonl", ".ndjson"})
PARQUET_ENDINGS = frozenset({".parquet"})
# What a folder is searched for beside JSON Lines and Parquet; a file named by itself may have any ending.
TEXT_ENDINGS = frozenset(
    """
    .txt .text .md .markdown .mdx .rst .adoc .org .tex .htm .html
    .asm .bash .bat .c .cc .clj .cmake .cpp .cs .css .cu .cuh .cxx .d .dart .el .erl .ex .exs .f .f90 .fish .fs .go
    .gradle .groovy .h .hh .hpp .hs .hxx .java .jl .js .jsx .kt .kts .lean .less .lisp .lua .m .mjs .ml .mli .mm .nim
    .php .pl .pm .proto .ps1 .py .pyi .pyx .r .rb .rkt .rs .s .scala .scm .scss .sh .sol .sql .sv .svelte .swift .tcl
    .ts .tsx .v .vb .vhd .vhdl .vue .zig .zsh
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text to score.

    Attributes:
        id: Names the document in a run; unique there.
        text: The text, any Unicode but lone surrogates (which no UTF-8 file can hold).
        token_ids: The ids of another tokenizer that the text was decoded from, where it came tokenized; never scored.
        answer_spans: ``[start, end)`` in characters of the parts that answer a question (paper, section 2.1).
        metadata: Whatever else came with it.
    """

    id: str
    text: str
    token_ids: Sequence[int] | None = None
    answer_spans: Sequence[tuple[int, int]] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def text_sha256(text: str) -> str:
    """``sha256(text.encode("utf-8")).hexdigest()``: what says that two scores, or keys and scores, are of one text.

    Raises:
        UserError: The text has a lone surrogate and is thus not valid Unicode.
    """
    try:
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text has a lone surrogate {text[error.start]!r} at character {error.start}, which is not valid Unicode: "
            "replace it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How sources become documents; an option that cannot take effect is an error, not ignored.

    Attributes:
        text_field: The field of a JSONL, Parquet or dataset row that holds its text.
        id_field: The field that holds its id. Rows without ``"id"`` are numbered; another name has to be there.
        subset: Configuration of a dataset on the Hub.
        split: Split of a dataset; one that was saved without splits is read whole.
        tokenized_with: Name of the tokenizer that made the rows' ``input_ids``, which are then decoded to the text.
        min_tokens: Rows with fewer ``input_ids`` are left out.
        samples: Stop after so many documents, counted over all sources and after `min_tokens`.

    Raises:
        UserError: A value is out of range, or two contradict each other.
    """

    text_field: str = "text"
    id_field: str = "id"
    subset: str | None = None
    split: str = "test"
    tokenized_with: str | None = None
    min_tokens: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("text_field", "id_field", "split", "subset", "tokenized_with"):
            if getattr(self, name) == "":
                raise UserError(f"{_flag(name)} is empty: give a name, or leave it out")
        if self.text_field == self.id_field:
            raise UserError(f"--text-field and --id-field are both {shown(self.text_field)}: they must differ")
        for name in ("min_tokens", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} is {value}, expected at least 1: leave it out to take every document")
        if self.min_tokens is not None and self.tokenized_with is None:
            raise UserError("--min-tokens counts the input_ids of tokenized rows: pass --tokenized-with TOKENIZER too")


def read_documents(
    sources: Sequence[str | os.PathLike[str]],
    options: ReadOptions | None = None,
    *,
    decoder: Callable[[Sequence[int]], str] | None = None,
) -> Iterator[Document]:
    r"""Reads documents one by one; sources are checked at once, and opened when their turn comes.

    A source is a file, a folder or a dataset:

    - A file with the ending ``.jsonl``, ``.ndjson`` or ``.parquet`` has a document a row, any other file is one text.
    - A folder is walked in sorted order for files of `TEXT_ENDINGS`, JSON Lines and Parquet. Hidden entries, empty text
      files and folders that were already met (loops of links) are skipped.
    - ``hf:NAME`` is a dataset on the Hub, in a local folder of data files, or saved there with ``save_to_disk``.

    Text is strict UTF-8; a byte order mark at its start is dropped, newlines and NUL stay as they are. JSON Lines end
    at ``\n`` alone. Of a row, `ReadOptions.text_field` (or the decoded ``input_ids``), `ReadOptions.id_field` and
    ``answer_spans`` are taken; other fields of at most 1,000 characters as JSON become metadata.

    Ids: a file is its path as given, a file of a folder ``FOLDER/PATH/IN/IT``, a row its id field or else
    ``FILE#000000012``, counted from 1 (in JSON Lines: the line), so that sorted ids are in the order of the file.

    Args:
        sources: Files, folders and ``hf:NAME``.
        options: Fields, split and filters; by default ``ReadOptions()``.
        decoder: Turns ``input_ids`` into text, with special tokens as the published script does
            (``tokenizer.decode``); goes with `ReadOptions.tokenized_with`.

    Returns:
        A generator that holds one document, and of each document read its id.

    Raises:
        UserError: At once for a source that is missing, unreadable, empty, of no readable kind or an unknown dataset;
            when reached for contents that are not as expected, and for two documents with one id.
    """
    options = ReadOptions() if options is None else options
    if isinstance(sources, (str, bytes, os.PathLike)):
        raise UserError(f"sources is {shown(sources)}, expected a list of them: pass [{shown(sources)}]")
    if (decoder is None) != (options.tokenized_with is None):
        raise UserError(
            "tokenized rows need both the tokenizer's name, tokenized_with, and a decoder: pass both or none"
        )
    plan = [planned for source in sources for planned in _plan(source, options)]
    if not plan:
        raise UserError("no documents given: name files, folders or datasets as hf:NAME")
    if options.subset is not None and not any(isinstance(s, str) and s.startswith("hf:") for s in sources):
        raise UserError(f"--subset {shown(options.subset)} is for datasets, and none is given: leave it out")
    return _documents(plan, options, decoder)


def shown(name: str | bytes | os.PathLike[str]) -> str:
    """A name for a message: quoted, one line, control characters and invalid Unicode escaped, cut if very long."""
    text = os.fsdecode(name)
    return repr(text if len(text) <= 300 else f"{text[:200]}…{text[-50:]}")


def one_line(error: BaseException) -> str:
    """What another library says, for the middle of a message: one line, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:300]).rstrip(".:")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class _Source:
    """A file or a dataset that was found and not yet read; one text where `rows` is None."""

    id: str
    name: str
    rows: Callable[[], Iterator[Row]] | None = None
    skip_empty: bool = False


def _plan(source: str | os.PathLike[str], options: ReadOptions) -> Iterator[_Source]:
    if isinstance(source, str) and source.startswith("hf:"):
        from longlens.corpus_rows import open_dataset

        check_unicode(source, f"the name {shown(source)}", "rename the folder")
        yield _Source(id=source[3:], name=source, rows=open_dataset(source[3:], options))
        return
    if not os.fspath(source):
        raise UserError("a document's name is empty: name a file, a folder or a dataset as hf:NAME")
    path = Path(os.fsdecode(source))
    try:
        if path.is_dir():
            files = _files_of_folder(path)
        elif path.is_file():
            files = [(path.as_posix(), path)]
        elif not path.exists():
            raise UserError(f"no such file or folder: {shown(source)}; a dataset on the Hub is written hf:NAME")
        else:
            raise UserError(f"{shown(source)} is neither a file nor a folder: copy what it gives into a file")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {shown(source)}: {one_line(error)}: check the name and permissions") from error
    for id, file in files:
        yield _planned_file(id, file, options, in_folder=file != path)


def _planned_file(id: str, path: Path, options: ReadOptions, *, in_folder: bool) -> _Source:
    from longlens.corpus_rows import rows_reader

    check_unicode(id, f"the file name {shown(path)}", "rename the file")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {shown(path)}: permission denied: make it readable, or leave it out")
    rows = rows_reader(path)
    if rows is None and options.tokenized_with is not None:
        raise UserError(f"--tokenized-with is for rows with input_ids, and {shown(path)} is a text: leave it out")
    skip_empty = in_folder and rows is None
    if not skip_empty and path.stat().st_size == 0:
        raise UserError(f"{shown(path)} is empty: leave it out, or give it text")
    return _Source(id=id, name=str(path), rows=rows, skip_empty=skip_empty)


def _files_of_folder(folder: Path) -> list[tuple[str, Path]]:
    """Id and path of the files to read, sorted; raises UserError where there is none."""
    if (folder / "dataset_dict.json").exists() or {"dataset_info.json", "state.json"} <= set(os.listdir(folder)):
        raise UserError(f"{shown(folder)} is a dataset saved with save_to_disk: write {shown(f'hf:{folder}')}")
    root = folder.resolve().name if folder.name in ("", "..") else folder.name
    endings = TEXT_ENDINGS | JSONL_ENDINGS | PARQUET_ENDINGS
    found: list[tuple[str, Path]] = []
    other = 0
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
            if path.is_dir():
                # Links come last, so that a folder has the name under which it really stands.
                (pending.append if path.is_symlink() else pending.appendleft)(path)
            elif path.suffix.lower() not in endings:
                other += 1
            elif path.is_file():
                found.append((Path(root, path.relative_to(folder)).as_posix(), path))
            elif not os.path.lexists(os.path.realpath(path)):
                raise UserError(f"{shown(path)} is a link to nothing: fetch what it stands for, or remove it")
    if not found:
        raise UserError(
            f"folder {shown(folder)} has no text, Markdown, source, .jsonl or .parquet file ({other} of other kinds): "
            "name text files of other endings one by one"
        )
    return sorted(found)


def _documents(
    plan: Sequence[_Source], options: ReadOptions, decoder: Callable[[Sequence[int]], str] | None
) -> Iterator[Document]:
    places: dict[str, str] = {}
    for source in plan:
        for place, document in _read(source, options, decoder):
            if document.id in places:
                raise UserError(
                    f"two documents have the id {shown(document.id)}: {places[document.id]} and {place}: "
                    "rename one, or pass another --id-field"
                )
            places[document.id] = place
            yield document
            if len(places) == options.samples:
                return
    if not places and options.min_tokens is not None:
        raise UserError(f"no row has {options.min_tokens} input_ids or more: lower --min-tokens")
    if not places:
        raise UserError(f"all files are empty, such as {shown(plan[0].name)}: name files with text")


def _read(
    source: _Source, options: ReadOptions, decoder: Callable[[Sequence[int]], str] | None
) -> Iterator[tuple[str, Document]]:
    """The documents of one source, each with its place for messages."""
    from longlens.corpus_rows import document_of_row

    if source.rows is None:
        text = _read_text(Path(source.name))
        if text and not text.isspace():
            yield shown(source.name), Document(id=source.id, text=text)
        elif not source.skip_empty:
            raise UserError(f"{shown(source.name)} is empty, it has only whitespace: leave it out, or give it text")
        return
    row = None
    for row in source.rows():
        document = document_of_row(row, source.id, options, decoder)
        if document is not None:
            yield row.place, document
    if row is None:
        raise UserError(f"{shown(source.name)} is empty, it has no row: leave it out")


def check_unicode(text: str, what: str, remedy: str) -> None:
    """Raises UserError if `what` has a lone surrogate, which no file and no hash can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not valid Unicode (lone surrogate {text[error.start]!r} at character {error.start}): {remedy}"
        ) from error


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turns what the system says about a file into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {shown(path)}: {error.strerror or one_line(error)}: check the file and its permissions"
        ) from error


def utf8(data: bytes, place: str, offset: int = 0) -> str:
    """Decodes strictly; `data` begins at `offset` bytes of its file, at 0 perhaps with a byte order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is binary: byte 0x{data[error.start]:02x} at offset {offset + error.start} is not valid UTF-8: "
            "convert it, for example with iconv -f ENCODING -t UTF-8, or leave it out"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _read_text(path: Path) -> str:
    with system_errors(path):
        data = path.read_bytes()
    return utf8(data, shown(path))
