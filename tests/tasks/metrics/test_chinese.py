import sys
import tempfile
from collections import Counter
from functools import lru_cache

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import LonglensWarning, UserError
from longlens.tasks.metrics import chinese, retrieval_score_zh, rouge_l, rouge_l_zh, token_f1_zh

texts = st.text(alphabet="我们来到北京大学研究的，。《》 \nAI3.", max_size=20)
# metrics.py, normalize_zh_answer
MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def naive_f1(prediction, answer):
    def words(text):
        plain = ("".join(char for char in word.lower() if char not in MARKS) for word in jieba_words(text))
        return [word for word in ("".join(word.split()) for word in plain) if word]

    given_words, wanted = words(prediction), words(answer)
    common = sum((Counter(given_words) & Counter(wanted)).values())
    return 2 * common / (len(given_words) + len(wanted)) if common else 0.0


@lru_cache(maxsize=1)
def tokenizer():
    """jieba as it sets itself up, with its cache in a folder of ours."""
    jieba.setLogLevel("ERROR")
    made = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        made.tmp_dir = folder
        made.initialize()
    return made


def jieba_words(text):
    return list(tokenizer().cut(text, cut_all=False))


@settings(derandomize=True, deadline=None)
@given(texts, texts)
def test_words_are_jiebas_and_the_scores_are_made_of_them(prediction, answer):
    assert chinese.split_words(prediction) == jieba_words(prediction)
    assert token_f1_zh(prediction, [answer, answer]) == pytest.approx(naive_f1(prediction, answer))
    given_words, wanted = (" ".join(jieba_words(text)) for text in (prediction, answer))
    assert rouge_l_zh(prediction, answer) == rouge_l(given_words, wanted, variant="longbench")


def test_a_long_answer_fails_a_step_earlier_than_an_english_one():
    """Where LongBench's own `rouge_zh_score` and `rouge_score`, called from its `scorer`, went from a score to 0."""
    last, first = (" ".join(f"w{n}" for n in range(count)) for count in (992, 993))
    assert rouge_l_zh(last, "w3") > 0
    with pytest.warns(LonglensWarning, match="fails above 989 steps"):
        assert rouge_l_zh(first, "w3") == 0.0
    assert rouge_l(first, "w3", variant="longbench") > 0


def test_the_dictionary_is_read_without_a_file_in_the_temp_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    chinese._tokenizer.cache_clear()
    assert chinese.split_words("我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]
    assert list(tmp_path.iterdir()) == []


def test_an_answer_without_a_paragraph_is_said():
    with pytest.raises(UserError, match="answer '第三' contains no paragraph: expected '段落N'"):
        retrieval_score_zh("3", "第三")


def test_jieba_is_named_with_its_extra(monkeypatch):
    chinese._tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    for use in (lambda: token_f1_zh("一", "一"), lambda: rouge_l_zh("一", "一")):
        with pytest.raises(UserError, match=r"needs the package 'jieba'.*pip install 'longlens\[tasks\]'"):
            use()
