"""Defines LongBench v1's 21 datasets as a table: prompt, answer length and metric of each.

Source: THUDM/LongBench at 2e00731 (MIT): prompts from ``LongBench/config/dataset2prompt.json``, verbatim with their
misprints; answer tokens from ``dataset2maxlen.json``; metrics and first-line rule from ``eval.py``; chat template and
stop strings from ``pred.py``; domains, languages and numbers of samples from ``task.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longlens.tasks import metrics
from longlens.tasks.rows import Subset

SINGLE, MULTI, SUMMARY = "single-doc QA", "multi-doc QA", "summarization"
FEW_SHOT, SYNTHETIC, CODE = "few-shot", "synthetic", "code"
DOMAINS = (SINGLE, MULTI, SUMMARY, FEW_SHOT, SYNTHETIC, CODE)
"""task.md, "Task Type"."""
ENGLISH, CHINESE, PROGRAMS = "en", "zh", "code"
METRICS: dict[str, Callable[[str, str, Sequence[str]], float]] = {
    "qa_f1": lambda prediction, answer, _: metrics.token_f1(prediction, answer, variant="longbench"),
    "qa_f1_zh": lambda prediction, answer, _: metrics.token_f1_zh(prediction, answer),
    "rouge_l": lambda prediction, answer, _: metrics.rouge_l(prediction, answer, variant="longbench"),
    "rouge_l_zh": lambda prediction, answer, _: metrics.rouge_l_zh(prediction, answer),
    "classification": metrics.classification_score,
    "retrieval": lambda prediction, answer, _: metrics.retrieval_score(prediction, answer),
    "retrieval_zh": lambda prediction, answer, _: metrics.retrieval_score_zh(prediction, answer),
    "count": lambda prediction, answer, _: metrics.count_score(prediction, answer),
    "code_similarity": lambda prediction, answer, _: metrics.code_similarity(prediction, answer),
}
"""eval.py, dataset2metric: prediction, one answer and the classes (empty if there are none) -> 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongBenchSet(Subset):
    """LongBench's definition of a dataset; its category is one of `DOMAINS`, its metric one of `METRICS`.

    Attributes:
        language: ``en``, ``zh``, or ``code``, which counts in both.
        samples: Number of samples in v1.
        samples_e: Number of samples in LongBench-E; 0 if the dataset is not in it.
        template: ``chat-prefix``, or ``none`` for datasets of which ``pred.py`` says that "chat models are better off
            without build prompts on these tasks".
        first_line: Whether only the prediction's first line is scored.
        inside: Regular expression of candidates in the context that are of the answer's kind.
    """

    language: str
    samples: int = 200
    samples_e: int = 0
    first_line: bool = False
    inside: str = ""


_ARTICLE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.'
)
_ONLY = "Only give me the answer and do not output any other words."
_PASSAGES = (
    f"Answer the question based on the given passages. {_ONLY}\n\nThe following are given passages.\n{{context}}\n\n"
    f"Answer the question based on the given passages. {_ONLY}\n\nQuestion: {{input}}"
)

SETS: dict[str, LongBenchSet] = {
    "narrativeqa": LongBenchSet(
        category=SINGLE,
        language=ENGLISH,
        prompt="You are given a story, which can be either a novel or a movie script, and a question. Answer the "
        "question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
        "Story: {context}\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase "
        "if possible. Do not provide any explanation.\n\nQuestion: {input}",
        prefix="\n\nAnswer:",
        max_new_tokens=128,
        metric="qa_f1",
    ),
    "qasper": LongBenchSet(
        category=SINGLE,
        language=ENGLISH,
        prompt=f"You are given a scientific article and a question. Answer the question {_ARTICLE}\n\n"
        f"Article: {{context}}\n\n Answer the question based on the above article {_ARTICLE}\n\nQuestion: {{input}}",
        prefix="\n\nAnswer:",
        max_new_tokens=128,
        metric="qa_f1",
        samples_e=224,
    ),
    "multifieldqa_en": LongBenchSet(
        category=SINGLE,
        language=ENGLISH,
        prompt="Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based "
        "on the above text, only give me the answer and do not output any other words.\n\nQuestion: {input}",
        prefix="\nAnswer:",
        max_new_tokens=64,
        metric="qa_f1",
        samples=150,
        samples_e=150,
    ),
    "multifieldqa_zh": LongBenchSet(
        category=SINGLE,
        language=CHINESE,
        prompt="阅读以下文字并用中文简短回答：\n\n{context}\n\n"
        "现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}",
        prefix="\n回答：",
        max_new_tokens=64,
        metric="qa_f1_zh",
    ),
    "hotpotqa": LongBenchSet(
        category=MULTI,
        language=ENGLISH,
        prompt=_PASSAGES,
        prefix="\nAnswer:",
        max_new_tokens=32,
        metric="qa_f1",
        samples_e=300,
    ),
    "2wikimqa": LongBenchSet(
        category=MULTI,
        language=ENGLISH,
        prompt=_PASSAGES,
        prefix="\nAnswer:",
        max_new_tokens=32,
        metric="qa_f1",
        samples_e=300,
    ),
    "musique": LongBenchSet(
        category=MULTI,
        language=ENGLISH,
        prompt=_PASSAGES,
        prefix="\nAnswer:",
        max_new_tokens=32,
        metric="qa_f1",
    ),
    "dureader": LongBenchSet(
        category=MULTI,
        language=CHINESE,
        prompt="请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}",
        prefix="\n回答：",
        max_new_tokens=128,
        metric="rouge_l_zh",
    ),
    "gov_report": LongBenchSet(
        category=SUMMARY,
        language=ENGLISH,
        prompt="You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\nNow, write a one-page summary of the report.",
        prefix="\n\nSummary:",
        max_new_tokens=512,
        metric="rouge_l",
        samples_e=300,
    ),
    "qmsum": LongBenchSet(
        category=SUMMARY,
        language=ENGLISH,
        prompt="You are given a meeting transcript and a query containing a question or instruction. Answer the query "
        "in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting "
        "transcript in one or more sentences.\n\nQuery: {input}",
        prefix="\nAnswer:",
        max_new_tokens=512,
        metric="rouge_l",
    ),
    "multi_news": LongBenchSet(
        category=SUMMARY,
        language=ENGLISH,
        prompt="You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
        "Now, write a one-page summary of all the news.",
        prefix="\n\nSummary:",
        max_new_tokens=512,
        metric="rouge_l",
        samples_e=294,
    ),
    "vcsum": LongBenchSet(
        category=SUMMARY,
        language=CHINESE,
        prompt="下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}",
        prefix="\n\n会议总结：",
        max_new_tokens=512,
        metric="rouge_l_zh",
    ),
    "trec": LongBenchSet(
        category=FEW_SHOT,
        language=ENGLISH,
        prompt="Please determine the type of the question below. Here are some examples of questions.\n\n"
        "{context}\n{input}",
        max_new_tokens=64,
        metric="classification",
        samples_e=300,
        template="none",
        first_line=True,
    ),
    "triviaqa": LongBenchSet(
        category=FEW_SHOT,
        language=ENGLISH,
        prompt=f"Answer the question based on the given passage. {_ONLY} The following are some examples.\n\n"
        "{context}\n\n{input}",
        max_new_tokens=32,
        metric="qa_f1",
        samples_e=300,
        template="none",
        first_line=True,
    ),
    "samsum": LongBenchSet(
        category=FEW_SHOT,
        language=ENGLISH,
        prompt="Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        "{context}\n\n{input}",
        max_new_tokens=128,
        metric="rouge_l",
        samples_e=300,
        template="none",
        stop=("\n",),
        first_line=True,
    ),
    "lsht": LongBenchSet(
        category=FEW_SHOT,
        language=CHINESE,
        prompt="请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}",
        max_new_tokens=64,
        metric="classification",
        template="none",
        first_line=True,
    ),
    "passage_count": LongBenchSet(
        category=SYNTHETIC,
        language=ENGLISH,
        prompt="There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
        "carefully read these paragraphs and determine how many unique paragraphs there are after removing duplicates. "
        "In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n"
        "Please enter the final count of unique paragraphs after removing duplicates. The output format should only "
        "contain the number, such as 1, 2, 3, and so on.",
        prefix="\n\nThe final answer is: ",
        max_new_tokens=32,
        metric="count",
        samples_e=300,
    ),
    "passage_retrieval_en": LongBenchSet(
        category=SYNTHETIC,
        language=ENGLISH,
        prompt="Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
        "abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the "
        'paragraph that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.',
        prefix="\n\nThe answer is: ",
        max_new_tokens=32,
        metric="retrieval",
        samples_e=300,
        inside=r"Paragraph \d+",
    ),
    "passage_retrieval_zh": LongBenchSet(
        category=SYNTHETIC,
        language=CHINESE,
        prompt="以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
        '下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式',
        prefix="\n\n答案是：",
        max_new_tokens=32,
        metric="retrieval_zh",
        inside=r"段落\d+",
    ),
    "lcc": LongBenchSet(
        category=CODE,
        language=PROGRAMS,
        prompt="Please complete the code given below. \n{context}",
        prefix="Next line of code:\n",
        max_new_tokens=64,
        metric="code_similarity",
        samples=500,
        samples_e=300,
        template="none",
    ),
    "repobench-p": LongBenchSet(
        category=CODE,
        language=PROGRAMS,
        prompt="Please complete the code given below. \n{context}{input}",
        prefix="Next line of code:\n",
        max_new_tokens=64,
        metric="code_similarity",
        samples=500,
        samples_e=300,
        template="none",
    ),
}
"""Datasets by upstream's name, in its order."""
