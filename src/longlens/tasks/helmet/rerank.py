"""HELMET's re-ranking, ``helmet_msmarco``: put passages in the order of their relevance to a query.

Paper: HELMET, arXiv 2410.02694. Prompt, demonstrations and metric: ``load_msmarco_rerank`` in data.py of
princeton-nlp/HELMET at 4526dfb, MIT; settings: configs/rerank.yaml, scripts/generate_configs.py. Data: HELMET's own
files, made of MS MARCO's passages and TREC's graded labels, which may be used for research
(microsoft.github.io/msmarco); each query stands in 3 rows with its passages in 3 orders. Metric: NDCG@10 of the
longest ``ID > ID > ID`` in the reply. Known differences: those of `longlens.tasks.helmet.rag` on what is drawn and
where a reply ends; and a demonstration may be a query that another sample asks, which HELMET rules out where the file
of demonstrations has more than twice as many rows as the test has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longlens.tasks.base import Sample
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.lengths import by_length
from longlens.tasks.helmet.passages import Asked, PassageTask

# generate_configs.py, msmarco_rerank_psg: test_files and demo_files
NAME = "test_reranking_data_k{passages}_dep3.jsonl"
SHOWN = 10


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
        """The queries with so many passages each."""
        name = NAME.format(passages=passages)
        return DataFile(
            names=(f"msmarco/{name}", name),
            source="the hub's data set princeton-nlp/HELMET, data.tar.gz, folder data/msmarco",
            schema="a line a query, with qid, query and ctxs[] of id, text and label (a whole number), perhaps title",
        )

    @property
    def shown_file(self) -> DataFile:
        """The demonstrations."""
        return self.file(SHOWN)

    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str:
        """The query's id."""
        return str(file.get(row, "qid", str, place))

    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> Asked:
        """A row, checked."""
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
        return Asked(
            question=file.get(row, "query", str, place),
            passages=shown,
            shown=ranking,
            answers=[ranking],
            metadata={"relevance": relevance},
        )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """NDCG@10 of the ranking that is read out of the prediction."""
        from longlens.tasks import metrics

        # eval.py, run_test: without a chat template the answer prefix is put before the output
        ranking = metrics.parse_ranking(self.prefix.strip() + prediction)
        return {"NDCG@10": metrics.ndcg_at_k(ranking, sample.metadata["relevance"], k=10)}
