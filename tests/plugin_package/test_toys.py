"""What a package that adds to longlens tests: one call for each of its things."""

from longlens_toys.engine import BigramScorer
from longlens_toys.method import Ramp

from longlens.models.policies import load_cache
from longlens.scoring.statistics import load_statistics
from longlens.settings.options import Engine, Loading
from longlens.tasks import get_task
from longlens.testing import check_cache, check_rope_method, check_scorer, check_statistic, check_task


def test_engine():
    check_scorer(BigramScorer(__file__, Loading(), Engine()))


def test_task():
    check_task(get_task("pass_key"))


def test_method():
    check_rope_method(Ramp(factor=4))


def test_cache():
    check_cache(load_cache("recent:64"))


def test_statistic():
    (statistic,) = load_statistics(["likeliest"])
    check_statistic(statistic)
