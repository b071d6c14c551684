"""Conformance checks for plugins, one call in your own tests: engine, task, RoPE method, cache policy, statistic.

Each raises `ConformanceError` for the first rule of the interface that is violated, with a one-line message. They run
offline in seconds, on tiny random models if they need one, without pytest.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longlens.corpus import Document
from longlens.errors import UserError, one_line
from longlens.rope.base import Method, ScaledMethod
from longlens.rope.frequencies import Rope
from longlens.scoring.scorer import Request, Scorer, ScorerInfo
from longlens.tasks.base import Builder, JudgedTask, Sample, Task
from longlens.tasks.fitting import TokenCounter
from longlens.tasks.truncation import POLICIES

if TYPE_CHECKING:
    from longlens.models.caches import CachePolicy
    from longlens.scoring.statistics import Statistic

TEXT = "The naïve café keeps 12 cats; each of them, said Ann, sleeps in a box. The café keeps 12 cats, and Ann a box."
TEXTS = ("", " ", "a", "漢字 and 🙂\n\n\ttabs", TEXT)
TOLERANCE = 1e-3
"""Largest difference, in nats, between log-probabilities that are the same except for rounding."""


class ConformanceError(AssertionError):
    """A plugin violates a rule of its interface."""


class _Rules:
    """Rules of one object; the first violation is raised."""

    def __init__(self, of: str) -> None:
        self._of = of

    def require(self, holds: Any, rule: str, found: object = None) -> None:
        """Raises `ConformanceError` unless the rule holds."""
        if not holds:
            said = "" if found is None else f" ({' '.join(str(found).split())[:200]})"
            raise ConformanceError(f"{self._of}: {rule}{said}")

    @contextmanager
    def holds(self, rule: str) -> Iterator[None]:
        """An exception inside the block violates the rule."""
        try:
            yield
        except ConformanceError:
            raise
        except Exception as error:
            raise ConformanceError(f"{self._of}: {rule} ({type(error).__name__}: {one_line(error)})") from error


def check_scorer(scorer: Scorer, *, text: str = TEXT, by_length: bool = False) -> None:
    """Checks an engine: spans, log-probabilities, independence of a sequence from all others, BOS, identity.

    Args:
        scorer: The scorer, as for `longlens.score`.
        text: A text of at least 20 tokens.
        by_length: Whether positions depend on the sequence length (dynamic NTK), so that a token's
            log-probability may depend on what follows it.

    Raises:
        ConformanceError: A rule is violated.
    """
    with _Rules("scorer").holds("`info` is a ScorerInfo"):
        info: ScorerInfo = scorer.info
        rules = _Rules(f"scorer {info.name}")
    _check_info(info, rules)
    ids = [_encode(scorer, some, rules) for some in dict.fromkeys((*TEXTS, text))][-1]
    rules.require(len(ids) >= 20, "the text of the check has 20 tokens or more", len(ids))
    _check_logprobs(scorer, ids, rules, by_length)


def _check_info(info: ScorerInfo, rules: _Rules) -> None:
    for name in ("name", "source", "architecture", "tokenizer_sha256", "dtype", "device", "attention"):
        value = getattr(info, name, None)
        rules.require(isinstance(value, str) and value, f"`info.{name}` is filled in", value)
    rules.require(info.dtype != "auto", "`info.dtype` is the dtype in use, never auto")
    wrong = info.max_length is not None and not (isinstance(info.max_length, int) and info.max_length > 0)
    rules.require(not wrong, "`info.max_length` is a number of tokens, or None", info.max_length)
    prefix = [*info.own_prefix, *([] if info.bos_token_id is None else [info.bos_token_id])]
    rules.require(all(isinstance(i, int) for i in prefix), "`info.bos_token_id` and `own_prefix` are token ids", prefix)
    rules.require(info.identity.sha256, "`info` says which model it is: weights_sha256, or config")


def _encode(scorer: Scorer, text: str, rules: _Rules) -> list[int]:
    with rules.holds("`encode` accepts any text"):
        encoded, again = (scorer.encode(Document(id="a", text=text)) for _ in range(2))
    ids, spans = np.asarray(encoded.token_ids), np.asarray(encoded.char_spans)
    integers = np.issubdtype(ids.dtype, np.integer) and np.issubdtype(spans.dtype, np.integer)
    is_shaped = ids.ndim == 1 and spans.shape == (len(ids), 2)
    shapes = f"{ids.dtype} {ids.shape} and {spans.dtype} {spans.shape}"
    rules.require(integers and is_shaped, "`encode` returns token_ids (n,) and char_spans (n, 2), integers", shapes)
    same = np.array_equal(ids, again.token_ids) and np.array_equal(spans, again.char_spans)
    rules.require(same, "`encode` returns the same each time", repr(text))
    starts, ends = spans[:, 0], spans[:, 1]
    inside = bool((starts >= 0).all() and (ends <= len(text)).all() and (starts <= ends).all())
    rules.require(inside, "spans lie in the text, [start, end)", spans[(starts < 0) | (ends > len(text))].tolist()[:3])
    rules.require(bool((np.diff(starts) >= 0).all()), "spans are in the order of the text", starts.tolist()[:20])
    covered = np.zeros(len(text), dtype=bool)
    for start, end in spans:
        covered[start:end] = True
    missing = [place for place, character in enumerate(text) if not covered[place] and not character.isspace()]
    rules.require(not missing, "spans cover the text", f"character {missing[:1]} of {text!r} is in no span")
    special = [] if scorer.info.bos_token_id is None else [scorer.info.bos_token_id]
    rules.require(ids[:1].tolist() != special or not special, "`encode` adds no special tokens", ids[:3].tolist())
    return [int(token) for token in ids]


def _check_logprobs(scorer: Scorer, ids: list[int], rules: _Rules, by_length: bool) -> None:
    half, n = len(ids) // 2, len(ids)
    # Requests for the text, its first half, another first half, and the text scored from the middle: several lengths,
    # keys of any type.
    requests = [
        Request(object(), ids, 1),
        Request(["not", "hashable"], ids[:half], 1),
        Request(None, ids[::-1][: half + 3], 1),
        Request(None, ids, half),
    ]
    answers = _answers(scorer, requests, rules)
    for request, logprobs in zip(requests, answers, strict=True):
        wanted = len(request.token_ids) - request.start
        shape = f"{logprobs.dtype} {logprobs.shape} for {wanted}"
        is_right = logprobs.shape == (wanted,) and logprobs.dtype == np.float32
        rules.require(is_right, "an answer has a float32 for each token from `start` on", shape)
        rules.require(np.isfinite(logprobs).all(), "log-probabilities are finite", logprobs.tolist()[:5])
        rules.require((logprobs <= 1e-4).all(), "log-probabilities are not above 0", float(logprobs.max(initial=0)))
    whole, beginning, _, tail = answers
    _close(whole[half - 1 :], tail, "`start` omits the tokens before it and does not change the others", rules)
    if not by_length:
        _close(whole[: half - 1], beginning, "a token's log-probability does not depend on what follows it", rules)
    for request, together in zip(requests, answers, strict=True):
        alone = _answers(scorer, [request], rules)[0]
        _close(alone, together, "an answer does not depend on the other requests", rules)
    for again, before in zip(_answers(scorer, requests, rules), answers, strict=True):
        _close(again, before, "the same requests get the same answers", rules)
    tokens = sorted(set(ids))
    each = _answers(scorer, [Request(token, [*ids[:half], token], half) for token in tokens], rules)
    total = float(np.exp(np.concatenate(each).astype(np.float64)).sum())
    rules.require(total <= 1 + TOLERANCE, "probabilities of different next tokens sum to 1 at most", f"{total:.4g}")
    bos = scorer.info.bos_token_id
    if bos is not None:
        (first,) = _answers(scorer, [Request("bos", [bos, *ids], 1)], rules)
        is_right = len(first) == n and np.isfinite(first).all()
        rules.require(is_right, "a request may begin with the BOS, after which each token of the text is scored")
    _check_lazy(scorer, ids, rules)


def _check_lazy(scorer: Scorer, ids: Sequence[int], rules: _Rules) -> None:
    # More than any look-ahead; an engine that reads all requests would keep a corpus in memory.
    taken, number = itertools.count(), 2_000_000 // len(ids)
    requests = (Request(next(taken), ids, 1) for _ in range(number))
    with rules.holds("`logprobs` yields answers one by one"):
        next(iter(scorer.logprobs(requests)))
    rules.require(next(taken) < number, "requests are read as they are needed, not all at once", f"{number} were read")


def _answers(scorer: Scorer, requests: Sequence[Request], rules: _Rules) -> list[Any]:
    with rules.holds("`logprobs` answers requests of any length"):
        results = list(scorer.logprobs(iter(requests)))
    rules.require(len(results) == len(requests), "each request has one answer", f"{len(results)} of {len(requests)}")
    found = []
    for request in requests:
        # Compared by length too: two requests may have the same key.
        lengths = (len(request.token_ids) - request.start,)
        same = [r for r in results if r.key is request.key or r.key == request.key]
        rules.require(same, "an answer has the key of its request, of any type", repr(request.key)[:60])
        fitting = [r for r in same if np.shape(r.logprobs) == lengths] or same
        found.append(np.asarray(fitting[0].logprobs))
    return found


def _close(ours: Any, theirs: Any, rule: str, rules: _Rules) -> None:
    same = ours.shape == theirs.shape
    apart = float(np.abs(ours - theirs).max(initial=0)) if same else np.inf
    rules.require(apart <= TOLERANCE, rule, f"apart by {apart:.3g} nats")


def check_rope_method(method: Method, *, head_dim: int = 8) -> None:
    """Checks a method of position extrapolation: frequencies, lengths, and what a saved model computes.

    Args:
        method: The method with its settings, such as ``YaRN(factor=4)``.
        head_dim: Rotary dimensions of the tiny model (64 tokens), for methods with one setting per dimension.

    Raises:
        ConformanceError: A rule is violated.
    """
    rules = _Rules(f"RoPE method {getattr(method, 'name', type(method).__name__)}")
    rules.require(isinstance(method, Method), "it is a longlens.rope.base.Method", type(method).__name__)
    frozen = dataclasses.is_dataclass(method) and method.__dataclass_params__.frozen  # type: ignore[attr-defined]
    rules.require(frozen and type(method) is not Method, "it is a frozen dataclass")
    fields = dataclasses.fields(method)
    rules.require(all(field.kw_only for field in fields), "its settings are keywords")
    rules.require(isinstance(getattr(type(method), "name", None), str) and method.name, "its class has a `name`")
    rules.require(dataclasses.replace(method) == method, "it is identified by its settings only")
    length = method.original_length or 64
    for theta in (1e4, 5e5):
        _check_frequencies(method, Rope(dim=head_dim, theta=theta, length=length), rules)
    with tempfile.TemporaryDirectory() as folder:
        _check_folder(method, Path(folder), head_dim, rules)


def _check_frequencies(method: Method, rope: Rope, rules: _Rules) -> None:
    try:
        method.check(rope)
    except UserError:  # such as a base that is not larger than the original
        return
    for num_tokens in (1, rope.length, rope.length + 1, 4 * rope.length):
        with rules.holds("`frequencies` is defined for every length"):
            found, again = (method.frequencies(rope, num_tokens) for _ in range(2))
        inv_freq, factor = np.asarray(found.inv_freq), found.attention_factor
        right = inv_freq.shape == (rope.dim // 2,) and bool(np.isfinite(inv_freq).all() and (inv_freq > 0).all())
        rules.require(right, "inv_freq is (d/2,), finite and above 0", f"{inv_freq.shape} {inv_freq.tolist()[:4]}")
        rules.require(0 < factor < np.inf, "attention_factor is a number above 0", factor)
        same = np.array_equal(inv_freq, again.inv_freq) and factor == again.attention_factor
        rules.require(same, "`frequencies` returns the same each time")
    longest = method.max_length(rope)
    right = isinstance(longest, int) and longest >= rope.length
    rules.require(right, "`max_length` is an integer, at least the original length", longest)
    if isinstance(method, ScaledMethod) and method.starts_as_the_original:
        near = dataclasses.replace(method, factor=1 + 1e-9).frequencies(rope, rope.length)
        same = np.allclose(near.inv_freq, rope.inv_freq, rtol=1e-6) and abs(near.attention_factor - 1) < 1e-6
        rules.require(same, "a factor of 1 is the original, or `starts_as_the_original` is False", near.inv_freq[:4])


def _check_folder(method: Method, folder: Path, head_dim: int, rules: _Rules) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from longlens import rope
    from longlens.rope.config import custom_rope_type, read_rope, rope_parameters

    base = _tiny_model(head_dim)
    ids = torch.randint(256, (1, 150), generator=torch.Generator().manual_seed(0))

    def logits(model: Any, num_tokens: int) -> Any:
        with torch.no_grad():
            return model(input_ids=ids[:, :num_tokens], use_cache=False).logits

    original = read_rope(base.config, method.original_length)
    with rules.holds("a transformers model can be extended with it"):
        config = rope.extend_config(base.config, method)
    parameters = rope_parameters(config)
    with rules.holds("`parameters` are JSON"):
        rules.require(json.loads(json.dumps(parameters)) == parameters, "`parameters` are the same after JSON")
    expected = method.max_length(original)
    longest = config.max_position_embeddings
    rules.require(longest == expected, "the model accepts `max_length` tokens", f"{longest} and {expected}")
    base.save_pretrained(folder / "base")
    with rules.holds("the model computes its rotary embedding as `frequencies` says, in memory and in a folder"):
        wanted = rope.apply(_tiny_model(head_dim), method)
        rope.extend(str(folder / "base"), method, folder / "extended")
        loaded = {"longlens": rope.load_model(str(folder / "extended"))}
        if custom_rope_type(config) is None:
            loaded["transformers"] = AutoModelForCausalLM.from_pretrained(folder / "extended")
    for by, model in loaded.items():
        for num_tokens in (32, ids.shape[1]):
            apart = float((logits(model.eval(), num_tokens) - logits(wanted, num_tokens)).abs().max())
            rules.require(apart < TOLERANCE, f"a folder loaded by {by} returns the logits of the model", f"{apart:.3g}")


def check_cache(policy: CachePolicy) -> None:
    """Checks a cache policy: what its cache reports, and that a sequence's scores do not depend on other sequences.

    Args:
        policy: The cache policy, as for `longlens.load_scorer`.

    Raises:
        ConformanceError: A rule is violated.
    """
    import torch

    from longlens.models.caches import CachePolicy, CacheUse
    from longlens.scoring.transformers import TransformersScorer

    rules = _Rules(f"cache policy {getattr(policy, 'name', type(policy).__name__)}")
    rules.require(isinstance(policy, CachePolicy), "it is a longlens.models.caches.CachePolicy", type(policy).__name__)
    rules.require(isinstance(getattr(policy, "name", None), str) and policy.name, "it has a `name`")
    model = _tiny_model(8)
    with rules.holds("`new_cache` makes a cache of transformers"):
        cache, other = policy.new_cache(model), policy.new_cache(model)
    rules.require(cache is not other, "`new_cache` makes a new one each time")
    shape, chunk, seen = (1, model.config.num_key_value_heads, 16, 8), 16, 0
    draws = torch.Generator().manual_seed(0)
    for _ in range(8):
        sizes = [cache.get_mask_sizes(chunk, layer) for layer in range(model.config.num_hidden_layers)]
        rules.require(len(set(sizes)) == 1, "all layers hold the same number of tokens", sizes)
        held, before = sizes[0]
        rules.require(held + before == seen + chunk, "`get_mask_sizes` counts the tokens dropped before", sizes[0])
        for layer in range(len(sizes)):
            states = [torch.randn(shape, generator=draws) for _ in range(2)]
            with rules.holds("`update` accepts a chunk"):
                keys, values = cache.update(*states, layer)
            lengths = (keys.shape[-2], values.shape[-2])
            rules.require(lengths == (held, held), "`update` returns the sizes of `get_mask_sizes`", (*lengths, held))
        seen += chunk
        counted = cache.get_seq_length()
        rules.require(counted == seen, "`get_seq_length` counts the tokens seen", f"{counted} of {seen}")
    scorer = TransformersScorer(model, _byte_tokenizer(), cache=CacheUse(policy=policy, chunk=chunk))
    ids = torch.randint(256, (130,), generator=draws).tolist()
    rows = [Request(0, ids, 1), Request(1, ids[::-1], 1), Request(2, ids[:70], 1)]
    with rules.holds("a model can be run with it"):
        whole, reverse, beginning = _answers(scorer, rows, rules)
        alone = [_answers(scorer, [row], rules)[0] for row in rows]
    rules.require(np.isfinite(whole).all(), "log-probabilities are finite")
    for one, together in zip(alone, (whole, reverse, beginning), strict=True):
        _close(one, together, "what it keeps of a sequence depends on that sequence alone", rules)
    _close(beginning, whole[: len(beginning)], "what it drops depends on the tokens so far", rules)
    (again,) = _answers(scorer, rows[:1], rules)
    _close(again, whole, "it keeps the same each time", rules)


def check_statistic(statistic: Statistic) -> None:
    """Checks a statistic: its columns, that each row's values depend only on that row, and that its input is not
    changed.

    Args:
        statistic: The statistic, as an entry point of ``longlens.statistics`` loads it.

    Raises:
        ConformanceError: A rule is violated.
    """
    import torch

    from longlens.scoring.statistics import Statistic, check_columns

    rules = _Rules(f"statistic {getattr(statistic, 'name', type(statistic).__name__)}")
    rules.require(isinstance(statistic, Statistic), "it is a longlens.scoring.statistics.Statistic", statistic)
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn((2, 7, 40), generator=draws).log_softmax(-1)
    rows[:, 0, 1:], rows[:, 0, 0] = float("-inf"), 0.0  # one token is certain, the others impossible
    own, other = rows if statistic.is_pairwise else (rows[0], rows[0])
    targets = torch.tensor([0, 3, 39, 1, 2, 5, 8])
    before = rows.clone()
    with rules.holds("`compute` returns its columns, one value per row"):
        whole = statistic.compute(own, other, targets)
        check_columns(statistic, whole, len(targets))
    rules.require(torch.equal(rows, before), "`compute` does not change its input")
    for name, values in whole.items():
        rules.require(not torch.isnan(values.float()).any(), "its values are numbers, even for impossible tokens", name)
        for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
            with rules.holds("`compute` accepts any number of rows"):
                alone = statistic.compute(own[part], other[part], targets[part])[name]
            _close(alone.numpy(), values[part].numpy(), "a row's values depend only on that row", rules)


def check_task(
    task: Task,
    *,
    length: int | None = 4096,
    samples: int = 5,
    perfect: Callable[[Sample], str] | None = None,
    tokenizer: Any = None,
) -> None:
    """Checks a task: samples that depend only on seed and index, respect their length and report where answers are.

    Scores are from 0 to 1 for any text, do not need the prompt, and distinguish a perfect answer from an empty one.

    Args:
        task: The task with the settings that it needs, such as `data_dir`.
        length: Tokens per sample; None if settings or data determine the length.
        samples: Number of samples to build, at least 2; the data must have enough.
        perfect: Output of a model that answers correctly; by default the task's `target`, else the best of its answers
            and of all answers joined with commas.
        tokenizer: Counts tokens; a byte tokenizer by default.

    Raises:
        ConformanceError: A rule is violated.
    """
    rules = _Rules(f"task {getattr(task, 'name', type(task).__name__)}")
    _check_declaration(task, rules)
    tokenizer = _byte_tokenizer() if tokenizer is None else tokenizer
    settings = {"length": length, "seed": 42, "tokenizer": tokenizer}
    state = random.getstate()
    with rules.holds(f"`build` makes {samples} samples"):
        built = task.build(**settings, samples=samples)
    rules.require(random.getstate() == state, "`build` does not change the state of Python's `random`: use `draws`")
    _check_repeats(task, built, settings, rules)
    for place in ("id", "prompt") if task.fills else ("id",):  # the prompts of other tasks come from their data
        differ = len({getattr(sample, place) for sample in built}) == samples
        rules.require(differ, f"no two samples have the same {place}", [getattr(sample, place) for sample in built])
    for index, sample in enumerate(built):
        _check_sample(task, sample, index, settings["length"], TokenCounter(tokenizer), rules)
        for text in ("", "\n", "Nothing at all", "漢字 🙂 [1] {", "9" * 5000, sample.answers[0], sample.prompt[-200:]):
            _scores(task, sample, text, rules)
    answer = perfect or (lambda sample: _best_answer(task, sample))
    right = _aggregate(task, [_scores(task, sample, answer(sample), rules) for sample in built], rules)
    rules.require(math.isclose(right, 100, abs_tol=1e-3), "the perfect answer to each sample scores 100 %", right)
    empty = _aggregate(task, [_scores(task, sample, "", rules) for sample in built], rules)
    rules.require(empty < right - 1e-3, "an empty answer scores less than the perfect one", empty)


def _check_declaration(task: Task, rules: _Rules) -> None:
    rules.require(isinstance(task, Task), "it is a `longlens.tasks.Task`", type(task))
    rules.require("name" in getattr(task, "__dataclass_fields__", {}), "it is a dataclass with a field `name`")
    with rules.holds("it says name, suite, metric and max_new_tokens"):
        texts = (task.name, task.suite, task.metric)
        rules.require(all(isinstance(text, str) and text for text in texts), "name, suite and metric are texts", texts)
        rules.require(task.max_new_tokens >= 1, "`max_new_tokens` is at least 1", task.max_new_tokens)
    known = ("none", "chat", "chat-prefix", "prefill")
    rules.require(task.template in known, f"`template` is one of {', '.join(known)}", task.template)
    rules.require(task.overlong in POLICIES, f"`overlong` is one of {', '.join(POLICIES)}", task.overlong)
    is_texts = isinstance(task.stop, tuple) and all(isinstance(text, str) and text for text in task.stop)
    rules.require(is_texts, "`stop` is a tuple of texts", task.stop)
    with rules.holds("`default_samples` and `unit_tokens` are numbers"):
        rules.require(task.default_samples >= 1, "`default_samples` is at least 1", task.default_samples)
        rules.require(task.unit_tokens >= 0, "`unit_tokens` is at least 0", task.unit_tokens)


def _check_repeats(task: Task, built: Sequence[Sample], settings: Mapping[str, Any], rules: _Rules) -> None:
    """Checks that a sample is a function of seed and index, whatever the order and the number of samples."""
    samples = len(built)
    with rules.holds("`build` can be called again"):
        builder = Builder(task, **settings, samples=samples, reserve=0, overlong=None)
        backwards = [builder.sample(index) for index in reversed(range(samples))][::-1]
        task.build(**{**settings, "seed": 7}, samples=1)
        fewer = task.build(**settings, samples=min(3, samples))
    for one, late in zip(built, backwards, strict=True):
        rules.require(one == late, "a sample depends only on seed and index, not on samples built before it", one.id)
    rules.require(built[: len(fewer)] == fewer, f"the first {len(fewer)} of {samples} samples are the {len(fewer)}")


def _best_answer(task: Task, sample: Sample) -> str:
    target = task.target(sample)
    texts = [f" {', '.join(sample.answers)}", *sample.answers] if target is None else [target]
    return max(texts, key=lambda text: sum(task.score(sample, text).values()))


def _check_sample(
    task: Task, sample: Sample, index: int, length: int | None, tokens: TokenCounter, rules: _Rules
) -> None:
    text = sample.prompt + sample.answer_prefix
    rules.require(sample.prompt.strip(), "a prompt is not empty", sample.id)
    is_texts = sample.answers and all(isinstance(answer, str) and answer for answer in sample.answers)
    rules.require(is_texts, "a sample has at least one right answer, and all are texts", sample.answers)
    counted = tokens.count(text) + task.max_new_tokens
    is_counted = sample.length == counted
    rules.require(is_counted, "`length` counts prompt, prefix and max_new_tokens", f"{sample.length}, not {counted}")
    if length is not None:
        rules.require(sample.length <= length, "a sample keeps the length", f"{sample.length} of {length}")
        fixed = task.plan(length=length, seed=42, index=index, tokens=tokens)
        is_full = fixed.minimum == fixed.maximum or sample.length > length - task.unit_tokens
        rules.require(is_full, "less than `unit_tokens` of the length are unused", f"{sample.length} of {length}")
    lowered = {answer.lower() for answer in sample.answers}
    for start, end in sample.answer_spans:
        found = text[start:end] if 0 <= start < end <= len(text) else ""
        rules.require(
            found.lower() in lowered, "`answer_spans` are the positions of answers in the prompt", f"{found!r}"
        )
    if sample.context_span is not None:
        start, end = sample.context_span
        is_inside = 0 <= start < end <= len(sample.prompt)
        rules.require(is_inside, "`context_span` lies in the prompt", sample.context_span)
    for key, value in (("task", task.name), ("seed", 42), ("index", index)):
        rules.require(sample.metadata.get(key) == value, f"metadata keeps its {key}", sample.metadata.get(key))
    with rules.holds("metadata can be stored as JSON"):
        json.dumps(sample.metadata, allow_nan=False)
    wrong = sample.metadata.get("distractors", [])
    is_wrong = len(set(wrong)) == len(wrong) and not set(wrong) & set(sample.answers)
    rules.require(is_wrong, "distractors differ, and none is a right answer", wrong)
    if isinstance(task, JudgedTask):
        with rules.holds("`judge_prompts` returns texts, and `judged` nothing for replies that it cannot parse"):
            prompts = task.judge_prompts(sample, sample.answers[0])
            judged = task.judged(sample, sample.answers[0], ["no idea"] * len(prompts))
        rules.require(all(isinstance(prompt, str) for prompt in prompts), "`judge_prompts` returns texts", prompts)
        rules.require(not prompts or judged == {}, "`judged` returns nothing for replies that it cannot parse", judged)


def _scores(task: Task, sample: Sample, text: str, rules: _Rules) -> dict[str, float]:
    """Scores of a text, checked to be the same for a stored sample without its prompt."""
    said = f"{text[:20]!r} for {sample.id}"
    stored = dataclasses.replace(sample, prompt="", metadata=json.loads(json.dumps(sample.metadata)))
    with rules.holds("`score` accepts any text"):
        scores = task.score(sample, text)
    with rules.holds("`score` accepts a stored sample without its prompt"):
        again = task.score(stored, text)
    rules.require(again == scores, "`score` returns the same for a stored sample without its prompt", said)
    for name, score in scores.items():
        rules.require(0 <= score <= 1, "scores are from 0 to 1", f"{name} is {score} of {said}")
    rules.require(
        task.joint or task.metric in scores, f"`score` returns {task.metric}", f"{', '.join(scores)} of {said}"
    )
    return scores


def _aggregate(task: Task, scores: Sequence[Mapping[str, float]], rules: _Rules) -> float:
    with rules.holds("`aggregate` combines scores"):
        means = task.aggregate(scores)
    rules.require(task.metric in means, f"`aggregate` returns {task.metric}", ", ".join(means))
    rules.require(0 <= means[task.metric] <= 100, "`aggregate` returns percentages", means[task.metric])
    return float(means[task.metric])


def _tiny_model(head_dim: int) -> Any:
    """A random model of 64 tokens whose logits are large enough that the attended tokens matter."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4 * head_dim, "intermediate_size": 48, "head_dim": head_dim}
    layers = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=64, **sizes, **layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
