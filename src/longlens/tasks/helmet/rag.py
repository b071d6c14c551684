"""Builds HELMET's RAG (``helmet_nq``, ``_triviaqa``, ``_hotpotqa``, ``_popqa``) and re-ranking (``helmet_msmarco``).

Paper: HELMET, arXiv 2410.02694. Code: princeton-nlp/HELMET at 4526dfb, MIT; settings: scripts/generate_configs.py.

RAG has short questions on retrieved passages. Prompt, demonstrations and metric: ``load_qa`` and
``default_post_process`` in data.py; settings: configs/rag.yaml. Data: HELMET's own files, a dataset on the Hub as one
archive (scripts/download_data.sh), built from KILT (MIT), Natural Questions (CC BY-SA 3.0), TriviaQA (Apache-2.0),
HotpotQA (CC BY-SA 4.0), PopQA (MIT) and Wikipedia (CC BY-SA). Each question has 6 rows (HotpotQA: 3), in which its
right passage is at different depths. Metric: ``substring_exact_match``, best of the raw and the parsed reply. Known
differences:

- The random choice of questions and of the two demonstrations differs: HELMET draws with Python's global random numbers
  and with the shuffle of datasets. In both, the demonstrations depend only on the question.
- A reply ends at the first line end, as ``stop_new_line`` in configs/rag.yaml intends. HELMET's arguments.py does not
  have this name (it is ``stop_newline`` there), so that its code generates all 20 tokens, and an answer after the line
  end counts.
- "Yes" and "no" of HotpotQA are not searched in the passages (`Sample.answer_spans`).

Re-ranking sorts passages by relevance to a query. Prompt, demonstrations and metric: ``load_msmarco_rerank``; settings:
configs/rerank.yaml. Data: HELMET's own files, built from MS MARCO's passages and TREC's graded labels, which may be
used for research (microsoft.github.io/msmarco). Each query has 3 rows with its passages in 3 orders. Metric: NDCG@10 of
the longest ``ID > ID > ID`` in the reply. Known differences, in addition to random choices and the end of a reply: a
demonstration may be a query that another sample asks. HELMET excludes this if the file of demonstrations has more than
twice as many rows as the test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.base import best_scores, by_length, find_answers
from longlens.tasks.helmet.passages import QUESTIONS, PassageQuestion, PassageTask

SOURCE = "the Hub dataset princeton-nlp/HELMET, data.tar.gz, folder data/kilt"
SCHEMA = "one line per question, with question, answers[], ctxs[] of title and text, and an id if there is one"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kilt:
    """A dataset in KILT's schema.

    Attributes:
        asked: Name of the file of questions, with ``{passages}``.
        shown: Name of the file of demonstrations.
        depths: Number of rows per question.
        popularity: Upper bound (exclusive) on the decimal logarithm of a row's s_pop.
    """

    asked: str
    shown: str
    depths: int
    popularity: float | None = None

    def named(self, name: str) -> DataFile:
        """A file of the dataset."""
        schema = SCHEMA if self.popularity is None else f"{SCHEMA}, and a number s_pop"
        return DataFile(names=(f"kilt/{name}", name), source=SOURCE, schema=schema)


# generate_configs.py, kilt_*: test_files and demo_files
NQ = Kilt(
    asked="nq-dev-multikilt_1000_k{passages}_dep6.jsonl",
    shown="nq-train-multikilt_1000_k3_dep6.jsonl",
    depths=6,
)
TRIVIAQA = Kilt(
    asked="triviaqa-dev-multikilt_1000_k{passages}_dep6.jsonl",
    shown="triviaqa-train-multikilt_1000_k3_dep6.jsonl",
    depths=6,
)
HOTPOTQA = Kilt(
    asked="hotpotqa-dev-multikilt_1000_k{passages}_dep3.jsonl",
    shown="hotpotqa-train-multikilt_1000_k3_dep3.jsonl",
    depths=3,
)
POPQA = Kilt(
    asked="popqa_test_1000_k{passages}_dep6.jsonl",
    shown="popqa_test_1000_k3_dep6.jsonl",
    depths=6,
    popularity=3,  # generate_configs.py, kilt_popqa: "name_postfix": "_3"
)


@dataclass(frozen=True, kw_only=True)
class RetrievedQA(PassageTask):
    """A short question about retrieved passages.

    Attributes:
        kilt: The data.
    """

    kilt: Kilt

    category = "rag"
    metric = "substring_exact_match"
    max_new_tokens = 20  # rag.yaml: generation_max_length
    sizes = by_length(20, 50, 105, 220, 440, 1000)  # generate_configs.py, kilt_*
    # data.py, load_qa
    instruction = (
        "Use the given documents to write a concise and short answer to the question. Write your answer in the "
        "following format:\nAnswer: [answer]\n\n"
    )
    asks = "Question: "
    prefix = "\nAnswer:"

    @property
    def default_samples(self) -> int:
        """All rows of a hundred questions, as in HELMET."""
        return QUESTIONS * self.kilt.depths

    def file(self, passages: int) -> DataFile:
        """The file of questions with the given number of passages each."""
        return self.kilt.named(self.kilt.asked.format(passages=passages))

    @property
    def shown_file(self) -> DataFile:
        """The file of demonstrations."""
        return self.kilt.named(self.kilt.shown)

    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str | None:
        """The row's id, else its question; None if PopQA's entity is too popular."""
        if self.kilt.popularity is not None:
            popularity = row.get("s_pop")
            if not isinstance(popularity, (int, float)) or not popularity > 0:
                raise file.wrong(place, f"s_pop is {popularity!r}")
            if not math.log10(popularity) < self.kilt.popularity:
                return None
        return file.get(row, "question", str, place) if row.get("id") is None else str(row["id"])

    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> PassageQuestion:
        """Parses and checks a row."""
        answers = file.get(row, "answers", list, place)
        passages = [
            f"Document (Title: {file.get(one, 'title', str, place)}): {file.get(one, 'text', str, place)}"
            for one in file.get(row, "ctxs", list, place)
        ]
        if not passages or not answers or not all(isinstance(answer, str) for answer in answers):
            raise file.wrong(place, "answers or ctxs are empty, or an answer is not a string")
        return PassageQuestion(
            question=file.get(row, "question", str, place),
            passages=passages,
            shown=answers[0],
            answers=answers,
            metadata={"depth": row["depth"]} if "depth" in row else {},
        )

    def evidence(self, asked: PassageQuestion, context: str) -> list[tuple[int, int]]:
        """Occurrences of answers as words in the context; of overlapping ones the longest."""
        return find_answers(context, [answer for answer in asked.answers if answer.lower() not in ("yes", "no")])

    def target(self, sample: Sample) -> str:
        """The first answer, as in demonstrations; the others are also right."""
        return f" {sample.answers[0]}"

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """HELMET's main metric, and whether the parsed reply equals an answer."""
        return best_scores(prediction, sample.answers, "substring_exact_match", "exact_match")


# generate_configs.py, msmarco_rerank_psg: test_files and demo_files
RERANK_FILE = "test_reranking_data_k{passages}_dep3.jsonl"
RERANK_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Rerank(PassageTask):
    """HELMET's re-ranking of passages."""

    name: str = "helmet_msmarco"

    category = "rerank"
    metric = "NDCG@10"
    max_new_tokens = 200  # rerank.yaml: generation_max_length
    # rerank.yaml: max_test_samples: 100, but TREC 2019 labels the passages of 43 queries; each has 3 rows
    default_samples = 43 * 3
    sizes = by_length(14, 50, 130, 285, 600, 1000)  # generate_configs.py, msmarco_rerank_psg
    # data.py, load_msmarco_rerank, its spelling included
    instruction = (
        "You are provided with a list of documents, each indicated by their ID. Rank each document based on their "
        "relevance to the question in descending order from most relelvant to least relevant texts. Include all "
        "documents in the rankings. Write your answer using the unique IDs, with the following format:\n"
        "Ranking: ID3 > ID1 > ID2\n\n"
    )
    asks = "Query: "
    prefix = "\nRanking:"

    def file(self, passages: int) -> DataFile:
        """The file of queries with the given number of passages each."""
        name = RERANK_FILE.format(passages=passages)
        return DataFile(
            names=(f"msmarco/{name}", name),
            source="the Hub dataset princeton-nlp/HELMET, data.tar.gz, folder data/msmarco",
            schema="one line per query, with qid, query and ctxs[] of id, text, label (an integer) and optional title",
        )

    @property
    def shown_file(self) -> DataFile:
        """The file of demonstrations."""
        return self.file(RERANK_SHOWN)

    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str:
        """The query's id."""
        return str(file.get(row, "qid", str, place))

    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> PassageQuestion:
        """Parses and checks a row."""
        passages = file.get(row, "ctxs", list, place)
        relevance = {file.get(one, "id", str, place): file.get(one, "label", int, place) for one in passages}
        if not passages:
            raise file.wrong(place, "no ctxs")
        titled = "title" in passages[0]
        shown = []
        for one in passages:
            title = f" (Title: {file.get(one, 'title', str, place)})" if titled else ""
            shown.append(f"[ID: {one['id']}] Document{title}: {file.get(one, 'text', str, place)}")
        ranking = " > ".join(one["id"] for one in sorted(passages, key=lambda one: -one["label"]))
        return PassageQuestion(
            question=file.get(row, "query", str, place),
            passages=shown,
            shown=ranking,
            answers=[ranking],
            metadata={"relevance": relevance},
        )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """NDCG@10 of the ranking that is parsed from the prediction."""
        # eval.py, run_test: without a chat template the answer prefix is put before the output
        ranking = metrics.parse_ranking(self.prefix.strip() + prediction)
        return {"NDCG@10": metrics.ndcg_at_k(ranking, sample.metadata["relevance"], k=10)}


TASKS: dict[str, Callable[..., Task]] = {
    "helmet_nq": partial(RetrievedQA, kilt=NQ),
    "helmet_triviaqa": partial(RetrievedQA, kilt=TRIVIAQA),
    "helmet_hotpotqa": partial(RetrievedQA, kilt=HOTPOTQA),
    "helmet_popqa": partial(RetrievedQA, kilt=POPQA),
    "helmet_msmarco": Rerank,
}
