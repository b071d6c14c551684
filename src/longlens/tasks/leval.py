"""Builds L-Eval: seven closed and 13 open tasks on lectures, exams, stories, contracts, meetings, papers and code.

Paper: An et al., L-Eval: Instituting Standardized Evaluation for Long Context Language Models, arXiv 2307.11088. Data:
``LEval-data/`` of OpenLMLab/LEval at cd34b05, one file per task, or the same files of the Hub dataset L4NLP/LEval. Only
its prompts are quoted here (the repository is GPL-3.0; each dataset has its own license): ``get_sys_prompt`` of
``Baselines/LEval_config.py`` and the messages of ``Baselines/llama2-chat-test.py`` without Llama 2's special strings,
which the model's chat template replaces. Scores: ``Evaluation/auto_eval.py``, ``em.py`` and ``f1.py``. Sample i is
question i of the file, rows in order, questions in order. Known differences:

- Open tasks have the questions that upstream scores by n-grams (``evaluation`` f1 or rouge), with the length of the
  right answer in the prompt, as in upstream's length-instruction-enhanced evaluation. The 181 questions that upstream
  compares with another model's answers, by GPT-4 or by people, are not included.
- sci_fi has the answer from the document (upstream's "loyalty"); the second question, about facts of the real world
  and without the document, is not asked.
- The end of a document that is too long is removed; upstream also removes words at the end, but in codeU at the
  beginning.

Oddities of the published numbers: in the three tasks with options a reply without a letter counts as ``A``, unless it
is empty; in quality and tpo the first capital A to D anywhere in the reply is the answer; coursera gives a quarter of a
point if only a part of several right options is selected; numbers in gsm100 end at a full stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile, HubTask
from longlens.tasks.fitting import Draft
from longlens.tasks.rows import GEOMETRIC, DataRow, Subset, SubsetTask, rouge_scores, with_geometric_mean

CLOSED, OPEN = "closed-ended", "open-ended"
MAX_NEW_TOKENS = 512  # LEval_config.py
_EXAM = (
    "Document is as follows. {context} \nQuestion: {question}.  Please directly give the answer without any additional "
    "output or explanation "
)
_FOLLOW = "Now you are given a very long document. Please follow the instruction "
_ONE_OPTION = (
    f"{_FOLLOW}based on this document. For multi-choice questions, there is only a sinlge correct option. Please only "
    "provide the letter corresponding to the answer (like A or B) when answering. For other questions, please directly "
    "give the concise and accurate answer. "
)


def _closed(instructions: str, prompt: str = _EXAM, prefix: str = "\nAnswer:") -> Subset:
    return Subset(
        prompt=f"{instructions}\n\n{prompt}",
        prefix=prefix,
        metric="exact_match",
        max_new_tokens=MAX_NEW_TOKENS,
        category=CLOSED,
    )


def _open(metric: str) -> Subset:
    return Subset(
        prompt=f"{_FOLLOW}after this document. These instructions may include summarizing a document, answering "
        "questions based on the document, or writing a required paragraph. \n\nDocument is as follows. {context} "
        "Instruction: {question} \nAnswer this question with {words} words.",
        metric=metric,
        joint=metric == GEOMETRIC,
        max_new_tokens=MAX_NEW_TOKENS,
        category=OPEN,
    )


SETS: dict[str, Subset] = {
    "coursera": _closed(
        f"{_FOLLOW}based on this document. For multi-choice questions, there could be a sinlge correct option or "
        "multiple correct options. Please only provide the letter corresponding to the answer (like A or AB) when "
        "answering. "
    ),
    "gsm100": _closed(
        "Given several question answer pairs, you need to follow a similar format to answer the last question. Make "
        "sure the response is end with The answer is _ . ",
        "{context}\n\n{question}",
        "",
    ),
    "quality": _closed(_ONE_OPTION),
    "topic_retrieval_longchat": _closed(
        "Below is a record of our previous conversation on many different topics. You are the ASSISTANT, and I am the "
        "USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. "
        "Memorize each <TOPIC>. At the end of the record, I will ask you to retrieve the first/second/third topic "
        "names. Now the record start. ",
        "{context}\n\n{question}",
        "",
    ),
    "tpo": _closed(_ONE_OPTION),
    "codeU": _closed(
        "Now you are given a code base consisting of a large amount of functions and the corresponding comments. In "
        "the end, I will call some functions defined in the code base. Please carefully read these codes and comments "
        "and answer the question.",
        "{context}\n\n{question}",
        "",
    ),
    "sci_fi": _closed(
        'Now you are given a scientific fiction. I will ask you some questions and the answer should be "True" or '
        '"False". Notice that you should answer the question based on the evidence in the document instead of your '
        "background knowledge."
    ),
    "financial_qa": _open("f1"),
    "gov_report_summ": _open(GEOMETRIC),
    "legal_contract_qa": _open("f1"),
    "meeting_summ": _open(GEOMETRIC),
    "multidoc_qa": _open("f1"),
    "narrative_qa": _open("f1"),
    "natural_question": _open("f1"),
    "news_summ": _open(GEOMETRIC),
    "paper_assistant": _open(GEOMETRIC),
    "patent_summ": _open(GEOMETRIC),
    "review_summ": _open(GEOMETRIC),
    "scientific_qa": _open("f1"),
    "tv_show_summ": _open(GEOMETRIC),
}
"""Datasets by upstream's name."""


@dataclass(frozen=True, kw_only=True)
class LEval(HubTask, SubsetTask):
    """A task of L-Eval.

    Attributes:
        dataset: A key of `SETS`.
    """

    sets = SETS
    suite = "leval"
    overlong = "context-only"  # llama2-chat-test.py: " ".join(document.split(" ")[:max_length - cnt])

    @property
    def file(self) -> DataFile:
        """The file of the task."""
        folder, on_hub = ("Closed", "Exam") if self.category == CLOSED else ("Open", "Generation")
        name = f"{self.dataset}.jsonl"
        return DataFile(
            names=(name, f"{folder}-ended-tasks/{name}", f"LEval-data/{folder}-ended-tasks/{name}"),
            source="LEval-data of github.com/OpenLMLab/LEval, or the Hub dataset L4NLP/LEval",
            schema="rows with input and evaluation (strings), instructions and outputs (lists of strings, same length)",
            hub=f"L4NLP/LEval@LEval/{on_hub}/{name}",
        )

    def questions(self, rows: Sequence[DataRow]) -> list[DataRow]:
        """One `DataRow` per instruction, except those that upstream scores with a judge."""
        found = []
        for row in rows:
            asked, outputs = self.texts(row, "instructions"), self.texts(row, "outputs")
            if len(asked) != len(outputs):
                raise self.file.wrong(row.place, f"{len(asked)} instructions and {len(outputs)} outputs")
            if self.text(row, "evaluation") not in ("human", "LLM"):
                found += [replace(row, item=pair) for pair in zip(asked, outputs, strict=True)]
        if not found:
            raise self.file.wrong(self.dataset, "no row that is scored without a judge")
        return found

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the question about the row's document."""
        question, output = row.item
        metadata: dict[str, object] = {"output": output}
        # The string that codeU compares is not what a model would generate.
        answer = READ[self.dataset][0](output) if self.dataset in READ and self.dataset != "codeU" else output
        if self.dataset in OPTIONS and len(answer) == 1:
            metadata["distractors"] = [letter for letter in "ABCD" if letter != answer]
        elif self.dataset == "sci_fi":
            metadata["distractors"] = [{"true": "false", "false": "true"}.get(answer, "true")]
        words = str(len(output.split()))
        return self.fill(metadata, [answer], context=self.text(row, "input"), question=question, words=words)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The task's score."""
        if self.category == OPEN:
            if self.metric == GEOMETRIC:
                return rouge_scores(prediction, sample.answers)
            return {"f1": metrics.token_f1(prediction, sample.answers, variant="longbench")}
        answer = output = str(sample.metadata["output"])
        if self.dataset in READ:
            read_output, read = READ[self.dataset]
            answer, prediction = read_output(output), read(prediction, output)
        return {self.metric: exact_match(prediction, answer)}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent; for ROUGE also the geometric mean of the three means.

        Raises:
            UserError: The list of scores is empty.
        """
        return with_geometric_mean(super().aggregate(scores))


def _without_articles(text: str) -> str:
    """em.py, normalize_answer: like `longlens.tasks.metrics.normalize_answer`, but without lowercasing."""
    bare = re.sub(r"[!-/:-@\[-`{-~]", "", text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, answer: str) -> float:
    """Compares letters by equality (a quarter for a subset), numbers by value, and other answers as substrings.

    Source: ``Evaluation/em.py``, `exact_match_score`.
    """
    given, wanted = _without_articles(prediction), _without_articles(answer)
    if set(wanted) <= set("ABCD"):
        if given == wanted:
            return 1.0
        return 0.25 if set(given) <= set(wanted) else 0.0
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        return float(answer.lower().replace(" ", "") in prediction.lower().replace(" ", ""))


def _right_options(output: str) -> str:
    """auto_eval.py, process_gt_mc."""
    return re.sub("[^A-D]", "", (output.split() or [""])[0]) or "A"


def _option(prediction: str, output: str) -> str:
    """auto_eval.py, process_output_mc, for a file that is not coursera's."""
    if not prediction.strip():
        return "None"
    if prediction in "ABCD":
        return prediction
    found = re.search("[A-D]", prediction)
    return found[0] if found else "A"


def _options(prediction: str, output: str) -> str:
    """auto_eval.py, process_output_mc, for coursera."""
    if not prediction.strip():
        return "None"
    if prediction in "ABCD":
        return prediction
    begun = re.match("[A-D]*", prediction)
    first = begun[0] if begun else ""
    if len(first) > 1:
        return "".join(sorted(set(first)))
    rest = prediction[len(first) :].split("Question")[0]
    named = first + "".join(re.findall(r"\s*[A-Z](?=[\s.)])", rest))
    letters = re.sub("[^A-D]", "", named)
    if not letters:
        run = re.search("[A-D]+", rest)
        letters = run[0] if run else "A"
        return letters
    return "".join(sorted(set(letters)))


def _number(text: str, output: str = "") -> str:
    """auto_eval.py, process_math: digits of the word after ``The answer is``, else of the last word with a digit."""
    found = re.search(r"The answer is (\S+)", text)
    if found:
        word = found[1]
    else:
        words = text.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if any(map(str.isdigit, word))), "")
    return "".join(filter(str.isdigit, word.partition(".")[0]))


def _code(text: str) -> str:
    """auto_eval.py, process_gt_code."""
    text = re.sub(r"\s+", " ", text)
    for old, new in ((",", ""), ("'", ""), ("\\", ""), (".0", ""), ("] [", "]["), ("[ [", "[["), ("] ]", "]]")):
        text = text.replace(old, new)
    return text


def _printed(prediction: str, output: str) -> str:
    """auto_eval.py, process_output_code: some words after ``the final output``, else the last ones."""
    text = _code(prediction)
    for phrase in ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed"):
        text = text.replace(phrase, "")
    count = len(output.split()) + 3
    if "the final output" in text:
        return " ".join(re.split(r"\s+", text.split("the final output")[-1])[:count])
    return " ".join(re.split(r"\s+", text)[-count:])


def _loyal(output: str) -> str:
    """auto_eval.py, process_gt_judge: the text before ``[fact:``."""
    return output.lower().partition("[fact:")[0].strip()


def _judgement(prediction: str, output: str) -> str:
    """auto_eval.py, process_output_judge: the first word with ``true`` or ``false`` in it."""
    for word in prediction.lower().split():
        for value in ("true", "false"):
            if value in word:
                return value
    return "<error>"


OPTIONS = ("coursera", "quality", "tpo")
READ: dict[str, tuple[Callable[[str], str], Callable[[str, str], str]]] = {
    "coursera": (_right_options, _options),
    "quality": (_right_options, _option),
    "tpo": (_right_options, _option),
    "gsm100": (_number, _number),
    "codeU": (_code, _printed),
    "sci_fi": (_loyal, _judgement),
}
"""Functions that parse a row's output, and a prediction (given that output)."""
TASKS: dict[str, Callable[..., Task]] = {f"leval_{name}": partial(LEval, dataset=name) for name in SETS}
