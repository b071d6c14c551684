"""LongBench v1's 21 sets as a table: what is asked, how long the answer may be, how it is scored.

All of it is THUDM/LongBench at 2e00731 (MIT): prompts from ``LongBench/config/dataset2prompt.json``, word for word with
their misprints; answer tokens from ``dataset2maxlen.json``; metrics and the first line from ``eval.py``; chat template
and stop from ``pred.py``; domains, languages and numbers of samples from ``task.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from longlens.tasks.longbench import scores
from longlens.tasks.longbench.scores import Metric

SINGLE, MULTI, SUMMARY = "single-doc QA", "multi-doc QA", "summarization"
FEW_SHOT, SYNTHETIC, CODE = "few-shot", "synthetic", "code"
DOMAINS = (SINGLE, MULTI, SUMMARY, FEW_SHOT, SYNTHETIC, CODE)
"""task.md, "Task Type"."""
ENGLISH, CHINESE, PROGRAMS = "en", "zh", "code"
CONTEXT = "{context}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What LongBench says of a set.

    Attributes:
        domain: One of `DOMAINS`.
        language: ``en``, ``zh``, or ``code``, which counts in both.
        prompt: Upstream's up to where the answer begins, with ``{context}`` and, where the set has one, ``{input}``.
        prefix: The rest of it, how the answer begins, with the white space that ends it; empty where the data's own
            ``input`` ends so.
        max_new_tokens: Tokens of an answer.
        metric: Compares with one answer; the best over the answers counts.
        samples: Of v1.
        samples_e: Of LongBench-E; 0 where the set is not in it.
        template: ``chat-prefix``, or ``none`` for sets of which ``pred.py`` says that "chat models are better off
            without build prompts on these tasks".
        stop: Where an answer ends.
        first_line: Whether only the prediction's first line is scored.
        inside: Regular expression of what stands in the context and is of the answer's kind.
    """

    domain: str
    language: str
    prompt: str
    prefix: str
    max_new_tokens: int
    metric: Metric
    samples: int = 200
    samples_e: int = 0
    template: str = "chat-prefix"
    stop: tuple[str, ...] = ()
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

SETS: dict[str, Facts] = {
    "narrativeqa": Facts(
        domain=SINGLE,
        language=ENGLISH,
        prompt="You are given a story, which can be either a novel or a movie script, and a question. Answer the "
        "question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
        "Story: {context}\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase "
        "if possible. Do not provide any explanation.\n\nQuestion: {input}",
        prefix="\n\nAnswer:",
        max_new_tokens=128,
        metric=scores.QA_F1,
    ),
    "qasper": Facts(
        domain=SINGLE,
        language=ENGLISH,
        prompt=f"You are given a scientific article and a question. Answer the question {_ARTICLE}\n\n"
        f"Article: {{context}}\n\n Answer the question based on the above article {_ARTICLE}\n\nQuestion: {{input}}",
        prefix="\n\nAnswer:",
        max_new_tokens=128,
        metric=scores.QA_F1,
        samples_e=224,
    ),
    "multifieldqa_en": Facts(
        domain=SINGLE,
        language=ENGLISH,
        prompt="Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based "
        "on the above text, only give me the answer and do not output any other words.\n\nQuestion: {input}",
        prefix="\nAnswer:",
        max_new_tokens=64,
        metric=scores.QA_F1,
        samples=150,
        samples_e=150,
    ),
    "multifieldqa_zh": Facts(
        domain=SINGLE,
        language=CHINESE,
        prompt="阅读以下文字并用中文简短回答：\n\n{context}\n\n"
        "现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}",
        prefix="\n回答：",
        max_new_tokens=64,
        metric=scores.QA_F1_ZH,
    ),
    "hotpotqa": Facts(
        domain=MULTI,
        language=ENGLISH,
        prompt=_PASSAGES,
        prefix="\nAnswer:",
        max_new_tokens=32,
        metric=scores.QA_F1,
        samples_e=300,
    ),
    "2wikimqa": Facts(
        domain=MULTI,
        language=ENGLISH,
        prompt=_PASSAGES,
        prefix="\nAnswer:",
        max_new_tokens=32,
        metric=scores.QA_F1,
        samples_e=300,
    ),
    "musique": Facts(
        domain=MULTI,
        language=ENGLISH,
        prompt=_PASSAGES,
        prefix="\nAnswer:",
        max_new_tokens=32,
        metric=scores.QA_F1,
    ),
    "dureader": Facts(
        domain=MULTI,
        language=CHINESE,
        prompt="请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}",
        prefix="\n回答：",
        max_new_tokens=128,
        metric=scores.ROUGE_L_ZH,
    ),
    "gov_report": Facts(
        domain=SUMMARY,
        language=ENGLISH,
        prompt="You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\nNow, write a one-page summary of the report.",
        prefix="\n\nSummary:",
        max_new_tokens=512,
        metric=scores.ROUGE_L,
        samples_e=300,
    ),
    "qmsum": Facts(
        domain=SUMMARY,
        language=ENGLISH,
        prompt="You are given a meeting transcript and a query containing a question or instruction. Answer the query "
        "in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting "
        "transcript in one or more sentences.\n\nQuery: {input}",
        prefix="\nAnswer:",
        max_new_tokens=512,
        metric=scores.ROUGE_L,
    ),
    "multi_news": Facts(
        domain=SUMMARY,
        language=ENGLISH,
        prompt="You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
        "Now, write a one-page summary of all the news.",
        prefix="\n\nSummary:",
        max_new_tokens=512,
        metric=scores.ROUGE_L,
        samples_e=294,
    ),
    "vcsum": Facts(
        domain=SUMMARY,
        language=CHINESE,
        prompt="下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}",
        prefix="\n\n会议总结：",
        max_new_tokens=512,
        metric=scores.ROUGE_L_ZH,
    ),
    "trec": Facts(
        domain=FEW_SHOT,
        language=ENGLISH,
        prompt="Please determine the type of the question below. Here are some examples of questions.\n\n"
        "{context}\n{input}",
        prefix="",
        max_new_tokens=64,
        metric=scores.CLASSIFICATION,
        samples_e=300,
        template="none",
        first_line=True,
    ),
    "triviaqa": Facts(
        domain=FEW_SHOT,
        language=ENGLISH,
        prompt=f"Answer the question based on the given passage. {_ONLY} The following are some examples.\n\n"
        "{context}\n\n{input}",
        prefix="",
        max_new_tokens=32,
        metric=scores.QA_F1,
        samples_e=300,
        template="none",
        first_line=True,
    ),
    "samsum": Facts(
        domain=FEW_SHOT,
        language=ENGLISH,
        prompt="Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        "{context}\n\n{input}",
        prefix="",
        max_new_tokens=128,
        metric=scores.ROUGE_L,
        samples_e=300,
        template="none",
        stop=("\n",),
        first_line=True,
    ),
    "lsht": Facts(
        domain=FEW_SHOT,
        language=CHINESE,
        prompt="请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}",
        prefix="",
        max_new_tokens=64,
        metric=scores.CLASSIFICATION,
        template="none",
        first_line=True,
    ),
    "passage_count": Facts(
        domain=SYNTHETIC,
        language=ENGLISH,
        prompt="There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
        "carefully read these paragraphs and determine how many unique paragraphs there are after removing duplicates. "
        "In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n"
        "Please enter the final count of unique paragraphs after removing duplicates. The output format should only "
        "contain the number, such as 1, 2, 3, and so on.",
        prefix="\n\nThe final answer is: ",
        max_new_tokens=32,
        metric=scores.COUNT,
        samples_e=300,
    ),
    "passage_retrieval_en": Facts(
        domain=SYNTHETIC,
        language=ENGLISH,
        prompt="Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the "
        "abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the "
        'paragraph that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.',
        prefix="\n\nThe answer is: ",
        max_new_tokens=32,
        metric=scores.RETRIEVAL,
        samples_e=300,
        inside=r"Paragraph \d+",
    ),
    "passage_retrieval_zh": Facts(
        domain=SYNTHETIC,
        language=CHINESE,
        prompt="以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
        '下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式',
        prefix="\n\n答案是：",
        max_new_tokens=32,
        metric=scores.RETRIEVAL_ZH,
        inside=r"段落\d+",
    ),
    "lcc": Facts(
        domain=CODE,
        language=PROGRAMS,
        prompt="Please complete the code given below. \n{context}",
        prefix="Next line of code:\n",
        max_new_tokens=64,
        metric=scores.CODE_SIMILARITY,
        samples=500,
        samples_e=300,
        template="none",
    ),
    "repobench-p": Facts(
        domain=CODE,
        language=PROGRAMS,
        prompt="Please complete the code given below. \n{context}{input}",
        prefix="Next line of code:\n",
        max_new_tokens=64,
        metric=scores.CODE_SIMILARITY,
        samples=500,
        samples_e=300,
        template="none",
    ),
}
"""By upstream's name, in its order."""
