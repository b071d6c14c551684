"""LongBench v1 (21 sets), LongBench-E (13) and LongBench v2, and how their scores are summed up.

Papers, sources, licences and known differences: `longlens.tasks.longbench.v1` and `longlens.tasks.longbench.v2`.
"""

from collections.abc import Callable
from functools import partial

from longlens.tasks.base import Task
from longlens.tasks.longbench.sets import SETS as SETS
from longlens.tasks.longbench.summary import BUCKETS as BUCKETS
from longlens.tasks.longbench.summary import NAME, NAME_E
from longlens.tasks.longbench.summary import Summary as Summary
from longlens.tasks.longbench.summary import bucket_means as bucket_means
from longlens.tasks.longbench.summary import summarise as summarise
from longlens.tasks.longbench.summary import summarise_e as summarise_e
from longlens.tasks.longbench.summary import summarise_v2 as summarise_v2
from longlens.tasks.longbench.v1 import LongBench as LongBench
from longlens.tasks.longbench.v1 import LongBenchE as LongBenchE
from longlens.tasks.longbench.v2 import LongBenchV2 as LongBenchV2

TASKS: dict[str, Callable[..., Task]] = {
    **{NAME + dataset: partial(LongBench, dataset=dataset) for dataset in SETS},
    **{NAME_E + dataset: partial(LongBenchE, dataset=dataset) for dataset, facts in SETS.items() if facts.samples_e},
    "longbench_v2": LongBenchV2,
}
