"""Computes answer metrics of the benchmarks: from strings to one number.

Each function returns the same value as the benchmark's own code, including its oddities, because the published numbers
include them. Its docstring cites that code and lists the oddities.

Code and commits: princeton-nlp/HELMET at 4526dfb, NVIDIA/RULER at c3f5e3b, THUDM/LongBench at 2e00731,
DachengLi1/LongChat (LongEval) at 4b5faa5.
"""

from __future__ import annotations

from longlens.tasks.metrics.answers import exact_match as exact_match
from longlens.tasks.metrics.answers import last_integer as last_integer
from longlens.tasks.metrics.answers import last_integer_with_commas as last_integer_with_commas
from longlens.tasks.metrics.answers import normalize_answer as normalize_answer
from longlens.tasks.metrics.answers import parse_output as parse_output
from longlens.tasks.metrics.answers import substring_exact_match as substring_exact_match
from longlens.tasks.metrics.answers import token_f1 as token_f1
from longlens.tasks.metrics.chinese import rouge_l_zh as rouge_l_zh
from longlens.tasks.metrics.chinese import token_f1_zh as token_f1_zh
from longlens.tasks.metrics.helmet import citation_scores as citation_scores
from longlens.tasks.metrics.helmet import ndcg_at_k as ndcg_at_k
from longlens.tasks.metrics.helmet import parse_ranking as parse_ranking
from longlens.tasks.metrics.helmet import remove_citations as remove_citations
from longlens.tasks.metrics.longbench import classification_score as classification_score
from longlens.tasks.metrics.longbench import code_similarity as code_similarity
from longlens.tasks.metrics.longbench import count_score as count_score
from longlens.tasks.metrics.longbench import extract_choice as extract_choice
from longlens.tasks.metrics.longbench import retrieval_score as retrieval_score
from longlens.tasks.metrics.longbench import retrieval_score_zh as retrieval_score_zh
from longlens.tasks.metrics.rouge import rouge_l as rouge_l
from longlens.tasks.metrics.ruler import string_match_all as string_match_all
from longlens.tasks.metrics.ruler import string_match_all_words as string_match_all_words
from longlens.tasks.metrics.ruler import string_match_part as string_match_part
from longlens.tasks.metrics.ruler import string_match_part_words as string_match_part_words
