"""HELMET's answers with citations: ALCE's ASQA (long answers) and QAMPARI (lists) on many retrieved documents.

Prompts: prompts/asqa_revised.json and qampari_revised.json of princeton-nlp/HELMET at 4526dfb, MIT, without their
demonstrations, which are read from the user's file. Metrics: eval_alce.py, of Gao et al., ALCE, arXiv 2305.14627; what
supports a sentence is asked of a model, see `longlens.tasks.judged.CitedTask` and `longlens.models.entailment`. Data:
files of the user, in HELMET's schema: questions with 2,000 documents each, best first. Known differences, beside those
of `longlens.tasks.helmet.numbered`: the prefix ``Answer:`` that stands in the prompt is no part of what is scored; of
eval_alce.py's other numbers, which HELMET does not report, ROUGE and MAUVE are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlens.tasks.base import Sample
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.numbered import CitationTask

TOP = 5  # eval_alce.py, compute_qampari_f1: min(5, …)


def _eval_file(name: str, schema: str) -> DataFile:
    return DataFile(
        names=(name, f"alce/{name}", f"data/alce/{name}"),
        source=f"data.tar.gz of the hub's princeton-nlp/HELMET, file data/alce/{name}",
        schema=f"rows with question, docs[] of title and text, and {schema}",
    )


def _demo_file(name: str) -> DataFile:
    return DataFile(
        names=(name, f"prompts/{name}"),
        source=f"github.com/princeton-nlp/HELMET, prompts/{name}",
        schema="demos[] with question, answer and docs[] of title and text",
    )


def cleaned(output: str) -> str:
    """What correctness is scored on: one line, without citations.

    Source: HELMET ``eval_alce.py``, `main`.
    """
    from longlens.tasks import metrics

    return metrics.remove_citations(re.sub(r"\n+", " ", output).replace("<|im_end|>", ""))


@dataclass(frozen=True, kw_only=True)
class ASQA(CitationTask):
    """Ambiguous questions, whose answers name several facts."""

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
        """The short answers of each of its questions."""
        return [_texts(self.file, pair, "short_answers", place) for pair in self.file.get(row, "qa_pairs", list, place)]

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """``str_em``: the share of groups of which an answer is in the output; ``str_hit``: whether it is all of them.

        Source: HELMET ``eval_alce.py``, `compute_str_em`.
        """
        from longlens.tasks import metrics

        output = cleaned(prediction)
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
        """The names of each answer."""
        answers = {"answers": self.file.get(row, "answers", list, place)}
        return [_texts(self.file, {"names": names}, "names", place) for names in answers["answers"]]

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """See `qampari_scores`."""
        return qampari_scores(cleaned(prediction), sample.metadata["answer_groups"])


def qampari_scores(output: str, groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """A list of answers against the right ones, each of which has several names; 0 to 1.

    With items those of ``output.rstrip().rstrip(".").rstrip(",").split(",")`` that are not empty once normalised::

        prec = items that are a name of any group / items
        rec = groups with a name among the items / groups
        rec_top5 = min(5, those groups) / min(5, groups)
        f1, f1_top5 = F1 of prec and rec, of prec and rec_top5

    Oddity: an item that is given twice counts twice for the precision.

    Source: HELMET ``eval_alce.py``, `compute_qampari_f1`.
    """
    from longlens.tasks.metrics import normalize_answer

    items = [normalize_answer(item) for item in output.rstrip().rstrip(".").rstrip(",").split(",")]
    items = [item for item in items if item]
    names = [{normalize_answer(name) for name in group} for group in groups]
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
        raise file.wrong(place, f"{key!r} that are no texts")
    return texts


TASKS = {"helmet_asqa": ASQA, "helmet_qampari": QAMPARI}
