"""Runs vLLM in this process: sends it token ids and reads the log-probabilities of the prompt's own tokens."""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
import torch

from longlens.engines.frame import Answer, EngineScorer, Greedy, engine_encoder, local_info
from longlens.errors import UserError, library_errors, shown
from longlens.models.files import find_adapter, load_config, model_max_length
from longlens.models.resolve import check_folder, check_hub, hub_access, resolve
from longlens.rope.config import custom_rope_type, nested_keys, text_config
from longlens.runs.processes import Processes
from longlens.scoring.scorer import Request, ScorerInfo
from longlens.scoring.scores import Floats
from longlens.settings.options import Engine, Loading
from longlens.tokenization import TextEncoder

BATCH_TOKENS = 2048
"""Default ``max_num_batched_tokens``. The V1 model runner makes fp32 logits of all of them, which vLLM's memory
profile does not include (vLLM issues 5907, 14239): 2,048 x 152k x 4 bytes are 1.2 GB, a few times."""
MEMORY_UTILIZATION = 0.8
"""``gpu_memory_utilization``, below vLLM's default to leave memory for those logits."""
CPU_CACHE_BYTES = 4 * 2**30
"""``kv_cache_memory_bytes`` on a CPU, where vLLM's default would be most of the machine's memory."""
TOKENS_UNDER_WAY = 8
"""Tokens submitted to vLLM at a time, in batches: its scheduler's queue, and the work lost by an interrupted run."""
_ROPE_ERROR = 1e-4
_TESTED = "0.32"


class VllmScorer(EngineScorer):
    """Scores with a model of vLLM. Requests join its running batch as others end (continuous batching)."""

    def __init__(
        self, engine: Any, encoder: TextEncoder, info: ScorerInfo, *, longest: int, batch_tokens: int, by_start: bool
    ) -> None:
        super().__init__(encoder, info, longest=longest)
        self._engine, self._batch_tokens, self._by_start = engine, batch_tokens, by_start
        # On exit, this process waits for vLLM's processes before vLLM stops them. A scorer that is still referenced
        # then, for example by the traceback of an error, would keep this process alive.
        atexit.register(_shut_down, weakref.ref(engine))
        self._numbers = itertools.count()

    def _answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        waiting = iter(requests)
        open_requests: dict[str, Request] = {}
        tokens, more = 0, True
        try:
            while more or open_requests:
                while more and tokens < TOKENS_UNDER_WAY * self._batch_tokens:
                    request = next(waiting, None)
                    if request is None:
                        more = False
                        break
                    id = str(next(self._numbers))
                    self._add(id, request.token_ids, self._sampling(request))
                    open_requests[id] = request
                    tokens += len(request.token_ids)
                for output in self._step() if open_requests else ():
                    request = open_requests.pop(output.request_id)
                    tokens -= len(request.token_ids)
                    yield request, self._values(request, output)
        finally:
            if open_requests:
                self._engine.abort_request(list(open_requests))

    def _greedy(self, token_ids: Sequence[int]) -> Greedy:
        from vllm import SamplingParams

        self._add(str(next(self._numbers)), token_ids, SamplingParams(logprobs=0, **_ONE_TOKEN))
        outputs: list[Any] = []
        while not outputs:
            outputs = self._step()
        (written,) = outputs[0].outputs
        token = int(written.token_ids[0])
        return Greedy(token, float(written.logprobs[0][token].logprob))

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams

        if self._by_start:
            wanted = np.asarray(request.token_ids[request.start :], np.int64)[:, None]
            return SamplingParams(prompt_logprob_token_ids=wanted, prompt_logprob_start=request.start - 1, **_ONE_TOKEN)
        return SamplingParams(prompt_logprobs=0, flat_logprobs=True, **_ONE_TOKEN)

    def _values(self, request: Request, output: Any) -> Sequence[Any] | Floats:
        if self._by_start:
            found = output.prompt_token_id_logprobs
            return np.asarray([] if found is None else found, np.float32).reshape(-1)
        found = output.prompt_logprobs
        # One entry per token after the first, in order; a list of another length is not of these tokens.
        if found is None or list(found.token_ids) != list(request.token_ids[1:]):
            raise UserError(
                f"vLLM returned log-probabilities of other tokens of {shown(self.info.name)} than "
                "requested: update vLLM, or use `engine=transformers`"
            )
        values: Sequence[Any] = found.logprobs[request.start - 1 :]
        return values

    def _add(self, id: str, token_ids: Sequence[int], sampling: Any) -> None:
        with self._errors():
            self._engine.add_request(id, {"prompt_token_ids": list(token_ids)}, sampling)

    def _step(self) -> list[Any]:
        with self._errors():
            return [output for output in self._engine.step() if output.finished]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        smaller = f"read its log above; if it ran out of memory, use a smaller `batch_tokens` than {self._batch_tokens}"
        with library_errors(f"vLLM cannot score with {shown(self.info.name)}", smaller):
            yield


def _shut_down(engine: weakref.ref[Any]) -> None:
    running = engine()
    if running is not None:
        running.engine_core.shutdown()


_ONE_TOKEN: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "ignore_eos": True}


def load(name: str, loading: Loading, engine: Engine) -> VllmScorer:
    """Loads a scorer of a model that vLLM runs in this process, with workers in processes of their own.

    Args:
        name: Hub id or directory with safetensors weights.
        loading: ``batch_tokens`` is vLLM's ``max_num_batched_tokens``, 2,048 by default.
        engine: ``max_model_len`` bounds the tokens of a document; the model's maximum length by default.

    Raises:
        UserError: vLLM is not installed, cannot run the model, or computes its position extrapolation differently than
            transformers does.
    """
    source = resolve(name)
    if source.gguf is not None:
        raise UserError(f"{shown(name)} is a .gguf file: use `engine=llama-cpp`, or pass a directory")
    Processes().require_one("`engine=vllm` starts its own processes: use `tensor_parallel` instead of torchrun")
    check_folder(source)
    check_hub(source)
    if find_adapter(source) is not None:
        raise UserError(
            f"{shown(name)} is an adapter: merge it into its model (peft's merge_and_unload), and pass the merged model"
        )
    config = load_config(source, trust_remote_code=loading.trust_remote_code)
    if custom_rope_type(config) is not None:
        raise UserError(
            f"{shown(name)} has rotary embeddings of the type {custom_rope_type(config)!r}, which vLLM does not have: "
            "use `engine=transformers`"
        )
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "`engine=vllm` needs vLLM in this environment, but its transformers version differs from the one longlens "
            "requires: see docs/engines.md, or serve the model from an environment of vLLM's own "
            "(`model=http://HOST:PORT/v1#NAME`)"
        )
    encoder = engine_encoder(name, loading, engine)
    longest = engine.max_model_len or model_max_length(config)
    if longest is None:
        raise UserError(f"the config of {shown(name)} has no maximum length: pass `max_model_len`, in tokens")
    batch_tokens = loading.batch_tokens or BATCH_TOKENS
    version = metadata.version("vllm")
    step = (
        f"read its log above (vLLM {version}, tested with {_TESTED}); if memory is short, use a smaller "
        f"`max_model_len` than {longest:,} or `tensor_parallel`"
    )
    with library_errors(f"vLLM cannot load {shown(name)}", step), hub_access(source), _one_more_token():
        _check_rope(name, config, longest)
        llm = _start(source.path, loading, longest=longest, batch_tokens=batch_tokens)
    settings = llm.llm_engine.vllm_config
    from vllm import SamplingParams
    from vllm.platforms import current_platform

    by_start = bool(getattr(settings, "use_v2_model_runner", False)) and hasattr(SamplingParams, "prompt_logprob_start")
    info = local_info(
        source,
        config,
        encoder,
        dtype=str(settings.model_config.dtype).removeprefix("torch."),
        device=str(current_platform.device_type),
        attention="vllm",
        engine=f"vllm {version}",
    )
    return VllmScorer(llm.llm_engine, encoder, info, longest=longest, batch_tokens=batch_tokens, by_start=by_start)


def _start(path: str, loading: Loading, *, longest: int, batch_tokens: int) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    half = "bfloat16" if torch.bfloat16 in current_platform.supported_dtypes else "float32"
    memory: dict[str, Any] = {"gpu_memory_utilization": MEMORY_UTILIZATION}
    if is_cpu and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        memory = {"kv_cache_memory_bytes": CPU_CACHE_BYTES}
    return LLM(
        path,
        skip_tokenizer_init=True,  # only token ids are used
        dtype=("float32" if is_cpu else half) if loading.dtype == "auto" else loading.dtype,
        load_format="safetensors",  # never a pickle
        trust_remote_code=loading.trust_remote_code,
        tensor_parallel_size=loading.tensor_parallel or 1,
        # Prompt log-probabilities require one generated token, which nothing reads and no layer processes.
        max_model_len=longest + 1,
        max_num_batched_tokens=batch_tokens,
        enable_prefix_caching=False,
        logprobs_mode="raw_logprobs",
        enforce_eager=True,  # graphs are for decoding; capturing them takes longer than many runs
        **memory,
    )


@contextmanager
def _one_more_token() -> Iterator[None]:
    """Allows a ``max_model_len`` of the model's length plus one, for the generated token, which is not read."""
    name = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _check_rope(name: str, config: Any, longest: int) -> None:
    """Rejects a position extrapolation that vLLM computes differently than transformers does.

    Compares the cosines and sines of both at all positions, and those of transformers at the shortest and the longest
    length. If the latter differ (dynamic NTK, LongRoPE beyond its original length), frequencies depend on the length of
    each sequence, but vLLM has one table for all sequences.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    text = text_config(config)
    parameters: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys: list[str | None] = [*nested_keys(text)] or [None]
    for key in keys:
        entry: dict[str, Any] = dict(parameters if key is None else parameters[key] or {})
        kind = entry.get("rope_type", "default")
        if kind not in ROPE_INIT_FUNCTIONS:  # the default, and types of vLLM or of the model's own code
            continue
        options = {} if key is None else {"layer_type": key}
        shortest, ours = (
            _cos_sin(ROPE_INIT_FUNCTIONS[kind](text, torch.device("cpu"), seq_len=length, **options), longest)
            for length in (1, longest)
        )
        if not torch.equal(shortest, ours):
            raise UserError(
                f"{shown(name)} has rotary embeddings of the type {kind!r}, whose frequencies depend on the length of "
                "each sequence, but vLLM uses the same for all: use `engine=transformers`"
            )
        with set_current_vllm_config(VllmConfig()):
            theirs = get_rope(
                head, text.max_position_embeddings, rope_parameters=entry, dtype=torch.float32
            ).cos_sin_cache[:longest]
        apart = float("inf") if theirs.shape != ours.shape else float((theirs - ours).abs().max())
        if apart > _ROPE_ERROR:
            raise UserError(
                f"vLLM computes the rotary embeddings of {shown(name)} ({kind!r}) differently than transformers does, "
                f"by {apart:.3g}, at one of {longest:,} positions: use `engine=transformers`"
            )


def _cos_sin(frequencies: tuple[torch.Tensor, float], length: int) -> torch.Tensor:
    inv_freq, factor = frequencies
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq.float())
    return torch.cat([angles.cos(), angles.sin()], -1) * factor
