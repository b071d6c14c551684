"""A prompt that is too long: what is cut out of it, and what stays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks.fitting import Draft, TokenCounter
from longlens.tasks.truncation import POLICIES, check_policy, truncate
from tests.tasks.fixtures import TOKENIZER

TOKENS = TokenCounter(TOKENIZER)
BEFORE, AFTER = "Read this.\n", "\nWho sings?"


def draft(context: str, answer: str = "") -> Draft:
    at = len(BEFORE) + context.index(answer) if answer else 0
    return Draft(
        prompt=BEFORE + context + AFTER,
        answer_prefix=" Answer:",
        answers=[answer],
        answer_spans=[(at, at + len(answer))] if answer else [],
        context_span=(len(BEFORE), len(BEFORE + context)),
    )


def naive(made: Draft, budget: int, policy: str, omission: str) -> str:
    """A byte is a token and the tokenizer puts BOS first, so that what stays can be counted off the text."""
    removed = 1 + len((made.prompt + made.answer_prefix).encode()) - budget
    _, end = made.context_span
    prompt = made.prompt
    if policy == "context-only":
        return prompt[: end - removed - len(omission)] + omission + prompt[end:]
    if policy == "left":
        return prompt[removed:]
    half = (len(prompt) - removed) // 2
    return prompt[:half] + prompt[len(prompt) - half :]


@pytest.mark.parametrize("omission", ["", " ..."])
@pytest.mark.parametrize("policy", ["middle", "left", "context-only"])
@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(60, 200))
def test_what_stays_is_what_a_slice_keeps(policy, omission, removed, letters):
    made = draft("".join(chr(97 + number % 26) for number in range(letters)))
    budget = TOKENS.count(made.prompt + made.answer_prefix) - removed
    if policy != "context-only":
        omission = ""
    if policy == "context-only" and removed + len(omission) > letters:
        return
    cut, counted = truncate(made, TOKENS, budget, policy, omission)
    assert cut.prompt == naive(made, budget, policy, omission)
    assert counted == TOKENS.count(cut.prompt + cut.answer_prefix) <= budget
    assert counted >= budget - 1  # middle keeps two halves of equal size
    assert cut.metadata["cut"]["policy"] == policy
    assert cut.metadata["cut"]["tokens"] == TOKENS.count(made.prompt + made.answer_prefix) - counted
    start, end = cut.context_span
    if policy == "context-only":
        assert (cut.prompt[:start], cut.prompt[end:]) == (BEFORE, AFTER)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.text(alphabet="aé漢🙂 \n", min_size=30, max_size=80), st.integers(1, 20))
def test_characters_of_several_tokens_are_not_split(context, removed):
    made = draft(context)
    budget = TOKENS.count(made.prompt + made.answer_prefix) - removed
    for policy in ("middle", "left", "context-only"):
        cut, counted = truncate(made, TOKENS, budget, policy)
        assert counted <= budget
        assert set(cut.prompt) <= set(made.prompt)


def test_answers_move_with_the_text_and_those_cut_out_are_gone():
    made = draft("Wren sings at noon. " + "Nobody else does. " * 5 + "Lark sings at dawn.", "Lark")
    whole = TOKENS.count(made.prompt + made.answer_prefix)
    moved, _ = truncate(made, TOKENS, whole - 30, "middle")
    assert [moved.prompt[start:end] for start, end in moved.answer_spans] == ["Lark"]
    gone, _ = truncate(made, TOKENS, whole - 30, "context-only")
    assert gone.answer_spans == []


def test_what_has_to_stay_is_never_cut():
    made = draft("short")
    with pytest.raises(UserError, match="cannot be truncated to 20 with `overlong=context-only`: the rest"):
        truncate(made, TOKENS, 20, "context-only")
    with pytest.raises(UserError, match="needs a task whose prompt has a separate long text"):
        truncate(Draft(prompt="a" * 40, answer_prefix="", answers=[], answer_spans=[]), TOKENS, 20, "context-only")


def test_policies_are_known():
    assert [check_policy(policy) for policy in POLICIES] == list(POLICIES)
    with pytest.raises(UserError, match="`overlong` is 'right'; expected one of error, skip, middle, left"):
        check_policy("right")
