"""A server on loopback that speaks as vLLM's, as any server of OpenAI's completions, or as SGLang's, over a tiny model.

Its numbers are those of the transformers scorer; `mode` makes it wrong in one way, and `fails` makes it fail.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from longlens.scoring.scorer import Request


class Fake:
    """A running server.

    Args:
        scorer: Of transformers, whose numbers it gives.
        kind: ``vllm``, ``openai`` (echo) or ``sglang``.
        mode: What is wrong with it.
        name: Of its model.
        max_model_len: What it says.
        key: What it wants as a bearer token.
        fails: What happens to a request by its number, from 0 on: a status, ``hang``, ``drop``, ``cut``, or None.
    """

    def __init__(
        self,
        scorer: Any,
        kind: str = "vllm",
        mode: str = "",
        *,
        name: str = "tiny",
        root: str | None = None,
        max_model_len: int | None = 4096,
        key: str = "",
        fails: Callable[[int], Any] = lambda number: None,
        port: int = 0,
    ) -> None:
        self.scorer, self.kind, self.mode, self.name, self.root = scorer, kind, mode, name, root
        self.max_model_len, self.key, self.fails = max_model_len, key, fails
        self.requests: list[tuple[str, Any]] = []
        self.number, self.in_flight, self.most_in_flight = 0, 0, 0
        self.keys: Counter[str] = Counter()
        self.location = ""
        self.raw: tuple[int, bytes, dict[str, str]] | None = None  # what it says to everything
        self.at: dict[str, Any] = {}  # what it says at a path: as `raw`, or ``hang``
        self._seen: dict[Any, list[float]] = {}
        self._known: dict[tuple[int, ...], list[float]] = {}
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            fake = self

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.fake.handle(self, None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.fake.handle(self, json.loads(body))

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1#{self.name}"

    def stop(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def handle(self, to: BaseHTTPRequestHandler, body: Any) -> None:
        with self._lock:
            self.requests.append((to.path, body))
            self.keys[to.headers.get("authorization", "")] += 1
        if self._stopping.is_set():
            to.close_connection = True
            return
        at = self.at.get(to.path, self.raw)
        if at == "hang":
            self._stopping.wait(30)
        elif at is not None:
            self.send(to, *at)
        elif self.location:
            self.send(to, 307, {}, {"Location": self.location})
        elif self.key and to.headers.get("authorization") != f"Bearer {self.key}":
            self.send(to, 401, {"error": {"message": f"wrong key: {to.headers.get('authorization')}"}})
        elif body is None:
            self.get(to)
        elif to.path == "/tokenize" and self.kind != "openai":
            self.send(to, 200, {"tokens": self.tokenize(body["prompt"])})
        elif to.path in ("/v1/completions", "/generate"):
            self.score(to, body)
        else:
            self.send(to, 404, {"error": "not found"})

    def get(self, to: BaseHTTPRequestHandler) -> None:
        owner = {"vllm": "vllm", "sglang": "sglang"}.get(self.kind, "somebody")
        model = {"id": self.name, "owned_by": owner, "root": self.root or self.name}
        if self.max_model_len is not None and self.kind != "openai":
            model["max_model_len"] = self.max_model_len
        answers = {"/v1/models": {"data": [model, {"id": "another"}]}}
        if self.kind == "vllm":
            answers["/version"] = {"version": "0.32.0"}
        if self.kind == "sglang":
            answers["/get_server_info"] = {"version": "0.5.6", "dtype": "float32", "context_length": self.max_model_len}
            answers["/get_model_info"] = {"model_path": self.root or self.name}
        found = answers.get(to.path)
        self.send(to, 200 if found else 404, found or {"detail": "Not Found"})

    def score(self, to: BaseHTTPRequestHandler, body: Any) -> None:
        with self._lock:
            number, self.number = self.number, self.number + 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self.fails(number)
            if fault == "hang":
                self._stopping.wait(30)
            elif fault == "drop":
                to.close_connection = True
            elif isinstance(fault, tuple):
                self.send(to, fault[0], {"error": {"message": f"failed, {to.headers.get('authorization')}"}}, fault[1])
            elif isinstance(fault, int):
                self.send(to, fault, {"error": {"message": f"failed, {to.headers.get('authorization')}"}})
            elif self.mode == "chat-only":
                self.send(to, 404, {"detail": "Not Found"})
            elif self.mode == "takes text":  # llama-cpp-python's server
                self.send(to, 500, {"error": {"message": "takes no ids"}})
            elif self.mode == "refuses":
                self.send(to, 400, {"error": {"message": f"no prompts today ({to.headers.get('authorization')})"}})
            else:
                answer = self.generate(body) if to.path == "/generate" else self.complete(body)
                self.send(to, 200, answer, cut=fault == "cut")
        finally:
            with self._lock:
                self.in_flight -= 1

    def send(self, to: Any, status: int, content: Any, headers: Any = None, *, cut: bool = False) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = data[: len(data) // 2] if cut else data
        to.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(data)

    def tokenize(self, text: str) -> list[int]:
        ids = self.scorer._encoder.encode(text).token_ids.tolist()
        return ids[::-1] if self.mode == "other tokenizer" else ids

    def logprobs(self, ids: list[int]) -> list[float]:
        """Of each token but the first."""
        key = tuple(ids)
        with self._model_lock:
            if key not in self._known:
                results = self.scorer.logprobs([Request(0, ids, 1)] if len(ids) > 1 else [])
                self._known[key] = [float(value) for result in results for value in result.logprobs]
            return self._known[key]

    def wrong(self, ids: list[int]) -> list[Any]:
        """They, as the mode has them."""
        values: list[Any] = list(self.logprobs(ids))
        match self.mode:
            case "shifted":
                values = [self.logprobs([*ids[: i + 1], ids[i]])[-1] for i in range(1, len(ids))]
            case "stale":
                values = (self._seen.setdefault(tuple(ids[:8]), values) + values)[: len(values)]
            case "None" if len(values) > 20:
                values[7] = None
            case "NaN" if len(values) > 20:
                values[7] = float("nan")
            case "-Infinity" if len(values) > 20:
                values[7] = float("-inf")
            case "short" if len(values) > 30:
                values = values[:-1]
            case "long" if len(values) > 30:
                values = [*values, -1.0]
        return values

    def greedy(self, ids: list[int]) -> tuple[int, float]:
        with self._model_lock, torch.no_grad():
            values = self.scorer.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        return int(values.argmax()), float(values.max())

    def text(self, ids: list[int]) -> str:
        text = str(self.scorer.tokenizer.decode(ids))
        return text[::-1] if self.mode == "other tokenizer" else text

    def complete(self, body: Any) -> Any:
        ids = body["prompt"]
        assert all(type(token) is int for token in ids)
        assert body["model"] == self.name
        wants_logprobs = body.get("logprobs") is not None
        # What follows is asked for by the probe alone.
        token, logprob = self.greedy(ids) if wants_logprobs and not body.get("echo") else (65, -1.0)
        named = f"token_id:{token}" if body.get("return_tokens_as_token_ids") else self.text([token])
        choice: dict[str, Any] = {"index": 0, "text": self.text([token]), "finish_reason": "length", "logprobs": None}
        if self.mode in ("no logprobs", "of a chat"):
            if self.mode == "of a chat":  # llama.cpp's server
                choice["logprobs"] = {"content": [{"id": token, "token": named, "logprob": logprob}]}
            return {"choices": [choice]}
        if wants_logprobs:
            choice["logprobs"] = {"tokens": [named], "token_logprobs": [logprob]}
        if self.kind == "vllm" and body.get("prompt_logprobs") is not None:
            values = self.wrong(ids)
            own = [str(token + (1 if self.mode == "top-k" else 0)) for token in [*ids[1:], 0]]
            entries = [None if v is None else {i: {"logprob": v, "rank": 1}} for i, v in zip(own, values, strict=False)]
            choice["prompt_logprobs"] = [None, *entries]
        if body.get("echo") and wants_logprobs:
            values = self.wrong(ids) if self.mode != "top-k" else [None] * (len(ids) - 1)
            choice["text"] = self.text(ids) + choice["text"]
            choice["logprobs"] = {
                "tokens": [self.text([token]) for token in [*ids, token]],
                "token_logprobs": [None, *values, *([] if self.mode == "none of generated" else [logprob])],
                "top_logprobs": [],
            }
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def generate(self, body: Any) -> Any:
        ids, start = body["input_ids"], body["logprob_start_len"]
        assert all(type(token) is int for token in ids)
        values = [None, *self.wrong(ids)]
        entries = [[value, token, None] for value, token in zip(values, [*ids, 5], strict=False)][start:]
        if entries:
            entries[0] = [None, ids[start], None]
        if self.mode == "ids of others":
            entries = [[value, token + 1, None] for value, token, _ in entries]
        token, logprob = self.greedy(ids)
        facts = {"input_token_logprobs": entries, "output_token_logprobs": [[logprob, token, None]]}
        if self.mode == "no logprobs":
            facts = {}
        return {"text": self.text([token]), "meta_info": facts | {"prompt_tokens": len(ids)}}


def share(rate: float, faults: list[Any], seed: int = 0) -> Callable[[int], Any]:
    """A share of requests fails, each in one of these ways; the same ones each time."""
    draws = random.Random(seed)
    plan = [draws.choice(faults) if draws.random() < rate else None for _ in range(20_000)]
    return lambda number: plan[number]


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
