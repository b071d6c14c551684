"""Builds LooGLE: questions, clozes and summaries on papers, articles and film scripts of 2022 and later.

Paper: Li et al., LooGLE: Can Long-Context Language Models Understand Long Contexts?, arXiv 2311.04939. Code:
bigai-nlco/LooGLE at 6734382, MIT: prompts ``config/task2prompt.json``, answer tokens ``config/task2maxlen.json``,
scores ``Evaluation/automatic_metrics.py``, the judge's prompts ``Evaluation/llm_score.py``. Data: the Hub dataset
bigai-nlco/LooGLE (formerly bigainlco/LooGLE), one question per row with context, question and answer; or the files of
the repository's ``LooGLE-testdata`` and of the former dataset, one document per row with input and qa_pairs, which are
Python literals in a string. Sample i is question i of the file. Known differences:

- METEOR and BERTScore are not included: they need WordNet and a model.
- The four measures of sorted timelines (``Reorder/``) are not included; such questions are scored as the others of
  longdep_qa.
- Scores of clozes are means over questions of the fraction of right gaps; upstream divides all right gaps by all gaps.
- A reply is parsed as a Python literal or JSON; upstream evaluates it as a program.
- Upstream generates with ``repetition_penalty`` 2; here it is 1.

Oddity: ROUGE is only the recall, so that a longer reply scores higher.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from longlens.errors import UserError
from longlens.files import parse_json
from longlens.tasks.base import JudgedTask, Sample, Task
from longlens.tasks.data import DataFile, HubTask
from longlens.tasks.fitting import Draft
from longlens.tasks.metrics.rouge import bleu, rouge_recall
from longlens.tasks.rows import DataRow, Subset, SubsetTask

_ASK = "Please answer the question based on the long texts below. \n{context}\nQuestion: {question}"
SHORT, LONG = "short dependency", "long dependency"
SETS: dict[str, Subset] = {
    "shortdep_qa": Subset(prompt=_ASK, prefix="\nAnswer: ", metric="rouge_l", max_new_tokens=300, category=SHORT),
    "shortdep_cloze": Subset(
        prompt="Please fill in the clozes based on the given long texts below. Each of the placeholder '<mask-n>' in "
        "the question could be an entity of Person, Location or Organiocation. The same masks represent the same "
        "entity. Output a json format answer, for example: {{'<mask-0>': 'Bob', '<mask-1>': 'Gorrosion Magazine',"
        "'<mask-2>': 'Bethel Horizon'}}\n{context}\n Question: {question} What are the masked entities? ",
        prefix="\nAnswer:",
        metric="exact_match",
        max_new_tokens=50,
        category=SHORT,
    ),
    "longdep_qa": Subset(prompt=_ASK, prefix="\nAnswer: ", metric="rouge_l", max_new_tokens=500, category=LONG),
    "longdep_summarization": Subset(
        prompt="Please generate a summary of the below paper. \n{context}",
        prefix="\n Summarization: ",
        metric="rouge_l",
        max_new_tokens=500,
        category=LONG,
    ),
}
"""Datasets by upstream's name."""
_SAME = (
    "Given one question, there is a groundtruth and a predict_answer. Please decide whether they are the same or not "
    "in semantic. Please only output 'True' or 'False' ."
)
_POINTS = (
    "There is a groundtruth summary of a arxiv paper and a auto-generated summary .Please Compare generated summary "
    "with the goundtruth and evaluate the generated summary from the perspectives of information completeness, "
    "consistency, fluency, and grammar by giving a score within the range of 0 to 100."
)


@dataclass(frozen=True, kw_only=True)
class LooGLE(HubTask, SubsetTask):
    """The cloze task, and base class of all datasets of LooGLE.

    Attributes:
        dataset: A key of `SETS`.
    """

    sets = SETS
    suite = "loogle"  # overlong is "middle": pred_opensource_models.py, get_pred

    @property
    def file(self) -> DataFile:
        """The file of the dataset."""
        # The Hub has longdep_summarization as summarization.jsonl.
        on_hub = self.dataset.removeprefix("longdep_") if self.dataset.endswith("summarization") else self.dataset
        names = dict.fromkeys(
            place + name + ".jsonl" for name in (self.dataset, on_hub) for place in ("", "data/", "LooGLE-testdata/")
        )
        return DataFile(
            names=tuple(names),
            source="the Hub dataset bigai-nlco/LooGLE, or LooGLE-testdata of github.com/bigai-nlco/LooGLE",
            schema="rows with context, question and answer, or with input, qa_pairs (Q, A) and, of summaries, output",
            hub=f"bigai-nlco/LooGLE@data/{on_hub}.jsonl",
        )

    def questions(self, rows: Sequence[DataRow]) -> list[DataRow]:
        """One `DataRow` per question: its text, its question and its answer."""
        found = []
        for row in rows:
            if "input" not in row.values:
                pairs = [(row.values.get("question"), row.values.get("answer"))]
            elif self.dataset == "longdep_summarization":
                pairs = [("", row.values.get("output"))]
            else:
                pairs = [(pair.get("Q"), pair.get("A")) for pair in self._pairs(row)]
            text = self.text(row, "input" if "input" in row.values else "context")
            found += [replace(row, item=(text, *pair)) for pair in pairs]
        return found

    def _pairs(self, row: DataRow) -> list[dict[str, Any]]:
        pairs = row.values.get("qa_pairs")
        pairs = _literal(pairs) if isinstance(pairs, str) else pairs
        if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
            raise self.file.wrong(row.place, "qa_pairs is not a list of questions")
        return pairs

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the question about its text."""
        text, question, answer = row.item
        if "{question}" in self.facts.prompt and not isinstance(question, str):
            raise self.file.wrong(row.place, "a question that is not a string")
        metadata: dict[str, Any] = {"question": question} if question else {}
        if self.dataset == "shortdep_cloze":
            gaps = _literal(answer) if isinstance(answer, str) else answer
            if (
                not isinstance(gaps, dict)
                or not all(isinstance(one, str) for one in (*gaps, *gaps.values()))
                or not gaps
            ):
                raise self.file.wrong(row.place, "an answer that does not say what each <mask-n> is")
            metadata["gaps"], answer = gaps, str(gaps)
        if not isinstance(answer, str):
            raise self.file.wrong(row.place, "an answer that is not a string")
        return self.fill(metadata, [answer], context=text, question=question or "")

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Fractions of gaps filled with exactly the right words, and with at least one of them."""
        gaps, found = sample.metadata["gaps"], _literal(prediction)
        given = found if isinstance(found, dict) else {}
        exact = sum(given.get(name) == words for name, words in gaps.items())
        part = sum(bool(set(words.split()) & set(str(given.get(name, "")).split())) for name, words in gaps.items())
        return {"exact_match": exact / len(gaps), "partial_match": part / len(gaps)}


@dataclass(frozen=True, kw_only=True)
class LooGLEAnswers(LooGLE, JudgedTask):
    """Questions and summaries of LooGLE, which can be scored by a judge."""

    judged_metric = "judge"
    judge_tokens = 10  # llm_score.py: max_tokens=10

    @property
    def prompts_by(self) -> str:
        """Upstream's prompts."""
        return "loogle"

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """ROUGE recall, and BLEU of single n-gram orders, as computed by the package rouge and NLTK."""
        given, wanted = prediction or "None", sample.answers[0]  # automatic_eval.py: if hyp == '': hyp = 'None'
        found = rouge_recall(given, wanted)
        return {**found, "bleu_1": bleu(given, wanted, 1), "bleu_4": bleu(given, wanted, 4)}

    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """Upstream's prompt, its system message before the user message."""
        answer = sample.answers[0]
        if self.dataset == "longdep_summarization":
            return [f"{_POINTS} \nGroundtruth = {answer} \nGenerated = {prediction} \nScore = "]
        question = sample.metadata["question"]
        return [f"{_SAME}\n\nQuestion: {question}\ngroudtruth = {answer}\npredict_answer = {prediction}"]

    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """1 for ``True``, 0 for ``False``; for summaries points / 100; empty for another reply."""
        reply = replies[0].strip()
        if self.dataset == "longdep_summarization":
            points = re.match(r"\d{1,3}\b", reply)
            return {"judge": int(points[0]) / 100} if points and int(points[0]) <= 100 else {}
        word = re.match("True|False", reply)
        return {"judge": float(word[0] == "True")} if word else {}


def _literal(text: str) -> Any:
    """A Python literal or a JSON value; None if the text is neither."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    try:
        return parse_json(text, "the answer", "")
    except UserError:
        return None


TASKS: dict[str, Callable[..., Task]] = {
    f"loogle_{name}": partial(LooGLE if name == "shortdep_cloze" else LooGLEAnswers, dataset=name) for name in SETS
}
