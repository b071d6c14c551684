"""What HELMET takes for the answer in a reply: all of it, or the line after the prefix, whichever scores better."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def readings(reply: str, prefix: str) -> list[str]:
    """The texts that HELMET scores; the best score counts.

    These are the reply, the rest of the line after the first ``prefix`` in it (else its first line), and its first
    line. HELMET puts the prefix before the reply of a model that continues the prompt, so that its first line is read,
    and leaves that of a chat model as it is, so that the line after its own prefix is; here both are read. The whole
    reply has no prefix before it here, so that an answer like ``E``, a part of ``Answer:``, is not in every reply.

    Source: HELMET ``data.py``, `default_post_process`, and ``eval.py``, `run_test`.
    """
    from longlens.tasks import metrics

    return list(
        dict.fromkeys([reply, metrics.parse_output(reply, prefix), metrics.parse_output(prefix + reply, prefix)])
    )


def best_scores(reply: str, answers: Sequence[str], *names: str, prefix: str = "Answer:") -> dict[str, float]:
    """HELMET's scores of a reply, 0 to 1, each the best over `readings` and answers.

    Args:
        reply: What the model wrote.
        answers: The right answers.
        *names: Of ``exact_match``, ``substring_exact_match``, ``f1`` and ``rougeL_f1``.
        prefix: What the answer stands after.

    Source: HELMET ``utils.py``, `calculate_metrics`.
    """
    from longlens.tasks import metrics

    def rouge(text: str, answers: Sequence[str]) -> float:
        return max(metrics.rouge_l(text, answer) for answer in answers)

    measures: dict[str, Callable[[str, Sequence[str]], float]] = {
        "exact_match": metrics.exact_match,
        "substring_exact_match": metrics.substring_exact_match,
        "f1": metrics.token_f1,
        "rougeL_f1": rouge,
    }
    texts = readings(reply, prefix)
    return {name: max(measures[name](text, answers) for text in texts) for name in names}
