import csv
import json
import math

import numpy as np
import pytest

from longlens.corpus import text_sha256
from longlens.errors import UserError
from longlens.metrics import perplexity, threshold_table
from longlens.metrics.longppl import column
from longlens.scoring.scores import ShortContext, TokenScores
from longlens.settings.options import KeyRule
from longlens.study.ablation import ablate
from longlens.study.ablation_tables import charts, tables, write_ablation
from longlens.study.correlation import correlate_columns
from longlens.study.ranking import kendall_tau, power_curve
from tests.reference import ablation as naive
from tests.toys import NAN, scores, token_scores

# random thresholds are near scores
pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

ALL_K = (ShortContext(12, 4), ShortContext(5, 5), ShortContext(5, 2))
WORDS = ["the", "lens", "sees", "far", "and", "near", "of", "light", "one", "two", "three"]


def text(rng, words):
    """Words, with phrases that come again."""
    drawn = [str(word) for word in rng.choice(WORDS, size=words)]
    return " ".join([*drawn, *drawn[2:9], *rng.choice(WORDS, size=5)])


def row(rng, text, id, *, longest, shorts, quality=1.0, extra=0):
    """A text in tokens of up to `longest` characters, and before its end `extra` empty ones."""
    ends = np.unique(np.append(np.cumsum(rng.integers(1, longest + 1, size=len(text))), len(text)))
    ends = ends[ends <= len(text)]
    spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)
    empty = np.full((extra, 2), spans[-1, 0])
    spans = np.concatenate([spans[:-1], empty, spans[-1:]]).astype(np.int64)
    n = len(spans)
    long = (-quality * rng.gamma(1.2, size=n)).astype(np.float32)
    long[0] = NAN
    short = {}
    for each in shorts:
        values = (long - rng.normal(1, 1.5, size=n)).astype(np.float32)
        short[each] = np.minimum(values, 0)
        short[each][: each.context] = NAN
    return TokenScores(
        id=id,
        text=text,
        text_sha256=text_sha256(text),
        total_tokens=n,
        token_ids=np.arange(n, dtype=np.int64),
        char_spans=spans,
        long_logprobs=long,
        short=short,
        selected=shorts[0] if shorts else None,
    )


def study(seed=0, documents=5):
    """Three models of two tokenizers and unequal documents, and two evaluators, of which one is a model too."""
    rng = np.random.default_rng(seed)
    texts = {f"d{number}": text(rng, 30 + 11 * number) for number in range(documents)}

    def run(name, longest, shorts, *, quality=1.0, extra=0, tokenizer="tokenizer", more=()):
        order = [*more, *texts] if name != "Z" else [*reversed(texts), *more]
        options = {"longest": longest, "shorts": shorts, "quality": quality, "extra": extra}
        rows = [row(rng, texts.get(id, "not scored with the models"), id, **options) for id in order]
        made = scores(*rows, name=name)
        made.manifest["model"]["tokenizer_sha256"] = tokenizer
        return made

    models = [
        run("X", 5, ALL_K[:2]),
        run("Y", 2, ALL_K[:1], quality=1.4, tokenizer="other"),
        run("Z", 4, [], quality=1.8, extra=1),
    ]
    return models, [run("E", 3, ALL_K, more=["more"]), models[0]]


GRID = {"alphas": [0.5, 1.5], "betas": [-1.0]}
RULE = KeyRule(alpha=1.0, beta=-2.0, gamma=3.0)


@pytest.fixture(scope="module")
def found():
    models, evaluators = study()
    benchmarks = {"RULER": {"X": 50.0, "Z": 10.0, "Y": 20.0}, "other": {"Y": 3.0}}
    return ablate(models, evaluators, benchmarks=benchmarks, rule=RULE, draws=50, **GRID)


def rows_of(run, short=None):
    rows = sorted((run.get(id) for id in run.ids if id != "more"), key=lambda row: row.id)
    return rows if short is None else [row.at(context=short[0], stride=short[1]) for row in rows]


def pick(found, metric, **wanted):
    measures = [m for m in found.measures if m.metric == metric]
    return [m for m in measures if all(getattr(m, name) == value for name, value in wanted.items())]


def test_every_k_and_d_of_every_evaluator_is_there_the_largest_k_first(found):
    assert [(s.evaluator, s.context, s.stride) for s in found.settings] == [
        *(("E", 12, 4), ("E", 5, 2), ("E", 5, 5)),
        *(("X", 12, 4), ("X", 5, 5)),
    ]
    assert (found.models, found.num_documents, found.alpha, found.beta) == (["X", "Y", "Z"], 5, 1.0, -2.0)
    cells = pick(found, "longppl", setting=found.settings[1]) + pick(found, "longppl_no_lcl", setting=found.settings[1])
    assert {(m.alpha, m.beta) for m in cells} == {(a, b) for a in (0.5, 1.0, 1.5) for b in (-2.0, -1.0, None)}


def test_every_metric_is_that_of_the_naive_oracle(found):
    models, evaluators = study()
    for setting in found.settings:
        evaluated = rows_of(evaluators[setting.evaluator == "X"], setting.short)
        for place, model in enumerate(models):
            expected = naive.values(rows_of(model), evaluated, 1.0, -2.0, 3.0)
            for metric, value in expected.items():
                alone = metric in ("ppl", "bits_per_character", "ppl_ngram")
                measures = pick(found, metric, setting=None if alone else setting)
                (measure,) = [m for m in measures if m.alpha in (None, 1.0) and m.beta in (None, -2.0)]
                assert measure.values[place] == pytest.approx(value, rel=1e-6), (metric, setting, place)


def test_every_cell_and_interval_is_that_of_perplexity_and_the_threshold_table(found):
    models, evaluators = study()
    for setting in found.settings:
        evaluator = evaluators[setting.evaluator == "X"]
        for place, model in enumerate(models):
            table = threshold_table(
                model,
                evaluator,
                alphas=[0.5, 1, 1.5],
                betas=[-math.inf, -2, -1],
                context=setting.context,
                stride=setting.stride,
            )
            for a, alpha in enumerate((0.5, 1.0, 1.5)):
                for b, beta in enumerate((None, -2.0, -1.0)):
                    metric = "longppl_no_lcl" if beta is None else "longppl"
                    (cell,) = pick(found, metric, setting=setting, alpha=alpha, beta=beta)
                    assert cell.num_tokens[place] == table.num_tokens[a, b]
                    assert cell.values[place] == pytest.approx(table.longppl[a, b], rel=1e-12)
            result = perplexity(
                model,
                evaluator_scores=evaluator,
                alpha=1.0,
                beta=-2.0,
                gamma=3.0,
                context=setting.context,
                stride=setting.stride,
                ngram=True,
            )
            (soft,) = pick(found, "longppl_soft", setting=setting)
            (hard,) = pick(found, "longppl", setting=setting, alpha=1.0, beta=-2.0)
            (plain,) = pick(found, "ppl")
            intervals = {"longppl_soft": soft, "longppl": hard, "ppl": plain}
            for metric, measure in intervals.items():
                assert measure.intervals[place] == pytest.approx(result.intervals[metric])
            (bits,) = pick(found, "key_bits_per_character", setting=setting)
            low, high = bits.intervals[place]
            assert bits.values[place] == pytest.approx(result.key_bits_per_character)
            assert low < bits.values[place] < high


def test_a_model_that_selects_for_itself_needs_its_own_short_scores(found):
    models, evaluators = study()
    (own,) = pick(found, "longppl_self")
    assert (own.setting.evaluator, own.setting.context, own.setting.stride) == ("self", 12, 4)
    for place in (0, 1):
        run = models[place]
        expected = perplexity(run, evaluator_scores=run, alpha=1.0, beta=-2.0, context=12, stride=4)
        assert (own.values[place], own.num_tokens[place]) == (
            pytest.approx(expected.longppl),
            expected.num_key_tokens,
        )
    assert (own.values[2], own.intervals[2], own.num_tokens[2]) == (None, None, 0)
    assert any(
        "no self-evaluation (table 6) of Z, without short-context scores at K=12, d=4" in w for w in found.warnings
    )
    with pytest.raises(UserError, match=r"Z has no short-context scores at K=12, d=4.*score it with `context=12`"):
        ablate(models, evaluators, self_evaluation=True)
    without = ablate(models, evaluators, self_evaluation=False, draws=10)
    assert pick(without, "longppl_self") == []
    assert not any("self-evaluation" in warning for warning in without.warnings)
    assert [found.is_own for found in without.agreement] == [False] * 10


def test_rankings_and_correlations_are_of_the_values(found):
    models, evaluators = study()
    (base,) = pick(found, "longppl", setting=found.settings[0], alpha=1.0, beta=-2.0)
    assert (base.kendall, base.kendall_interval) == (1, (1, 1))
    for measure in found.measures:
        values = [NAN if value is None else value for value in measure.values]
        assert measure.kendall == pytest.approx(float(kendall_tau(values, base.values)))
        low, high = measure.kendall_interval
        assert -1 <= low <= high <= 1
        for name, given in (("RULER", [50, 20, 10]), ("other", [None, 3, None])):
            assert measure.correlations[name] == correlate_columns(measure.values, given)
    assert found.benchmarks == {"RULER": [50.0, 20.0, 10.0], "other": [None, 3.0, None]}
    result = perplexity(models[0], evaluator_scores=evaluators[0], context=12, stride=4)
    results = [perplexity(model, evaluator_scores=evaluators[0], context=12, stride=4) for model in models]
    assert result.num_documents == 5
    (stable,) = [each for each in found.stability if each.metric == "ppl"]
    sums = np.stack([column(each.documents, "scored") for each in results])
    assert stable.curve == power_curve(sums, draws=50)
    assert {each.metric for each in found.stability} == {measure.metric for measure in found.measures}


def test_evaluators_are_compared_pair_by_pair_and_with_models(found):
    pairs = [(each.one, each.other, each.is_own) for each in found.agreement]
    assert len(pairs) == 10 + 1
    assert [pair for pair in pairs if pair[2]] == [
        (found.settings[0], type(found.settings[0])(evaluator="Y", context=12, stride=4), True)
    ]  # X is an evaluator already, and Z has no short scores
    for each in found.agreement:
        assert each.keys.unit == ("tokens" if each.one.evaluator == each.other.evaluator else "characters")
        assert each.keys.chance_jaccard > 0
        assert (each.kendall is None) == each.is_own
    one, two, three = found.settings[:3]
    assert pairs[0][:2] == (one, two)
    assert pairs[1][:2] == (one, three)


def test_each_document_is_read_once(monkeypatch):
    models, evaluators = study()
    reads = []
    for run in [*models, evaluators[0]]:

        def get(id, run=run, get=run.get):
            reads.append((run.manifest["model"]["name"], id))
            return get(id)

        monkeypatch.setattr(run, "get", get)
    ablate(models, evaluators, draws=5)
    # what scores in memory say of themselves, they read from the first document
    assert sorted(read for read in reads if read[1] in ("d1", "d2")) == [(x, y) for x in "EXYZ" for y in ("d1", "d2")]


def test_one_k_can_be_asked_for():
    models, evaluators = study()
    found = ablate(models, evaluators, rule=KeyRule(context=5), draws=5)
    assert [(s.evaluator, s.context, s.stride) for s in found.settings] == [("E", 5, 2), ("E", 5, 5), ("X", 5, 5)]
    with pytest.raises(UserError, match="no scores at K=12, d=5"):
        ablate(models, evaluators, rule=KeyRule(context=12, stride=5))
    with pytest.raises(UserError, match="no scores at K=5, d=2"):  # of the second one
        ablate(models, evaluators, rule=KeyRule(context=5, stride=2))


def test_the_json_has_no_nan_and_the_folder_has_what_it_says(found, tmp_path):
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content.keys() == {
        *("schema_version", "models", "settings", "alpha", "beta", "num_documents", "benchmarks", "measures"),
        *("stability", "agreement", "warnings"),
    }
    written = write_ablation(found, tmp_path / "out")
    assert [path.name for path in written] == [
        *("ablation.json", "values.csv", "correlations.csv", "documents.csv", "evaluators.csv")
    ]
    assert json.loads(written[0].read_text()) == content
    with written[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(found.measures) == len(found.to_arrow())
    assert float(rows[4]["value"]) == found.measures[1].values[1]
    assert len(list(csv.DictReader(written[2].open(newline="")))) == 2 * len(found.measures)
    assert len(list(csv.DictReader(written[4].open(newline="")))) == 11


def test_tables_and_charts(found):
    made = {table.title: table for table in tables(found)}
    for table in made.values():
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
    assert list(made) == [
        "Metrics, alpha 1, beta -2, E, K=12, d=4",
        *(f"Thresholds, {s.evaluator}, K={s.context}, d={s.stride}" for s in found.settings),
        "Evaluators, K and d, alpha 1, beta -2",
        "Correlations, E, K=12, d=4",
        "Agreement of rankings by disjoint subsets of documents",
        "Evaluators, alpha 1, beta -2",
    ]
    metrics = made["Metrics, alpha 1, beta -2, E, K=12, d=4"]
    assert [row[0] for row in metrics.rows] == ["X", "Y", "Z", "tau with LongPPL"]
    assert metrics.rows[2][metrics.columns.index("LongPPL, self-evaluated")] == "-"
    documents = made["Agreement of rankings by disjoint subsets of documents"]
    assert [row[0] for row in documents.rows] == [
        *("PPL", "bits per character", "PPL on n-grams", "PPL from K on", "LongPPL-soft", "bits per key character"),
        *("LongPPL without LCL", "LongPPL", "LongPPL, self-evaluated"),
    ]
    assert documents.columns[1:5] == [
        *(f"tau, {n} document{s}" for n, s in ((1, ""), (2, "s"), (3, "s"))),
        "pairs alike, 3 documents, %",
    ]
    names = [chart.name for chart in charts(found)]
    assert names[:2] == ["documents", "thresholds-1"]
    assert len(set(names)) == len(names) == 1 + 5 * 3


def test_one_model_has_values_and_no_rankings():
    models, evaluators = study()
    found = ablate(models[:1], evaluators[:1], draws=5)
    assert found.stability == []
    assert any("rankings need two or more" in warning for warning in found.warnings)
    assert all(measure.kendall is None and measure.kendall_interval is None for measure in found.measures)
    assert tables(found)
    assert [chart.name for chart in charts(found)] == []


def test_few_documents_have_no_power_curve():
    models, evaluators = study(documents=3)
    found = ablate(models, evaluators, draws=5)
    assert found.stability == []
    assert "3 documents, and a power curve needs 4 or more" in found.warnings


def test_models_without_key_tokens_are_named():
    models, evaluators = study()
    found = ablate(models, evaluators[:1], alphas=[40], betas=[], draws=5)
    (cell,) = pick(found, "longppl", alpha=40, setting=found.settings[0])
    assert (cell.values, cell.kendall, cell.intervals) == ([None] * 3, None, [None] * 3)
    assert any("3 of 3 models have no LongPPL at alpha 40, beta -2 with E, K=12" in w for w in found.warnings)
    assert tables(found)


def test_what_cannot_be_is_refused():
    models, evaluators = study()
    refused = [
        (([], evaluators), {}, "needs scores of models and of an evaluator"),
        ((models, []), {}, "needs scores of models and of an evaluator"),
        ((models, [evaluators[0]] * 2), {}, r"evaluator E \(2\) occurs twice"),
        ((models, [models[2]]), {}, "'d4' has no short-context scores: score it again"),
        ((models, evaluators), {"rule": KeyRule(lcl=False)}, "leave `use_lcl` out"),
        ((models, evaluators), {"alphas": [NAN]}, "`alpha` is nan, expected a finite number"),
        ((models, evaluators), {"betas": [math.inf]}, "`beta` is inf, expected a finite number"),
        ((models, evaluators), {"draws": 0}, "`draws` is 0; expected at least 1"),
        (
            (models, evaluators),
            {"benchmarks": {"RULER": {"W": 1.0}}},
            "RULER has a score of 'W'; the models are X, Y, Z",
        ),
        ((models, [study(documents=4)[1][0]]), {}, r"1 of 5 documents were not scored with the evaluator E.*'d4'"),
        (([models[0], study(documents=4)[0][1]], evaluators), {}, "'d4' was scored with X and not with Y"),
    ]
    for (runs, others), options, message in refused:
        with pytest.raises(UserError, match=message):
            ablate(runs, others, **options)


def test_other_texts_are_refused_and_so_is_a_k_that_a_document_lacks():
    models, _ = study()
    others = study(seed=1)[1]
    with pytest.raises(UserError, match="X and the evaluator have different texts"):
        ablate(models, others[:1])
    with pytest.raises(UserError, match="Y and the evaluator have different texts"):
        ablate([models[0], study(seed=1)[0][1]], study()[1][:1])
    evaluator = study()[1][0]
    del evaluator.get("d3").short[ALL_K[1]]
    with pytest.raises(UserError, match=r"'d3' has no scores of E at K=5, d=5.*same longlens score command again"):
        ablate(models, [evaluator])
    empty = scores(name="none")
    with pytest.raises(UserError, match="evaluator none contain no documents"):
        ablate(models, [empty])
    with pytest.raises(UserError, match="the scores of none contain no documents"):
        ablate([empty], study()[1][:1])


def test_a_text_that_was_not_stored_has_no_ngrams():
    rows = [token_scores(["a", "b", "c"], [NAN, -1, -2], [NAN, -4, -5], id=id, store_text=False) for id in "ab"]
    run = scores(*rows)
    found = ablate([run], [run], draws=5)
    assert pick(found, "ppl_ngram") == []
    assert any("was scored without texts" in warning for warning in found.warnings)
