"""Scores with OpenAI-compatible servers that return log-probabilities of the prompt: vLLM's, and others with ``echo``.

Source: vLLM 0.32, vllm/entrypoints/openai/completion/protocol.py (``prompt_logprobs``, ``return_tokens_as_token_ids``);
OpenAI's completions, ``echo`` and ``logprobs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from longlens.engines.address import read_server
from longlens.engines.frame import Greedy
from longlens.engines.http import Http, Refused
from longlens.engines.server import ServerScorer, find_model, find_tokenizer, longest_request, server_info
from longlens.errors import UserError, shown
from longlens.scoring.scorer import ScorerInfo
from longlens.settings.options import Engine, Loading
from longlens.tokenization import vocabulary_size

_USE = "serve it with vLLM or SGLang, or load it with `engine=vllm` or `engine=transformers` (docs/engines.md)"


def load(name: str, loading: Loading, engine: Engine) -> OpenAIScorer:
    """Connects to ``http://HOST:PORT/v1#NAME`` and returns its scorer.

    Raises:
        UserError: The server or the model does not exist, the tokenizer differs, or the server returns no
            log-probabilities of prompts.
    """
    server = read_server(name)
    http = Http(server, concurrency=engine.concurrency)
    model = find_model(http)
    tokenizer = find_tokenizer(server, model.get("root"), loading, engine)
    longest = longest_request(model.get("max_model_len"), engine)
    kind = "vllm" if model.get("owned_by") == "vllm" else "openai"
    said = http.ask_if_there("GET", "/version", without="its version is not recorded") if kind == "vllm" else None
    version = str(said.get("version") or "") if isinstance(said, dict) else ""
    info = server_info(server, tokenizer, kind=kind, version=version, root=model.get("root"), max_length=longest)
    return OpenAIScorer(tokenizer, info, http, longest=longest)


class OpenAIScorer(ServerScorer):
    """Requests ``prompt_logprobs`` if the server has them, else ``echo`` with ``logprobs``.

    Neither has a start offset: the server computes and returns all K + d tokens of a window. Other engines compute them
    all, too.
    """

    def __init__(self, tokenizer: Any, info: ScorerInfo, http: Http, *, longest: int | None) -> None:
        super().__init__(tokenizer, info, http, longest=longest)
        self._has_prompt_logprobs, self._extra = self._find_way()

    def request(self, token_ids: Sequence[int], start: int) -> tuple[str, dict[str, Any]]:
        """The whole prompt, with one generated token, which servers require."""
        body: dict[str, Any] = {"model": self.http.server.name, "prompt": list(token_ids), "max_tokens": 1}
        body |= {"temperature": 0, "add_special_tokens": False, "stream": False}
        way = {"prompt_logprobs": 0} if self._has_prompt_logprobs else {"echo": True, "logprobs": 1}
        return "completions", body | way

    def read(self, answer: Any, token_ids: Sequence[int], start: int) -> Sequence[Any]:
        """Reads ``prompt_logprobs`` by token id, or ``token_logprobs`` by position."""
        if self._has_prompt_logprobs:
            return self._by_id(self._choice(answer).get("prompt_logprobs"), token_ids)[start - 1 :]
        choice = self._choice(answer)
        values, n = self._echoed(choice), len(token_ids)
        expected = {n + self._extra} | ({n} if choice.get("finish_reason") == "stop" else set())
        if len(values) not in expected:
            raise self._wrong(f"returns {len(values)} log-probabilities for {n} tokens and {self._extra} generated")
        return values[start:n]

    def _find_way(self) -> tuple[bool, int]:
        """Whether the server has ``prompt_logprobs``; else the number of generated tokens that end an echoed list."""
        ids = self._encoder.encode("One, two, three, four: five").token_ids.tolist()[:16]
        self._has_prompt_logprobs = True
        try:
            choice = self._choice(self.http.post(*self.request(ids, 1), tokens=len(ids)))
        except Refused as refused:
            if refused.status in (404, 405):
                raise UserError(
                    f"the server {self.http.server.host} has no completions (status {refused.status} at "
                    f"{self.http.server.address}/completions), like chat-only servers, which return no "
                    f"log-probabilities of a prompt. Check the address (.../v1), or {_USE}"
                ) from refused
            choice = {}
        if choice.get("prompt_logprobs") is not None:
            self._by_id(choice["prompt_logprobs"], ids)
            return True, 0
        self._has_prompt_logprobs = False
        try:
            choice = self._choice(self.http.post(*self.request(ids, 1), tokens=len(ids)))
        except Refused as refused:
            raise self.refusal(refused) from refused
        values = self._echoed(choice)
        if len(values) not in (len(ids), len(ids) + 1):
            raise self._wrong(f"returns {len(values)} log-probabilities for {len(ids)} tokens")
        if all(value is None for value in values[1 : len(ids)]):
            raise self._wrong("returns only the most likely tokens, and not those of the prompt")
        self._check_echo(choice, ids)
        return False, len(values) - len(ids)

    def _by_id(self, entries: Any, token_ids: Sequence[int]) -> list[Any]:
        """Log-probabilities of all tokens but the first; entries are None, then ``{id: {"logprob": ...}}``."""
        if not isinstance(entries, list) or len(entries) != len(token_ids) or entries[0] is not None:
            found = len(entries) if isinstance(entries, list) else "no"
            raise self._wrong(f"returns {found} prompt_logprobs for {len(token_ids)} tokens (the first must be None)")
        values = []
        for token, entry in zip(token_ids[1:], entries[1:], strict=True):
            own = entry.get(str(token)) if isinstance(entry, dict) else None
            if isinstance(entry, dict) and own is None:
                raise self._wrong("returns only the most likely tokens, and not those of the prompt")
            values.append(own.get("logprob") if isinstance(own, dict) else own)
        return values

    def _echoed(self, choice: dict[str, Any]) -> list[Any]:
        """``token_logprobs`` of the prompt and the generated token; the first is None."""
        logprobs = choice.get("logprobs")
        values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(values, list) or len(values) < 2:
            raise self._wrong("returns no log-probabilities of the prompt (echo is ignored)")
        if values[0] is not None:
            raise self._wrong("returns a log-probability for the first token, which has no context")
        return values

    def _check_echo(self, choice: dict[str, Any], ids: list[int]) -> None:
        """Checks that the echoed text is what the tokenizer decodes the ids to."""
        text, ours = str(choice.get("text", "")), self._texts([ids])[0]
        if "".join(ours.split()) not in "".join(text.split()):
            raise UserError(
                f"the tokenizer is not that of {shown(self.http.server.name)} on {self.http.server.host}, which reads "
                f"{shown(ours)} as {shown(text)}: pass the served model's `tokenizer`"
            )

    def _greedy(self, token_ids: Sequence[int]) -> Greedy | None:
        body: dict[str, Any] = {"model": self.http.server.name, "prompt": list(token_ids), "max_tokens": 1}
        body |= {"temperature": 0, "add_special_tokens": False, "logprobs": 1}
        if self._has_prompt_logprobs:  # vLLM, which by default samples according to generation_config.json
            body |= {"return_tokens_as_token_ids": True, "repetition_penalty": 1.0}
        try:
            choice = self._choice(self.http.post("completions", body, tokens=len(token_ids)))
        except Refused as refused:
            raise self.refusal(refused) from refused
        logprobs = choice.get("logprobs")
        logprobs = logprobs if isinstance(logprobs, dict) else {}
        tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
        logprob = values[-1] if values and isinstance(values[-1], (int, float)) else None
        name = str(tokens[-1]) if tokens else str(choice.get("text", ""))
        if name.startswith("token_id:"):
            return Greedy(int(name.removeprefix("token_id:")), logprob)
        ids = self._ids_of_texts.get(name, [])
        return Greedy(ids[0], logprob) if len(ids) == 1 else None

    @cached_property
    def _ids_of_texts(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token, text in enumerate(self._texts([[token] for token in range(vocabulary_size(self.tokenizer))])):
            found.setdefault(text, []).append(token)
        return found

    def _texts(self, sequences: list[list[int]]) -> list[str]:
        decoded = self.tokenizer.batch_decode(sequences, clean_up_tokenization_spaces=False)
        return [str(text) for text in decoded]

    def _choice(self, answer: Any) -> dict[str, Any]:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._wrong("does not return exactly one choice")
        return choices[0]

    def _wrong(self, what: str) -> UserError:
        return UserError(f"the server {self.http.server.host} {what}, so its model cannot be scored: {_USE}")
