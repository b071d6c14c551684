import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.keytokens import read_keys, select_key_tokens, write_keys
from longlens.metrics import distributions
from longlens.metrics.score_distributions import LCL_EDGES, LSD_EDGES, LSD_FLOOR, MAX_BINS
from longlens.scoring.scores import ShortContext
from tests.reference import distributions as naive
from tests.toys import NAN, scores, token_scores

INF = math.inf
MEANS = ("long_logprob", "short_logprob", "long_of_short", "key_share")

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

# LSD: none, none, 0, 2 (an edge), 0.5 (an edge), 3, -inf, none
PIECES = ["The ", "code ", "is ", "45", "129", ".", " B", "ye"]
LONG = [NAN, -1, -2, -0.5, -1.5, -9, -INF, -1]
SHORT = [NAN, NAN, -2, -2.5, -2, -12, -3, NAN]


def toy(**changes):
    return scores(token_scores(PIECES, LONG, SHORT, **changes), name="M")


def random_row(rng, n, *, short=True, id="a"):
    pieces = [f"{i:07d}"[: 1 + i % 7] for i in range(n)]
    long, short_logprobs = (rng.choice([*LCL_EDGES, *LSD_EDGES, -3.0, -0.1, -INF, NAN], n) for _ in range(2))
    return token_scores(pieces, long, short_logprobs if short else None, id=id)


def test_classes_by_hand():
    found = distributions(toy())
    assert found.model == "M"
    assert (found.lsd.edges, found.lcl.edges) == (LSD_EDGES, LCL_EDGES)
    assert found.lsd.counts == (1, 0, 1, 1, 2)  # -inf | | 0 | 0.5 | 2, 3
    assert found.lcl.counts == (1, 0, 0, 0, 0, 1)  # of LSD 3 and 2: -9 and -0.5; 0.5 is not above 0.5
    assert found.lsd.shares == (0.2, 0, 0.2, 0.2, 0.4)
    for classes in (found.lsd, found.lcl):
        assert classes.answers is classes.rest is classes.answer_shares is classes.rest_shares is None


def test_answers_and_the_rest_are_of_documents_whose_answers_were_named():
    beside = token_scores(PIECES, LONG, SHORT, id="b")
    found = distributions(scores(*toy(), beside), answers={"a": [(13, 17)], "unknown": [(0, 1)]})  # "5", "129"
    assert found.lsd.counts == (2, 0, 2, 2, 4)
    assert found.lsd.answers == (0, 0, 0, 1, 1)
    assert found.lsd.rest == (1, 0, 1, 0, 1)
    assert (found.lcl.answers, found.lcl.rest) == ((0, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, 0))
    assert found.lsd.answer_shares == (0, 0, 0, 0.5, 0.5)
    assert found.lsd.rest_shares == (pytest.approx(1 / 3), 0, pytest.approx(1 / 3), 0, pytest.approx(1 / 3))
    none = distributions(toy(), answers={"a": []})
    assert (none.lsd.answers, none.lsd.answer_shares) == ((0,) * 5, None)
    assert none.lsd.rest == none.lsd.counts
    with pytest.raises(UserError, match="none of these documents was scored"):
        distributions(toy(), answers={"unknown": [(0, 1)]})
    with pytest.raises(UserError, match=r"answer_spans of document .* expected"):
        distributions(toy(), answers={"a": [(4, 2)]})


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_all_is_that_of_the_naive_oracle(lengths, seed, spans):
    rng = np.random.default_rng(seed)
    rows = [random_row(rng, n, id=str(i)) for i, n in enumerate(lengths)]
    size = len(rows[0].text)
    answers = {"0": [(min(start, size), min(start + length, size)) for start, length in spans]}
    keys = select_key_tokens(scores(*rows), alpha=0.5, beta=-3)
    found = distributions(scores(*rows), keys=keys, answers=answers)

    pairs = [naive.lsd_and_lcl(row, LSD_FLOOR) for row in rows]
    of_answers = naive.lsd_and_lcl(rows[0], LSD_FLOOR, answers["0"])
    for number, classes in enumerate((found.lsd, found.lcl)):
        every = [value for pair in pairs for value in pair[number]]
        assert sum(classes.counts) == len(every)
        assert list(classes.counts) == naive.class_counts(every, classes.edges)
        assert list(classes.answers) == naive.class_counts(of_answers[number], classes.edges)
        first = naive.class_counts(pairs[0][number], classes.edges)
        assert [a + r for a, r in zip(classes.answers, classes.rest, strict=True)] == first

    edges = naive.edges_of(max(lengths), 64, MAX_BINS)
    assert found.positions.edges.tolist() == edges
    runs = [keys.get(row.id).char_runs.tolist() for row in rows]
    plain = found.to_json()["positions"]
    for name, expected in naive.bins(rows, edges, runs).items():
        assert plain[name] == [None if v is None else pytest.approx(v, rel=1e-12) for v in expected], name


def test_positions_by_hand():
    positions = distributions(toy(), keys=select_key_tokens(toy(), alpha=1)).positions
    assert positions.edges.tolist() == [0, 64]
    assert positions.num_tokens.tolist() == [7]
    assert positions.long_logprob.tolist() == [pytest.approx(-15 / 6)]
    assert positions.short_logprob.tolist() == [pytest.approx(-18.5 / 4)]
    assert positions.long_of_short.tolist() == [pytest.approx(-13 / 4)]
    assert positions.key_share.tolist() == [pytest.approx(1 / 7)]  # "45"


def test_keys_of_another_tokenizer_and_from_a_file(tmp_path):
    model = scores(token_scores(["The code is ", "4", "5", "129. Bye"], [NAN, -1, -1, -1]), name="other")
    keys = select_key_tokens(toy(), alpha=1)
    write_keys(tmp_path / "keys.jsonl", keys)
    for source in (keys, read_keys(tmp_path / "keys.jsonl")):
        assert distributions(model, keys=source).positions.key_share.tolist() == [pytest.approx(2 / 3)]
    hole = scores(replace(model[0], long_logprobs=np.array([NAN, -1, NAN, -1], dtype=np.float32)))
    assert distributions(hole, keys=keys).positions.key_share.tolist() == [0.5]


def test_what_there_is_no_data_for_is_none():
    found = distributions(scores(token_scores(PIECES, LONG), name="M"))
    assert found.model == "M"
    assert found.lsd is found.lcl is found.positions.short_logprob is found.positions.long_of_short is None
    assert found.positions.key_share is None
    assert found.positions.num_tokens.tolist() == [7]
    assert distributions(scores(token_scores(PIECES, LONG)), answers={"a": [(0, 1)]}).lsd is None
    empty = distributions(scores(token_scores([], [], []), name="M"))
    assert (empty.lsd.counts, empty.lsd.shares) == ((0,) * 5, None)
    assert (empty.positions.edges.tolist(), empty.positions.num_tokens.tolist()) == ([0], [])


def test_json_has_no_nan():
    first = token_scores(["a"] * 64, [NAN] * 64, [NAN] * 64)
    plain = json.loads(json.dumps(distributions(scores(first), keys=select_key_tokens(scores(first))).to_json()))
    assert list(plain) == ["model", "lsd", "lcl", "positions"]
    assert plain["lsd"]["edges"] == list(LSD_EDGES)
    assert plain["lsd"]["counts"] == [0] * 5
    assert plain["lsd"]["shares"] is plain["lsd"]["answers"] is plain["lsd"]["answer_shares"] is None
    assert plain["positions"] == {"edges": [0, 64], "num_tokens": [0]} | {name: [None] for name in MEANS}
    json.dumps(distributions(toy(), answers={"a": [(13, 17)]}).to_json(), allow_nan=False)
    assert distributions(scores(token_scores(PIECES, LONG))).to_json()["lsd"] is None


@pytest.mark.parametrize(
    ("tokens", "width", "last"),
    [(1, 64, 64), (65, 64, 128), (2048, 64, 2048), (2049, 128, 2112), (4096, 128, 4096), (100_000, 4096, 100_032)],
)
def test_bins_are_32_at_most_and_end_with_the_last_cell(tokens, width, last):
    long = token_scores(["a"] * tokens, [-1.0] * tokens, [-2.0] * tokens)
    short = token_scores(["a"] * 10, [-3.0] * 10, [-3.0] * 10, id="b")
    for rows in ([long, short], [short, long]):
        positions = distributions(scores(*rows)).positions
        assert positions.edges.tolist() == [*range(0, last, width), last]
        assert len(positions.num_tokens) <= MAX_BINS == 32
        assert positions.num_tokens.sum() == tokens + 10
        in_first = min(tokens, width)
        assert positions.num_tokens[0] == in_first + 10
        assert positions.long_logprob[0] == pytest.approx(-(in_first + 30) / (in_first + 10))
        assert positions.short_logprob[1:].tolist() == [-2] * (len(positions.num_tokens) - 1)


def test_another_short_context():
    run = toy()
    run[0].short[ShortContext(2, 1)] = np.array([NAN, NAN, *[-9] * 6], dtype=np.float32)
    assert distributions(run).lsd.counts == (1, 0, 1, 1, 2)
    found = distributions(run, context=2)
    assert found.lsd.counts == (1, 0, 1, 0, 4)
    assert found.positions.short_logprob.tolist() == [-9]
    opened = scores(replace(run[0], selected=ShortContext(2, 1)))
    assert distributions(opened).lsd == found.lsd
    with pytest.raises(UserError, match="no scores at K=3"):
        distributions(run, context=3)


def test_documents_without_keys_or_of_another_text_and_no_documents_are_refused():
    keys = select_key_tokens(toy())
    with pytest.raises(UserError, match="document 'b' was scored with M, and has no keys"):
        distributions(toy(id="b"), keys=keys)
    with pytest.raises(UserError, match="the keys have different texts"):
        distributions(scores(token_scores(["a"], [-1])), keys=keys)
    with pytest.raises(UserError, match="the scores of M contain no documents"):
        distributions(scores(name="M"))
