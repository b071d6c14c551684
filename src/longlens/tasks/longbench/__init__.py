"""Provides LongBench v1 (21 datasets), LongBench-E (13) and LongBench v2, and aggregates their scores.

Papers, sources, licenses and known differences: `longlens.tasks.longbench.v1` and `longlens.tasks.longbench.v2`.
"""

from collections.abc import Callable

from longlens.tasks.base import Task
from longlens.tasks.longbench.sets import SETS as SETS
from longlens.tasks.longbench.v1 import BUCKETS as BUCKETS
from longlens.tasks.longbench.v1 import TASKS as _V1_TASKS
from longlens.tasks.longbench.v1 import LongBench as LongBench
from longlens.tasks.longbench.v1 import LongBenchE as LongBenchE
from longlens.tasks.longbench.v1 import LongBenchSummary as LongBenchSummary
from longlens.tasks.longbench.v1 import bucket_means as bucket_means
from longlens.tasks.longbench.v1 import summarize as summarize
from longlens.tasks.longbench.v1 import summarize_e as summarize_e
from longlens.tasks.longbench.v2 import LongBenchV2 as LongBenchV2
from longlens.tasks.longbench.v2 import summarize_v2 as summarize_v2

TASKS: dict[str, Callable[..., Task]] = {**_V1_TASKS, "longbench_v2": LongBenchV2}
