"""Scores with SGLang's own ``/generate``, which accepts token ids and a start offset: a prefix is not computed twice.

Source: docs.sglang.io, native API (``input_ids``, ``return_logprob``, ``logprob_start_len``) and sampling parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from longlens.engines.address import read_server
from longlens.engines.frame import Greedy
from longlens.engines.http import Http, Refused
from longlens.engines.server import (
    UNKNOWN,
    ServerScorer,
    find_model,
    find_tokenizer,
    longest_request,
    server_info,
)
from longlens.errors import UserError
from longlens.settings.options import Engine, Loading

RESERVED = 6
"""SGLang's ``max_req_input_len`` is ``context_length`` minus this. A prompt must be shorter."""


def load(name: str, loading: Loading, engine: Engine) -> SGLangScorer:
    """Connects to ``http://HOST:PORT/v1#NAME`` and returns its scorer; ``/v1`` is optional.

    Raises:
        UserError: The server or the model does not exist, the tokenizer differs, or the server is not SGLang's.
    """
    server = read_server(name)
    if not urlsplit(server.address).path:
        server = server._replace(address=f"{server.address}/v1")
    http = Http(server, concurrency=engine.concurrency)
    model = find_model(http)
    facts: dict[str, Any] = {}
    for paths in (("/server_info", "/get_server_info"), ("/model_info", "/get_model_info")):
        for path in paths:
            answer = http.ask_if_there("GET", path, without="the facts it reports there are not recorded")
            if isinstance(answer, dict):
                facts |= answer
                break
    root = facts.get("model_path") or model.get("root")
    tokenizer = find_tokenizer(server, facts.get("tokenizer_path") or root, loading, engine)
    stated = facts.get("max_req_input_len")
    if stated is None:
        context = facts.get("context_length") or model.get("max_model_len")
        stated = context - RESERVED if isinstance(context, int) else None
    dtype = facts.get("dtype")
    longest = longest_request(stated, engine)
    info = server_info(
        server,
        tokenizer,
        kind="sglang",
        version=str(facts.get("version") or ""),
        root=root,
        max_length=longest,
        dtype=dtype if isinstance(dtype, str) and dtype not in ("", "auto") else UNKNOWN,
    )
    return SGLangScorer(tokenizer, info, http, longest=longest)


class SGLangScorer(ServerScorer):
    """Reads ``meta_info.input_token_logprobs`` from one token before `start`, each entry with its token id."""

    def request(self, token_ids: Sequence[int], start: int) -> tuple[str, dict[str, Any]]:
        """The value at ``logprob_start_len`` is None, so this is one before the first requested token."""
        sampling = {"max_new_tokens": 1, "temperature": 0, "repetition_penalty": 1.0}
        body = {"input_ids": list(token_ids), "sampling_params": sampling, "return_logprob": True}
        return "/generate", body | {"logprob_start_len": start - 1, "top_logprobs_num": 0, "stream": False}

    def read(self, answer: Any, token_ids: Sequence[int], start: int) -> Sequence[Any]:
        """Matches entries by token id: some versions add an entry for the token before, some for the token after."""
        entries = self._entries(answer, "input_token_logprobs")
        if entries and entries[0][0] is None and entries[0][1] == token_ids[start - 1]:
            entries = entries[1:]
        if len(entries) == len(token_ids) - start + 1 and entries[-1][1] == -1:
            entries = entries[:-1]
        if [entry[1] for entry in entries] != [int(token) for token in token_ids[start:]]:
            raise self._wrong(
                f"returns log-probabilities of {len(entries)} tokens that are not the {len(token_ids) - start} wanted"
            )
        return [entry[0] for entry in entries]

    def _greedy(self, token_ids: Sequence[int]) -> Greedy:
        try:
            answer = self.http.post(*self.request(token_ids, len(token_ids) - 1), tokens=len(token_ids))
        except Refused as refused:
            raise self.refusal(refused) from refused
        entries = self._entries(answer, "output_token_logprobs")
        if len(entries) != 1:
            raise self._wrong(f"generates {len(entries)} tokens instead of one")
        return Greedy(int(entries[0][1]), entries[0][0])

    def _entries(self, answer: Any, field: str) -> list[Any]:
        facts = answer.get("meta_info") if isinstance(answer, dict) else None
        entries = facts.get(field) if isinstance(facts, dict) else None
        if not isinstance(entries, list) or not all(isinstance(one, list) and len(one) >= 2 for one in entries):
            raise self._wrong(f"returns no {field}")
        return entries

    def _wrong(self, what: str) -> UserError:
        return UserError(
            f"the server {self.http.server.host} {what}: check that it is SGLang's, or remove `engine` for a server "
            "of OpenAI's completions (docs/engines.md)"
        )
