"""Builds HELMET's QA tasks with citations: ALCE's ASQA (long answers) and QAMPARI (lists) on many retrieved documents.

Prompts: ``load_alce`` in data.py, prompts/asqa_revised.json and qampari_revised.json of princeton-nlp/HELMET at
4526dfb, MIT, without their demonstrations, which are read from the user's file; settings: configs/cite.yaml. Metrics:
eval_alce.py, of Gao et al., ALCE, arXiv 2305.14627; whether a document supports a sentence is decided by a model, see
`longlens.tasks.base.CitedTask` and `longlens.models.entailment`. Data: files of the user, in HELMET's schema: questions
with 2,000 documents each, best first. Known differences:

- A length is filled with as many documents as fit, unless ``docs`` sets a fixed number as in HELMET.
- Demonstrations are drawn separately for each sample; HELMET draws them from Python's global random numbers.
- Whitespace at the end of documents is removed.
- A cited number that is not in the prompt is out of range. HELMET looks it up among all 2,000 documents of the row, so
  that a document that the model has not seen may support a claim and counts for precision.
- The prefix ``Answer:`` in the prompt is not part of the scored text.
- ROUGE and MAUVE of eval_alce.py, which HELMET does not report, are not included.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from longlens.errors import UserError
from longlens.tasks import metrics
from longlens.tasks.base import CitedTask, Sample, check_least, draws
from longlens.tasks.data import DataFile, FolderTask
from longlens.tasks.fitting import Draft, Plan, TokenCounter
from longlens.tasks.helmet.base import by_length, find_answers, split_prefix
from longlens.tasks.metrics.helmet import Entails
from longlens.tasks.synthetic import starts_of

# generate_configs.py, alce_asqa and alce_qampari: ["_8", "_30", "_75", "_165", "_345", "_700"]
DOCUMENTS = by_length(8, 30, 75, 165, 345, 700)
"""HELMET's documents for a nominal length: ``get_task("helmet_asqa", docs=DOCUMENTS[8192])``."""
HEAD, BETWEEN = "Document [{number}](Title: ", "): "  # doc_prompt: "Document [{ID}](Title: {title}): {text}"
PREFIX = "\n\nAnswer:"
TOP = 5  # eval_alce.py, compute_qampari_f1: min(5, …)


class Passage(NamedTuple):
    """A retrieved document."""

    title: str
    text: str

    def shown(self, number: int) -> str:
        """The text as in a prompt."""
        return f"{HEAD.format(number=number)}{self.title}{BETWEEN}{self.text}"


class CitationQuestion(NamedTuple):
    """A row; any answer of a group counts as right for the group."""

    text: str
    passages: Sequence[Passage]
    groups: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class CitationTask(FolderTask, CitedTask):
    """A question about numbered documents, whose answer cites the documents that support it.

    HELMET's own directory, with ``data`` and ``prompts`` in it, is accepted as `data_dir`.

    Attributes:
        docs: Number of documents, whatever their tokens, as in HELMET (`DOCUMENTS`); by default as many as fit into the
            length.
        shots: Number of demonstrations.
        file: File of the questions.
        demo_file: File of the demonstrations.
        instruction: The instruction.
        demo_prefix: Text before the answer of a demonstration.
        is_list: Whether claims are items of a list instead of sentences.
    """

    name: str
    docs: int | None = None
    shots: int = 2  # cite.yaml: shots: 2

    file: ClassVar[DataFile]
    demo_file: ClassVar[DataFile]
    instruction: ClassVar[str]
    demo_prefix: ClassVar[str]
    is_list: ClassVar[bool] = False

    suite = "helmet"
    category = "cite"
    max_new_tokens = 300  # cite.yaml: generation_max_length: 300
    default_samples = 100  # cite.yaml: max_test_samples: 100

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, docs=1, shots=0)

    @abstractmethod
    def groups(self, row: Mapping[str, Any], place: str) -> list[list[str]]:
        """The right answers of a row, in groups; any answer of a group is right."""

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The files of questions and of demonstrations."""
        return (self.file, self.demo_file) if self.shots else (self.file,)

    @cached_property
    def data(self) -> tuple[Sequence[CitationQuestion], dict[str, str]]:
        """The questions, and the description of their file.

        Raises:
            UserError: The file is missing, or has another schema.
        """
        rows, described = self.file.rows(self.name, self.data_dir)
        questions = []
        for number, row in enumerate(rows, start=1):
            place = f"{described['file']}, row {number}"
            groups = self.groups(row, place)
            if not groups or not all(groups):
                raise self.file.wrong(place, "no answers")
            text = self.file.get(row, "question", str, place)
            questions.append(CitationQuestion(text, _passages(self.file, row, place), groups))
        return questions, described

    @cached_property
    def demonstrations(self) -> tuple[Sequence[str], dict[str, str]]:
        """The demonstrations as in a prompt, and the description of their file.

        Raises:
            UserError: The file is missing, has another schema, or has too few demonstrations.
        """
        text, described = self.demo_file.read(self.name, self.data_dir)
        name = described["file"]
        get = self.demo_file.get
        rows = get(self.demo_file.parse(text, name), "demos", list, name)
        if len(rows) < self.shots:
            raise UserError(f"{self.name}: `shots={self.shots}`, but {name} has {len(rows)} demonstrations: pass fewer")
        shown = []
        for number, row in enumerate(rows, start=1):
            place = f"{name}, demonstration {number}"
            blocks = _blocks(_passages(self.demo_file, row, place))
            asked, answer = get(row, "question", str, place), get(row, "answer", str, place)
            shown.append(f"{self.asked(asked)}\n\n{_joined(blocks)}{self.demo_prefix} {answer}")
        return shown, described

    def asked(self, question: str) -> str:
        """The text before the documents."""
        return f"{self.instruction}\n\nQuestion: {question}"

    @cached_property
    def unit_tokens(self) -> int:
        """Maximum size of a document: that of the longest one."""
        longest = max(len(passage.shown(10**6).encode()) for question in self.data[0] for passage in question.passages)
        return len("\n\n") + longest

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan of the question with this index in random order, with random demonstrations."""
        questions, described = self.data
        self.check_index(index, len(questions), described["file"], "questions")
        order = list(range(len(questions)))
        draws(self.name, seed, 0, "questions").shuffle(order)
        question = questions[order[index]]
        if self.docs is not None and self.docs > len(question.passages):
            raise UserError(
                f"{self.name}: `docs={self.docs}`, but {described['file']} has {len(question.passages)} documents for "
                f"{question.text!r}: pass fewer"
            )
        made: dict[str, Any] = {"data": described}
        shown: list[str] = []
        if self.shots:
            rows, made["demonstrations"] = self.demonstrations
            shown = draws(self.name, seed, index, "demonstrations").sample(list(rows), self.shots)
        return _Documents(self, question, "".join(f"{one}\n\n\n" for one in shown), made)

    def cited(self, sample: Sample, prediction: str, entails: Entails) -> dict[str, float]:
        """``citation_recall`` and ``citation_precision``, see `longlens.tasks.metrics.citation_scores`."""
        question = sample.metadata["question"] if self.is_list else None
        scores = metrics.citation_scores(prediction, _cited_passages(sample), entails, question)
        if not scores["num_claims"]:
            return {}
        return {name: scores[name] / 100 for name in ("citation_recall", "citation_precision")}

    def target(self, sample: Sample) -> None:
        """None, because a right answer combines several of the listed ones."""
        return None


class _Documents(Plan):
    """A plan whose units are documents, the best ones first."""

    def __init__(self, task: CitationTask, question: CitationQuestion, shown: str, made: Mapping[str, Any]) -> None:
        self._question, self._made = question, made
        self._before = f"{shown}{task.asked(question.text)}\n\n"
        self.minimum = task.docs or 1
        self.maximum = task.docs or len(question.passages)

    def unit(self, index: int) -> str:
        return f"\n\n{self._question.passages[index].shown(index + 1)}"

    def draft(self, units: int) -> Draft:
        passages = self._question.passages[:units]
        blocks = _blocks(passages)
        context = _joined(blocks)
        begin = len(self._before)
        answers = list(dict.fromkeys(answer for group in self._question.groups for answer in group))
        prompt, prefix = split_prefix(self._before + context, PREFIX)
        return Draft(
            prompt=prompt,
            answer_prefix=prefix,
            answers=answers,
            answer_spans=[(begin + start, begin + end) for start, end in find_answers(context, answers)],
            context_span=(begin, len(prompt)),
            metadata={
                "question": self._question.text,
                "answer_groups": [list(group) for group in self._question.groups],
                "documents": [
                    [begin + start + len(HEAD.format(number=number)), len(passage.title), len(passage.text)]
                    for number, (start, passage) in enumerate(zip(starts_of(blocks, "\n\n"), passages, strict=True), 1)
                ],
                **self._made,
            },
        )


def _blocks(passages: Sequence[Passage]) -> list[str]:
    return [passage.shown(number) for number, passage in enumerate(passages, start=1)]


def _joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(blocks)


def _passages(file: DataFile, row: Mapping[str, Any], place: str) -> list[Passage]:
    docs = file.get(row, "docs", list, place)
    if not docs:
        raise file.wrong(place, "no docs")
    get = file.get
    return [Passage(get(one, "title", str, place), get(one, "text", str, place).rstrip()) for one in docs]


def _cited_passages(sample: Sample) -> list[dict[str, str]]:
    """The documents of a prompt, from the start of each title and the lengths of title and text."""
    passages = []
    for start, title, text in sample.metadata["documents"]:
        begin = start + title + len(BETWEEN)
        passages.append({"title": sample.prompt[start : start + title], "text": sample.prompt[begin : begin + text]})
    return passages


def _eval_file(name: str, schema: str) -> DataFile:
    return DataFile(
        names=(name, f"alce/{name}", f"data/alce/{name}"),
        source=f"data.tar.gz of the Hub dataset princeton-nlp/HELMET, file data/alce/{name}",
        schema=f"rows with question, docs[] of title and text, and {schema}",
    )


def _demo_file(name: str) -> DataFile:
    return DataFile(
        names=(name, f"prompts/{name}"),
        source=f"github.com/princeton-nlp/HELMET, prompts/{name}",
        schema="demos[] with question, answer and docs[] of title and text",
    )


def _clean_output(output: str) -> str:
    """The text on which correctness is scored: one line, without citations.

    Source: HELMET ``eval_alce.py``, `main`.
    """
    return metrics.remove_citations(re.sub(r"\n+", " ", output).replace("<|im_end|>", ""))


@dataclass(frozen=True, kw_only=True)
class ASQA(CitationTask):
    """Ambiguous questions, whose answers contain several facts."""

    name: str = "helmet_asqa"

    metric = "str_em"
    file = _eval_file("asqa_eval_gtr_top2000.json", "qa_pairs[] of short_answers[]")
    demo_file = _demo_file("asqa_revised.json")
    instruction = (
        "Instruction: Write an accurate, engaging, and concise answer for the given question using only the provided "
        "search results (some of which might be irrelevant) and cite them properly. Use an unbiased and journalistic "
        "tone. Always cite for any factual claim. When citing a document, surround its ID with square brackets, such "
        "as [x] to cite document x. To cite multiple documents, simply concatenate the citation markers; for example,"
        " use [x][y][z] to cite the documents with ID x, y, and z. Cite at least one document and at most three "
        "documents in each sentence. If multiple documents support the sentence, only cite a minimum sufficient "
        "subset of the documents."
    )
    demo_prefix = "\n\nAnswer:"  # asqa_revised.json: demo_prompt

    def groups(self, row: Mapping[str, Any], place: str) -> list[list[str]]:
        """The short answers to each of the row's questions."""
        return [_texts(self.file, pair, "short_answers", place) for pair in self.file.get(row, "qa_pairs", list, place)]

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """``str_em``: fraction of groups with an answer in the output; ``str_hit``: whether the fraction is 1.

        Source: HELMET ``eval_alce.py``, `compute_str_em`.
        """
        output = _clean_output(prediction)
        found = [metrics.substring_exact_match(output, group) for group in sample.metadata["answer_groups"]]
        share = sum(found) / len(found)
        return {"str_em": share, "str_hit": float(share == 1)}


@dataclass(frozen=True, kw_only=True)
class QAMPARI(CitationTask):
    """Questions whose answers are lists."""

    name: str = "helmet_qampari"

    metric = "qampari_rec_top5"
    file = _eval_file("qampari_eval_gtr_top2000.json", "answers[], lists of names for one answer")
    demo_file = _demo_file("qampari_revised.json")
    instruction = (
        "Instruction: Provide a list of accurate answers for the given question using only the provided search "
        "results (some of which might be irrelevant) and cite them properly. Always cite one and only one document "
        "for each answer. When citing a document, surround its ID with square brackets, such as [x] to cite document "
        "x. Separate answers by commas. For questions that have more than 5 answers, write at least 5 answers."
    )
    demo_prefix = "\nAnswer:"  # qampari_revised.json: demo_prompt
    is_list = True

    def groups(self, row: Mapping[str, Any], place: str) -> list[list[str]]:
        """The alternative names of each answer."""
        answers = {"answers": self.file.get(row, "answers", list, place)}
        return [_texts(self.file, {"names": names}, "names", place) for names in answers["answers"]]

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Precision, recall and F1 of the items, see `qampari_scores`."""
        return qampari_scores(_clean_output(prediction), sample.metadata["answer_groups"])


def qampari_scores(output: str, groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores a list of answers against the right ones, each of which has several names; from 0 to 1.

    With items those of ``output.rstrip().rstrip(".").rstrip(",").split(",")`` that are not empty once normalized::

        prec = items that are a name of any group / items
        rec = groups with a name among the items / groups
        rec_top5 = min(5, those groups) / min(5, groups)
        f1, f1_top5 = F1 of prec and rec, of prec and rec_top5

    Oddity: an item that occurs twice in the output counts twice for the precision.

    Source: HELMET ``eval_alce.py``, `compute_qampari_f1`.
    """
    items = [metrics.normalize_answer(item) for item in output.rstrip().rstrip(".").rstrip(",").split(",")]
    items = [item for item in items if item]
    names = [{metrics.normalize_answer(name) for name in group} for group in groups]
    known = set().union(*names)
    precision = sum(item in known for item in items) / len(items) if items else 0.0
    found = sum(bool(group.intersection(items)) for group in names)
    recall, top = found / len(names), min(TOP, found) / min(TOP, len(names))
    return {
        "qampari_rec_top5": top,
        "qampari_rec": recall,
        "qampari_prec": precision,
        "qampari_f1": _f1(precision, recall),
        "qampari_f1_top5": _f1(precision, top),
    }


def _f1(precision: float, recall: float) -> float:
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0


def _texts(file: DataFile, row: Any, key: str, place: str) -> list[str]:
    texts: list[str] = file.get(row, key, list, place)
    if not all(isinstance(text, str) for text in texts):
        raise file.wrong(place, f"{key!r} that are not strings")
    return texts


TASKS = {"helmet_asqa": ASQA, "helmet_qampari": QAMPARI}
