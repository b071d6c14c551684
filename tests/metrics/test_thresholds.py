import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.metrics import perplexity, threshold_table
from longlens.metrics import thresholds as module
from longlens.scoring.scores import ShortContext, TokenScores
from tests.keytokens.test_alignment import tokenizations
from tests.reference import thresholds as naive
from tests.toys import NAN, scores, token_scores

INF = math.inf
SHORT = ShortContext(4, 2)

# Thresholds in the tests are often exactly an LSD, which is then near a threshold.
pytestmark = [
    pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]


def of_spans(spans, long, short=None, *, id="a"):
    shorts = {} if short is None else {SHORT: np.asarray(short, dtype=np.float32)}
    return TokenScores(
        id=id,
        text=None,
        text_sha256=f"text of {id}",
        total_tokens=len(spans),
        token_ids=np.arange(len(spans), dtype=np.int64),
        char_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        long_logprobs=np.asarray(long, dtype=np.float32),
        short=shorts,
        selected=None if short is None else SHORT,
    )


def assert_is_perplexity_everywhere(model, evaluator, alphas, betas):
    table = threshold_table(model, evaluator, alphas=alphas, betas=betas)
    longppl = table.longppl
    assert longppl.shape == table.logprob.shape == table.num_tokens.shape == (len(alphas), len(betas))
    for a, alpha in enumerate(alphas):
        for b, beta in enumerate(betas):
            rule = {"use_lcl": False} if beta == -INF else {"beta": beta}
            result = perplexity(model, evaluator_scores=evaluator, alpha=alpha, **rule)
            assert table.num_tokens[a, b] == result.num_key_tokens, (alpha, beta)
            if result.longppl is None:
                assert np.isnan(longppl[a, b]), (alpha, beta)
            else:
                assert longppl[a, b] == pytest.approx(result.longppl, rel=1e-12), (alpha, beta)


# values that are thresholds too, of which 0.1 and -1.3 are others in float32
LOGPROBS = [NAN, -INF, 0, -0.1, -0.5, -1, -1.3, -2, -2.5, -4]
THRESHOLDS = [-2, -1.3, -1, float(np.float32(-1.3)), -0.5, 0, 0.1, float(np.float32(0.1)), 0.5, 1, 2, 3.5]


@st.composite
def corpora(draw, least=1):
    rows, evaluated = [], []
    for id in "ab"[: draw(st.integers(least, 2))]:
        length = draw(st.integers(0, 14))
        for kept, sides in ((rows, 1), (evaluated, 2)):
            spans = draw(tokenizations(length))
            lists = st.lists(st.sampled_from(LOGPROBS), min_size=len(spans), max_size=len(spans))
            kept.append(of_spans(spans, *(draw(lists) for _ in range(sides)), id=id))
    return rows, evaluated


def increasing(values):
    return st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True).map(sorted)


@given(corpora(), increasing(THRESHOLDS), increasing([-INF, *THRESHOLDS]))
@settings(deadline=None)
def test_every_entry_is_what_perplexity_gives(corpus, alphas, betas):
    rows, evaluated = corpus
    assert_is_perplexity_everywhere(scores(*rows, name="M"), scores(*evaluated, name="E"), alphas, betas)


@given(corpora(), increasing(THRESHOLDS), increasing([-INF, *THRESHOLDS]))
@settings(deadline=None, max_examples=300)
def test_every_entry_is_that_of_the_naive_oracle(corpus, alphas, betas):
    rows, evaluated = corpus
    table = threshold_table(scores(*rows), scores(*evaluated), alphas=alphas, betas=betas)
    expected = [[naive.key_logprobs(rows, evaluated, alpha, beta) for beta in betas] for alpha in alphas]
    assert table.num_tokens.tolist() == [[len(logprobs) for logprobs in line] for line in expected]
    np.testing.assert_allclose(table.logprob, [[sum(logprobs) for logprobs in line] for line in expected], rtol=1e-12)
    np.testing.assert_allclose(
        table.longppl, [[naive.longppl(logprobs) for logprobs in line] for line in expected], rtol=1e-12
    )


def random_spans(rng, length, split):
    """Tokens of 1 to 6 characters, some characters of which are split into 3 tokens."""
    spans, start = [], 0
    while start < length:
        if rng.random() < split:
            spans += [(start, start + 1)] * 3
            start += 1
        else:
            end = min(length, start + int(rng.integers(1, 7)))
            spans.append((start, end))
            start = end
    return spans


def random_scores(rng, length, *, split=0.0, short=True, id="a"):
    spans = random_spans(rng, length, split)
    lines = [-3 * rng.random(len(spans)), -6 * rng.random(len(spans))]
    lines[0][:1] = NAN
    return of_spans(spans, *lines[: 1 + short], id=id)


def test_a_larger_corpus_is_what_perplexity_gives():
    rng = np.random.default_rng(0)
    splits = {"a": (0, 0), "b": (0.3, 0.2), "c": (0.1, 0.5)}
    rows = [random_scores(rng, 700, split=split, short=False, id=id) for id, (split, _) in splits.items()]
    evaluated = [random_scores(rng, 700, split=split, id=id) for id, (_, split) in reversed(splits.items())]
    lsd = np.unique(np.concatenate([row.lsd[~np.isnan(row.lsd)] for row in evaluated]).astype(np.float64))
    alphas, betas = [-9.0, *lsd[::200], 9.0], [-INF, -9.0, -2.0, -1.0, -0.3, 0.0]
    assert_is_perplexity_everywhere(scores(*rows, name="M"), scores(*evaluated, name="E"), alphas, betas)


def test_split_characters_do_not_depend_on_how_many_are_looked_at_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    model, evaluator = (scores(random_scores(rng, 300, split=0.5)) for _ in range(2))
    grid = {"alphas": np.linspace(-3, 5, 9), "betas": [-INF, -2, -1]}
    whole = threshold_table(model, evaluator, **grid)
    monkeypatch.setattr(module, "_SPLIT_TOKENS_AT_ONCE", 7)
    parts = threshold_table(model, evaluator, **grid)
    assert parts.num_tokens.tolist() == whole.num_tokens.tolist()
    np.testing.assert_allclose(parts.logprob, whole.logprob, rtol=1e-13)


def test_by_hand():
    # LSD and LCL of the evaluator's "ab" are 3 and -1, of "cd" 2 and -3; the model's "bc" needs both
    evaluator = scores(token_scores(["ab", "cd"], [-1, -3], [-4, -5]))
    model = scores(token_scores(["a", "bc", "d"], [-1, -2, -4]))
    table = threshold_table(model, evaluator, alphas=[1, 2, 3], betas=[-INF, -3, -2])
    assert table.num_tokens.tolist() == [[3, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert table.logprob.tolist() == [[-7, -1, -1], [-1, -1, -1], [0, 0, 0]]
    assert table.longppl[:2].tolist() == [[pytest.approx(math.exp(7 / 3)), math.e, math.e], [math.e] * 3]
    assert np.isnan(table.longppl[2]).all()
    assert (table.alphas.tolist(), table.betas.tolist()) == ([1, 2, 3], [-INF, -3, -2])


def test_a_split_character_is_key_with_any_of_its_tokens_and_needs_both_criteria_in_one():
    spans = [(0, 1), (0, 1), (1, 2)]
    evaluator = scores(of_spans(spans, [-3, -1, -1], [-6, -2, -9]))  # LSD 3, 1, 8
    model = scores(of_spans([(0, 1), (0, 2)], [-1, -2]))
    table = threshold_table(model, evaluator, alphas=[0.5, 2], betas=[-4, -2])
    assert table.num_tokens.tolist() == [[2, 2], [2, 0]]


def test_a_token_of_probability_0_spoils_the_entries_that_it_is_in_and_no_other():
    evaluator = scores(token_scores(["a", "b"], [-1, -1], [-3, -6]))
    model = scores(token_scores(["a", "b"], [-INF, -2]))
    table = threshold_table(model, evaluator, alphas=[1, 3], betas=[-INF, -2])
    assert table.num_tokens.tolist() == [[2, 2], [1, 1]]
    assert table.logprob.tolist() == [[-INF, -INF], [-2, -2]]
    assert np.isnan(table.longppl[0]).all()
    assert table.longppl[1].tolist() == [pytest.approx(math.exp(2))] * 2
    enormous = scores(token_scores(["a", "b"], [-1, -1e30]))
    assert np.isnan(threshold_table(enormous, evaluator, alphas=[1], betas=[-2]).longppl).all()


def test_another_short_context_of_the_evaluator():
    evaluator = scores(token_scores(["a", "b"], [-1, -1], [-1, -1]))
    evaluator[0].short[ShortContext(2, 1)] = np.array([-9, -9], dtype=np.float32)
    model = scores(token_scores(["a", "b"], [-1, -2]))
    grid = {"alphas": [2], "betas": [-2]}
    assert threshold_table(model, evaluator, **grid).num_tokens.tolist() == [[0]]
    assert threshold_table(model, evaluator, **grid, context=2, stride=1).num_tokens.tolist() == [[2]]
    with pytest.raises(UserError, match="no scores at K=3"):
        threshold_table(model, evaluator, **grid, context=3)


@pytest.mark.parametrize("split", [0.0, 0.1])
def test_a_document_of_32k_tokens_takes_seconds_at_most(split):
    rng = np.random.default_rng(2)
    model, evaluator = (scores(random_scores(rng, 115_000, split=split)) for _ in range(2))
    assert len(model[0].token_ids) > 32_000
    start = time.process_time()
    table = threshold_table(model, evaluator, alphas=np.linspace(-1, 10, 111), betas=[-INF, *np.linspace(-10, 0, 101)])
    assert time.process_time() - start < 5  # 0.1 to 0.4 s on an idle machine
    assert table.num_tokens[0, 0] > 10_000


@pytest.mark.parametrize("name", ["alphas", "betas"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"are \[\], expected a list of at least one threshold"),
        ([1, 1], r"have 1.0 after 1.0, expected strictly increasing"),
        ([2, 1], r"have 1.0 after 2.0, expected strictly increasing"),
        ([1, NAN], r"have nan after 1.0, expected strictly increasing"),
        ([-INF, -INF], r"have -inf after -inf, expected strictly increasing"),
    ],
)
def test_thresholds_that_do_not_increase_are_refused(name, values, message):
    run = scores(token_scores(["a"], [-1], [-2]))
    with pytest.raises(UserError, match=f"{name} {message}"):
        threshold_table(run, run, **({"alphas": [1], "betas": [1]} | {name: values}))


def test_thresholds_that_are_not_finite_are_refused_but_for_a_first_beta():
    run = scores(token_scores(["a"], [-1], [-2]))
    with pytest.raises(UserError, match="`alpha` is -inf, expected a finite number"):
        threshold_table(run, run, alphas=[-INF, 1], betas=[1])
    for betas in ([1, INF], [NAN]):
        with pytest.raises(UserError, match=f"`beta` is {betas[-1]}, expected a finite number"):
            threshold_table(run, run, alphas=[1], betas=betas)
    assert threshold_table(run, run, alphas=[0], betas=[-INF]).num_tokens.tolist() == [[1]]


def test_what_perplexity_refuses_is_refused():
    grid = {"alphas": [2], "betas": [-2]}
    evaluator = scores(token_scores(["ab"], [-1], [-2]), name="E")
    with pytest.raises(UserError, match="document 'b' was scored with M, and has no scores of the evaluator E"):
        threshold_table(scores(token_scores(["ab"], [-1], id="b"), name="M"), evaluator, **grid)
    with pytest.raises(UserError, match="different texts"):
        threshold_table(scores(token_scores(["cd"], [-1])), evaluator, **grid)
    with pytest.raises(UserError, match="has no short-context scores"):
        threshold_table(evaluator, scores(token_scores(["ab"], [-1])), **grid)
    with pytest.raises(UserError, match="the scores of M contain no documents"):
        threshold_table(scores(name="M"), evaluator, **grid)


def test_documents_without_tokens_have_none():
    run = scores(token_scores([], [], []))
    table = threshold_table(run, run, alphas=[1, 2], betas=[-2])
    assert table.num_tokens.tolist() == [[0], [0]]
