"""``RECIPE OUT``: a recipe whose rows two processes share by torch's context parallelism, for test_shared_rows.py.

As in `tests.train.sequence_ranks`, attention over the ranks is the test's own, which torch lacks for the CPU.
KILL=STEP kills the second process before it makes that step.
"""

import sys

from transformers import AttentionInterface

from tests.train import sequence_ranks, sharded_ranks

if __name__ == "__main__":
    AttentionInterface.register("sdpa", sequence_ranks.over_ranks)
    sharded_ranks.run_recipe(*sys.argv[1:])
