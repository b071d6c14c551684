"""RULER's 13 tasks: needles, variable tracking, common and frequent words, questions, and how scores are summed up.

Paper: Hsieh et al., RULER: What's the Real Context Size of Your Long-Context Language Models? arXiv 2404.06654.
Prompts, settings and metrics: github.com/NVIDIA/RULER at c3f5e3b, ``scripts/synthetic.yaml`` and
``scripts/data/synthetic/``, Apache-2.0. The generators are our own. What differs for all tasks:

- Each sample has random numbers of its own, and is fitted to its own budget; RULER has one stream for all, and one
  number of units, found with one example and lowered by 5 to 500 where a sample does not fit.
- Needles, words and documents are in another order in each sample; RULER permutes all samples alike.
- Keys and values are all different within a sample.
- The BOS that a tokenizer puts before a text counts.
"""

from longlens.tasks.ruler.aggregate import THRESHOLD as THRESHOLD
from longlens.tasks.ruler.aggregate import Summary as Summary
from longlens.tasks.ruler.aggregate import effective_length as effective_length
from longlens.tasks.ruler.aggregate import mean_over_tasks as mean_over_tasks
from longlens.tasks.ruler.aggregate import summarise as summarise
from longlens.tasks.ruler.aggregate import weighted_average as weighted_average
from longlens.tasks.ruler.common import CommonWords as CommonWords
from longlens.tasks.ruler.frequent import FrequentWords as FrequentWords
from longlens.tasks.ruler.needles import Needles as Needles
from longlens.tasks.ruler.qa import QuestionAnswering as QuestionAnswering
from longlens.tasks.ruler.variables import VariableTracking as VariableTracking
