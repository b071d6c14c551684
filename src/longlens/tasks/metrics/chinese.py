"""Computes LongBench's scores of Chinese answers, after word segmentation."""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any

from longlens.errors import require
from longlens.tasks.metrics.answers import Answers, flat_answers, words_f1
from longlens.tasks.metrics.rouge import MAX_STEPS, longbench_rouge_l

# metrics.py, normalize_zh_answer: cn_punctuation
_PUNCTUATION = str.maketrans(
    "",
    "",
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    + "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.",
)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    jieba = require("jieba", extra="tasks", purpose="splitting Chinese text into words")
    tokenizer = jieba.Tokenizer()
    # The same as initialize(), but without its cache: a file in the shared temp directory that anyone may have written.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def split_words(text: str) -> list[str]:
    """``list(jieba.cut(text, cut_all=False))`` with jieba's own dictionary: words, spaces and punctuation, in order.

    The first call reads the dictionary, which takes about half a second.

    Raises:
        UserError: jieba is not installed.
    """
    return list(_tokenizer().cut(text, cut_all=False))


def _normal_words(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_PUNCTUATION).split()) for word in split_words(text))
    return [word for word in words if word]


def token_f1_zh(prediction: str, answers: Answers) -> float:
    """F1 of the words that prediction and answer share, best over the answers, 0 to 1.

    The formula of `token_f1`, with words from `split_words`, each in lower case and without spaces and punctuation,
    ASCII or Chinese; words that become empty are dropped. Two texts without words score 0.

    Oddity: LongBench's list of Chinese punctuation lacks ``《`` and ``·``, which are kept.

    Source: LongBench ``LongBench/metrics.py``, `qa_f1_zh_score` (multifieldqa_zh).

    Raises:
        UserError: The list of answers is empty, or jieba is not installed.
    """
    given = _normal_words(prediction)
    return max(words_f1(given, _normal_words(answer)) for answer in flat_answers(answers))


def character_f1_zh(prediction: str, answers: Answers) -> float:
    """F1 of the characters that prediction and answer share, best over the answers, 0 to 1.

    The formula of `token_f1`, with every character as a word, in lower case and without punctuation and spaces. Two
    texts without characters score 0.

    Source: InfiniteBench ``src/compute_scores.py``, `qa_f1_score_zh` (longbook_qa_chn).

    Raises:
        UserError: The list of answers is empty.
    """
    given = _normal_characters(prediction)
    return max(words_f1(given, _normal_characters(answer)) for answer in flat_answers(answers))


def _normal_characters(text: str) -> list[str]:
    return list("".join(text.lower().translate(_PUNCTUATION).split()))


def rouge_l_zh(prediction: str, reference: str) -> float:
    """``rouge_l(" ".join(split_words(prediction)), " ".join(split_words(reference)), variant="longbench")``.

    Oddity: ``。`` does not end a sentence there, so a whole answer is one sentence unless it contains a ``.``, and
    sentences of about 700 words and more score 0, see `rouge_l`. The limit here is 989 steps, because
    `rouge_zh_score` uses one more stack frame.

    Source: LongBench ``LongBench/metrics.py``, `rouge_zh_score` (dureader, vcsum).

    Raises:
        UserError: jieba is not installed.

    Warns:
        LonglensWarning: A pair of sentences scored 0 because of its length.
    """
    given, wanted = (" ".join(split_words(text)) for text in (prediction, reference))
    return longbench_rouge_l(given, wanted, MAX_STEPS - 1)
