"""Scoring with actors of Ray Data: the driver tokenizes, plans and writes, and the actors run the model.

`longlens.score` runs in the driver, with a scorer whose log-probabilities come from the cluster. Rows, IDs, checks,
resuming and the run directory are therefore the same as without Ray, and a run that was started in one way can be
resumed in the other. The actors write nothing: their nodes need the model, but neither the documents nor a shared file
system.

::

    requests -> chunks, kept in the driver until they are answered
                  chunk numbers -> map_batches(_Actor, ActorPoolStrategy) -> answers -> results

Only chunk numbers flow through Ray Data. An actor asks the driver for the chunk with a number, so that a call that Ray
retries on another actor gets the same chunk, and at most `CHUNKS_PER_ACTOR` chunks per actor exist.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from longlens.corpus import Document
from longlens.engines import OWN, TRANSFORMERS, check_taken, engine_name
from longlens.errors import LonglensWarning, UserError, library_errors, require
from longlens.models import UnloadedModel
from longlens.runs.identity import model_differences
from longlens.scoring.scorer import Request, Result, Scorer, ScorerInfo
from longlens.settings.options import Engine, Loading, Ray
from longlens.tokenization import Encoded

CHUNK_BATCHES = 4
"""Number of model batches per chunk: the unit that an actor sorts by length, and that is lost with it."""
CHUNKS_PER_ACTOR = 4
"""Number of chunks in flight per actor: the one that it runs, and those that wait for it."""
MAX_ATTEMPTS = 5
"""Maximum number of attempts per chunk: after that, for example if memory runs out each time, the run ends."""
CONNECT_SECONDS = 10.0
"""Timeout for the address of a cluster to answer."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Object store size of a local cluster: a chunk has megabytes at most, and waiting chunks are in the driver."""

_LOGGER = logging.getLogger(__name__)


class Chunk(NamedTuple):
    """Requests as arrays, which need a tenth of the memory of lists of integers.

    Attributes:
        token_ids: Token ids of all requests, one after the other.
        lengths: Lengths of the requests, in tokens.
        starts: For each request, the index of the first token that is scored.
        is_short: For each request, whether it is a window of a short context.
    """

    token_ids: np.ndarray[Any, np.dtype[np.int32]]
    lengths: list[int]
    starts: list[int]
    is_short: list[bool]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Chunk:
        """Packs requests without their keys, which stay in the driver."""
        ids = [np.asarray(request.token_ids, np.int32) for request in requests]
        return cls(
            np.concatenate(ids) if ids else np.zeros(0, np.int32),
            [len(one) for one in ids],
            [request.start for request in requests],
            [request.is_short for request in requests],
        )

    def requests(self) -> Iterator[Request]:
        """Yields the requests, with their numbers as keys."""
        ends = np.cumsum(self.lengths)
        for number, (end, length, start, is_short) in enumerate(
            zip(ends, self.lengths, self.starts, self.is_short, strict=True)
        ):
            yield Request(number, self.token_ids[end - length : end].tolist(), start, is_short)


class _Relay:
    """An actor that carries questions to the driver, which cannot be called from the cluster, and its answers back.

    It stores only open questions: if it is lost, Ray starts another one and asks them again.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._new: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue()

    async def ask(self, kind: str, number: int) -> Any:
        """Returns the driver's answer when it is available."""
        question = kind, number
        if question not in self._open:
            self._open[question] = asyncio.get_running_loop().create_future()
            self._new.put_nowait(question)
        return await asyncio.shield(self._open[question])  # a call that Ray cancels does not cancel it for others

    async def asked(self) -> tuple[str, int] | None:
        """Returns the next question, each once; None at the end."""
        return await self._new.get()

    async def end(self) -> None:
        """Signals that there are no more questions."""
        self._new.put_nowait(None)

    async def answer(self, kind: str, number: int, answer: Any) -> None:
        """Stores the driver's answer."""
        question = self._open.pop((kind, number), None)
        if question is not None:
            question.set_result(answer)


def _numbers(_: Any, relay: Any) -> Iterator[dict[str, list[int]]]:
    """Yields numbers of chunks as the driver creates them; a restarted task yields the same numbers."""
    import ray

    number = 0
    while ray.get(relay.ask.remote("is there", number)):
        yield {"chunk": [number]}
        number += 1


class _Actor:
    """A scorer on a node of the cluster."""

    def __init__(self, relay: Any, name: str, loading: Loading, engine: Engine, folder: str) -> None:
        self._relay = relay
        self._scorer: Scorer | None = None
        self._error = ""
        with suppress(OSError):
            os.chdir(folder)  # relative model paths refer to the driver's folder
        try:
            with library_errors("the model cannot be loaded", "see the logs of Ray"):
                self._scorer = UnloadedModel(name, loading, engine).load()
        except UserError as error:
            # The error is the answer to the first chunk: Ray would restart a failing actor forever.
            _LOGGER.exception("loading %s", name)
            self._error = f"{error} (on the node {socket.gethostname()})"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Answers the chunk whose number is in the batch."""
        import ray

        (number,) = batch["chunk"].tolist()
        chunk = ray.get(self._relay.ask.remote("chunk", number))
        info, logprobs, error, said = "", b"", self._error, []
        if self._scorer is not None and chunk is not None:
            info = json.dumps(asdict(self._scorer.info))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", LonglensWarning)
                try:
                    logprobs = _score(self._scorer, chunk).tobytes()
                except UserError as failure:
                    _LOGGER.exception("chunk %d", number)
                    error = f"{failure}"
            said = [f"{one.message}" for one in caught if issubclass(one.category, LonglensWarning)]
        row = {"chunk": number, "info": info, "logprobs": logprobs, "error": error, "warnings": json.dumps(said)}
        return {name: [value] for name, value in row.items()}


def _score(scorer: Scorer, chunk: Chunk) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Log-probabilities of a chunk's requests, one after the other.

    Raises:
        UserError: The scorer fails, or does not return exactly one result with the expected number of values per
            request.
    """
    name = scorer.info.name
    found: dict[int, Any] = {}
    with library_errors(f"{name} cannot score", "see the logs of Ray, or score without `ray`"):
        for result in scorer.logprobs(chunk.requests()):
            wanted = chunk.lengths[result.key] - chunk.starts[result.key]
            if result.key in found or len(result.logprobs) != wanted:
                raise UserError(
                    f"{name} gives {len(result.logprobs)} log-probabilities for {wanted} tokens, or returns "
                    "duplicates: check the engine"
                )
            found[result.key] = np.asarray(result.logprobs, np.float32)
    if len(found) != len(chunk.lengths):
        raise UserError(f"{name} answers {len(found)} of {len(chunk.lengths)} requests: check the engine")
    return np.concatenate([found[number] for number in range(len(found))]) if found else np.zeros(0, np.float32)


class _Actors:
    """The pool of actors, and the driver's side of the protocol.

    Raises:
        UserError: Ray is not installed, its cluster cannot be reached, or it lacks the requested resources.
    """

    def __init__(self, settings: Ray, name: str, loading: Loading, engine: Engine) -> None:
        ray, data = _import_ray(), require("ray.data", extra="ray", purpose="`ray`")
        self._ray = ray
        self._is_ours = not ray.is_initialized()  # otherwise the caller owns it
        self._lock = threading.Lock()
        self._chunks: dict[int, Chunk] = {}
        self._attempts: dict[int, int] = {}
        self._waiting: set[int] = set()  # numbers that were requested and do not exist yet
        self._made, self._has_ended = 0, False
        self._thread: threading.Thread | None = None
        self._ending = ExitStack()
        try:
            if self._is_ours:
                self._ending.enter_context(_environment())  # until the end: the cluster and Ray Data read it later
                self._ending.enter_context(_quiet())
                _connect(ray, settings)
                self._ending.callback(ray.shutdown)
            (least, most), resources = _pool(ray, settings, loading.tensor_parallel or 1)
            self.room = CHUNKS_PER_ACTOR * most
            relay = ray.remote(_Relay).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
            self._relay = relay.remote()
            numbers = data.from_items([0])
            numbers.context.enable_progress_bars = False
            numbers.context.target_max_block_size = 1  # in bytes: each number and each answer is passed on at once
            answers = numbers.map_batches(_numbers, fn_kwargs={"relay": self._relay}, num_cpus=0).map_batches(
                _Actor,
                fn_constructor_args=(self._relay, name, loading, engine, os.getcwd()),
                batch_size=1,
                compute=data.ActorPoolStrategy(min_size=least, max_size=most),
                **resources,
            )
            # Without read-ahead, which would delay an answer until the next one is available.
            self._answers = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def put(self, chunk: Chunk) -> int:
        """Passes a chunk to the actors; returns its number."""
        with self._lock:
            number = self._made
            self._chunks[number] = chunk
            self._made += 1
            self._say_what_is_there()
        return number

    def next(self) -> tuple[ScorerInfo, int, np.ndarray[Any, np.dtype[np.float32]]]:
        """The next answer of any chunk: the model's info, the chunk's number, and the log-probabilities.

        Raises:
            UserError: The actor could not load the model or score the chunk, or the chunk was lost too often.
        """
        # Ray's own report of an actor's exception would be pages long; a UserError arrives as an answer.
        with library_errors("Ray ended the run", "see its logs (/tmp/ray/session_latest/logs on its nodes)"):
            (row,) = next(self._answers).to_pylist()
        for text in json.loads(row["warnings"]):
            warnings.warn(text, LonglensWarning, stacklevel=2)
        number = row["chunk"]
        with self._lock:
            if row["error"]:
                raise UserError(row["error"])
            if not row["info"]:
                raise UserError(
                    f"a chunk of documents failed with its actor {MAX_ATTEMPTS} times, most often because memory ran "
                    "out: use a smaller `batch_tokens` or `max_length`, or fewer actors per node (`ray_cpus`)"
                )
            self._chunks.pop(number)
            self._attempts.pop(number, None)
        info = json.loads(row["info"])
        return (
            ScorerInfo(**info | {"own_prefix": tuple(info["own_prefix"])}),
            number,
            np.frombuffer(row["logprobs"], np.float32),
        )

    def close(self) -> None:
        """Ends the actors and disconnects from the cluster, which ends if it is local."""
        if self._thread is not None:
            with self._lock:
                self._has_ended = True
                self._say_what_is_there()
            if not self._chunks:
                next(self._answers, None)  # the end
            del self._answers  # which cancels calls in flight
            # The thread must not be inside Ray when Ray shuts down.
            self._relay.end.remote()
            self._thread.join(timeout=10)
            if not self._is_ours:
                self._ray.kill(self._relay)
        self._ending.close()

    def _serve(self) -> None:
        """Answers questions until the end, in a separate thread."""
        with suppress(self._ray.exceptions.RayError):  # which the actors get too, and `next` reports
            while (question := self._ray.get(self._relay.asked.remote())) is not None:
                kind, number = question
                with self._lock:
                    if kind == "chunk":
                        self._relay.answer.remote(kind, number, self._chunk(number))
                    else:
                        self._waiting.add(number)
                        self._say_what_is_there()

    def _chunk(self, number: int) -> Chunk | None:
        """A chunk to be scored; None if its attempts are exhausted."""
        attempts = self._attempts[number] = self._attempts.get(number, 0) + 1
        if 1 < attempts <= MAX_ATTEMPTS:
            _LOGGER.info("ray: an actor was lost, rescoring its documents")
        return self._chunks.get(number) if attempts <= MAX_ATTEMPTS else None

    def _say_what_is_there(self) -> None:
        for number in [number for number in self._waiting if number < self._made or self._has_ended]:
            self._waiting.remove(number)
            self._relay.answer.remote("is there", number, number < self._made)


_VARIABLES = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ part would log to stderr
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # events of the cluster would go to stdout
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a late thread of Ray Data would start another cluster
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def _environment() -> Iterator[None]:
    """Sets, for this block, what Ray reads only from the environment, unless the user has set it."""
    ours = {name: value for name, value in _VARIABLES.items() if name not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _import_ray() -> Any:
    """Imports Ray, which reads some of its settings at import."""
    with _environment():
        return require("ray", extra="ray", purpose="`ray`")


def _connect(ray: Any, settings: Ray) -> None:
    """Starts a local cluster, or joins one.

    Raises:
        UserError: The cluster cannot be reached.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if settings.ray == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    cannot = f"cannot use Ray at {settings.ray!r}"
    step = "start a cluster with ray start, or leave the address out for one on this machine"
    with library_errors(cannot, step), _without_log_level():
        if settings.ray not in ("local", "auto"):  # Ray itself would wait for minutes
            host, _, port = str(settings.ray).removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(settings.ray, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Ray's log and warnings in this block; errors are raised."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("ray", "ray.data"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    added = warnings.filters[0]
    try:
        yield
    finally:
        with suppress(ValueError):  # if other code has replaced the filters
            warnings.filters.remove(added)  # type: ignore[attr-defined]  # a list
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def _without_log_level() -> Iterator[None]:
    """Suppresses the line in which Ray's C++ part prints its log level; other output is written afterwards."""
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            with open(2, "wb", buffering=0, closefd=False) as stderr:
                stderr.writelines(line for line in said if b"RAY_BACKEND_LOG_LEVEL" not in line)


def _pool(ray: Any, settings: Ray, tensor_parallel: int) -> tuple[tuple[int, int], dict[str, float]]:
    """Minimum and maximum number of actors, and the resources of one, which has ``tensor_parallel`` GPUs.

    Raises:
        UserError: No node of a local cluster has the resources of an actor.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    gpus = settings.ray_gpus if settings.ray_gpus is not None else float(tensor_parallel if total["GPU"] else 0)
    cpus = settings.ray_cpus
    if cpus is None:
        cpus = 1.0 if gpus else min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
    wanted = {"CPU": cpus, "GPU": gpus}
    fit = sum(_fit(node, wanted) for node in nodes)
    least, most = settings.actors or (max(1, fit),) * 2
    resources = {"num_cpus": cpus, **({"num_gpus": gpus} if gpus else {})}
    text = " and ".join(f"{name}={number:g}" for name, number in resources.items())
    if least > fit:
        reason = f"`ray_actors` is {least}, each with {text}, and the cluster has room for {fit}"
        if settings.ray == "local":
            raise UserError(f"{reason}: use fewer actors, or smaller `ray_cpus` and `ray_gpus`")
        _LOGGER.warning("%s: the other actors wait for more nodes", reason)
    _LOGGER.info("ray: %s actors, each with %s", most if least == most else f"{least} to {most}", text)
    return (least, most), resources


def _fit(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Number of actors that fit on a node."""
    if not any(wanted.values()):
        return 1
    return min(int(node.get(name, 0.0) / size + 1e-9) for name, size in wanted.items() if size)


class RayScorer:
    """A scorer whose requests are answered by actors, see `longlens.scoring.scorer.Scorer`.

    Args:
        actors: The pool.
        model: The model whose tokenizer is used in the driver.
        tokenizer_sha256: Hash of its tokenizer.
        batch_tokens: Maximum tokens per batch of the actors' model; None for their default.

    Attributes:
        info: Information about the actors' model.

    Raises:
        UserError: The model cannot be loaded there, or its tokenizer differs from the one on this machine.
    """

    def __init__(
        self, actors: _Actors, model: UnloadedModel, *, tokenizer_sha256: str, batch_tokens: int | None
    ) -> None:
        from longlens.models.forward import BATCH_TOKENS

        self._actors, self._model = actors, model
        self._ready: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
        hello = actors.put(Chunk.of([]))
        self.info, number, _ = actors.next()
        assert number == hello
        if self.info.tokenizer_sha256 != tokenizer_sha256:
            raise UserError(
                f"the tokenizer of {self.info.name} differs between the nodes of the cluster and this machine: use the "
                "same files and the same versions of tokenizers and transformers on all machines"
            )
        self._chunk_tokens = CHUNK_BATCHES * (
            batch_tokens or BATCH_TOKENS["cpu" if self.info.device == "cpu" else "cuda"]
        )

    def encode(self, document: Document) -> Encoded:
        """Tokens of the document's text and their spans; no special tokens are added."""
        return self._model.encode(document)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Log-probabilities of each request's tokens from its start, in any order.

        Raises:
            UserError: An actor fails, or has a different model than the first actor.
        """
        chunks = self._chunks(requests)
        under_way: dict[int, list[tuple[Any, int]]] = {}
        more = True
        while more or under_way:
            while more and len(under_way) < self._actors.room:
                chunk = next(chunks, None)
                if chunk is None:
                    more = False
                else:
                    scored = [(request.key, len(request.token_ids) - request.start) for request in chunk]
                    under_way[self._actors.put(Chunk.of(chunk))] = scored
            if under_way:
                number = self._wait(under_way)
                logprobs, end = self._ready.pop(number), 0
                for key, length in under_way.pop(number):
                    yield Result(key, logprobs[end : end + length])
                    end += length

    def _chunks(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        chunk: list[Request] = []
        tokens = 0
        for request in requests:
            chunk.append(request)
            tokens += len(request.token_ids)
            if tokens >= self._chunk_tokens:
                yield chunk
                chunk, tokens = [], 0
        if chunk:
            yield chunk

    def _wait(self, under_way: Iterable[int]) -> int:
        """Waits for the answer to one of these chunks and returns its number; answers to other calls are kept."""
        while True:
            found = next((number for number in under_way if number in self._ready), None)
            if found is not None:
                return found
            info, number, logprobs = self._actors.next()
            differs = model_differences(*(asdict(one) | one.identity.to_json() for one in (self.info, info)))
            if differs:
                raise UserError(
                    f"the nodes of the cluster have different files for {info.name} ({'; '.join(differs)}): copy the "
                    "same files to all nodes, and set `dtype` if only some nodes have GPUs"
                )
            self._ready[number] = logprobs


class RayModel(UnloadedModel):
    """A model that Ray actors load; only its tokenizer and configuration are loaded here.

    Args:
        name: Name or path of the model, on the nodes of the cluster as well as here.
        loading: How it is loaded.
        engine: The inference engine.
        settings: The cluster and its actors.

    Raises:
        UserError: The model does not exist, or the engine cannot be used with Ray.
    """

    def __init__(self, name: str, loading: Loading, engine: Engine, settings: Ray) -> None:
        kind = engine_name(name, engine)
        check_taken(kind, loading, engine)
        if kind in OWN and OWN[kind].is_server:
            raise UserError("`ray` would have no effect on a server, which runs its own processes: leave it out")
        if kind == TRANSFORMERS and (loading.tensor_parallel or 1) > 1:
            raise UserError("`tensor_parallel` of transformers needs torchrun: leave out `ray`, or use `engine=vllm`")
        _import_ray()  # before any input is read
        self._there = name, loading, engine
        if kind in OWN:  # these engines tokenize like transformers
            here = Loading(dtype=loading.dtype, trust_remote_code=loading.trust_remote_code)
            names = ("cache", "cache_chunk", "cache_protocol") if kind == TRANSFORMERS else ()
            cached = {name: getattr(engine, name) for name in names}
            super().__init__(name, here, Engine(tokenizer=engine.tokenizer, **cached))
            self.info = replace(self.info, max_length=engine.max_model_len or self.info.max_length)
        else:
            super().__init__(name, loading, engine)
        self._kind, self._settings = kind, settings
        self._actors: _Actors | None = None

    def identify(self) -> ScorerInfo | None:
        """`info` with everything that identifies the model; None if only the nodes know it."""
        if self._kind in OWN and (self._kind != TRANSFORMERS or self._loading.dtype == "auto"):
            return None
        return super().identify()

    def load(self) -> Scorer:
        """Starts the actors and returns their scorer.

        Raises:
            UserError: The cluster cannot be reached, or the model cannot be loaded there.
        """
        self._actors = _Actors(self._settings, *self._there)
        sha256 = self._encoder.sha256 if self._loaded is None else self._loaded.info.tokenizer_sha256
        return RayScorer(self._actors, self, tokenizer_sha256=sha256, batch_tokens=self._there[1].batch_tokens)

    def close(self) -> None:
        """Ends the actors."""
        if self._actors is not None:
            self._actors.close()
