"""Scoring with actors of Ray Data: the driver tokenizes, plans and writes, and the actors run the model.

`longlens.score` runs in the driver, with a scorer whose log-probabilities come from the cluster. So rows, ids, checks,
resume and the run directory are those of a run without Ray, and a run that was begun one way continues the other way.
The actors write nothing: their nodes need the model, and neither the documents nor a file system that is shared.

::

    requests -> chunks, held in the driver until they are answered
                  chunk numbers -> map_batches(_Actor, ActorPoolStrategy) -> answers -> results

What flows through Ray Data are the numbers of chunks alone. An actor asks the driver for the chunk of a number, so that
a call that Ray retries on another actor gets the same chunk, and at most `CHUNKS_PER_ACTOR` for each actor exist.
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
"""Batches of the model that a chunk holds: what an actor sorts by length, and what is lost with it."""
CHUNKS_PER_ACTOR = 4
"""Chunks that are under way for each actor: the one that it runs, and those that wait for it."""
MAX_ATTEMPTS = 5
"""How often a chunk is handed out: one whose actors are lost each time, as because memory ran out, ends the run."""
CONNECT_SECONDS = 10.0
"""So long the address of a cluster may take to answer."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Of a local cluster: a chunk has megabytes at most, and those that wait are in the driver."""

_LOGGER = logging.getLogger(__name__)


class Chunk(NamedTuple):
    """Requests as arrays, which take a tenth of what lists of integers take.

    Attributes:
        token_ids: Of all requests, one after the other.
        lengths: Of the requests, in tokens.
        starts: Of the requests: the first token that is scored.
        is_short: Of the requests: whether it is a window of a short context.
    """

    token_ids: np.ndarray[Any, np.dtype[np.int32]]
    lengths: list[int]
    starts: list[int]
    is_short: list[bool]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Chunk:
        """The requests without their keys, which stay in the driver."""
        ids = [np.asarray(request.token_ids, np.int32) for request in requests]
        return cls(
            np.concatenate(ids) if ids else np.zeros(0, np.int32),
            [len(one) for one in ids],
            [request.start for request in requests],
            [request.is_short for request in requests],
        )

    def requests(self) -> Iterator[Request]:
        """The requests, with their numbers for keys."""
        ends = np.cumsum(self.lengths)
        for number, (end, length, start, is_short) in enumerate(
            zip(ends, self.lengths, self.starts, self.is_short, strict=True)
        ):
            yield Request(number, self.token_ids[end - length : end].tolist(), start, is_short)


class _Relay:
    """An actor that carries questions to the driver, which nothing in a cluster can call, and its answers back.

    It keeps nothing but open questions: when it is lost, Ray starts another one and asks them again.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._new: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue()

    async def ask(self, kind: str, number: int) -> Any:
        """The driver's answer, once it is there."""
        question = kind, number
        if question not in self._open:
            self._open[question] = asyncio.get_running_loop().create_future()
            self._new.put_nowait(question)
        return await asyncio.shield(self._open[question])  # a call that Ray cancels leaves it to the others

    async def asked(self) -> tuple[str, int] | None:
        """The next question, each once; None at the end."""
        return await self._new.get()

    async def end(self) -> None:
        """There are no more questions."""
        self._new.put_nowait(None)

    async def answer(self, kind: str, number: int, answer: Any) -> None:
        """What the driver says."""
        question = self._open.pop((kind, number), None)
        if question is not None:
            question.set_result(answer)


def _numbers(_: Any, relay: Any) -> Iterator[dict[str, list[int]]]:
    """Numbers of chunks as the driver makes them; a task that is begun again gives the same ones."""
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
            os.chdir(folder)  # relative names of models are of the driver's folder
        try:
            with library_errors("the model cannot be loaded", "see the logs of Ray"):
                self._scorer = UnloadedModel(name, loading, engine).load()
        except UserError as error:
            # It is the answer to the first chunk: Ray would start a failing actor again and again.
            _LOGGER.exception("loading %s", name)
            self._error = f"{error} (on the node {socket.gethostname()})"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The answer to the chunk whose number is in the batch."""
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
        UserError: The scorer fails, or does not answer each request once with as many numbers as it has tokens.
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
    """The pool of actors, and the driver's side of what they ask.

    Raises:
        UserError: Ray is not installed, its cluster cannot be reached, or it has not what is asked for.
    """

    def __init__(self, settings: Ray, name: str, loading: Loading, engine: Engine) -> None:
        ray, data = _import_ray(), require("ray.data", extra="ray", purpose="`ray`")
        self._ray = ray
        self._is_ours = not ray.is_initialized()  # else the caller of the library has it
        self._lock = threading.Lock()
        self._chunks: dict[int, Chunk] = {}
        self._attempts: dict[int, int] = {}
        self._waiting: set[int] = set()  # numbers that are asked for and do not exist yet
        self._made, self._has_ended = 0, False
        self._thread: threading.Thread | None = None
        self._ending = ExitStack()
        try:
            if self._is_ours:
                self._ending.enter_context(_environment())  # until the end, as the cluster and Ray Data read it later
                self._ending.enter_context(_quiet())
                _connect(ray, settings)
                self._ending.callback(ray.shutdown)
            (least, most), resources = _pool(ray, settings, loading.tensor_parallel or 1)
            self.room = CHUNKS_PER_ACTOR * most
            relay = ray.remote(_Relay).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
            self._relay = relay.remote()
            numbers = data.from_items([0])
            numbers.context.enable_progress_bars = False
            numbers.context.target_max_block_size = 1  # in bytes: each number and each answer continues at once
            answers = numbers.map_batches(_numbers, fn_kwargs={"relay": self._relay}, num_cpus=0).map_batches(
                _Actor,
                fn_constructor_args=(self._relay, name, loading, engine, os.getcwd()),
                batch_size=1,
                compute=data.ActorPoolStrategy(min_size=least, max_size=most),
                **resources,
            )
            # Without read-ahead, which would hold an answer back until the next one is there.
            self._answers = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def put(self, chunk: Chunk) -> int:
        """Hands a chunk to the actors; returns its number."""
        with self._lock:
            number = self._made
            self._chunks[number] = chunk
            self._made += 1
            self._say_what_is_there()
        return number

    def next(self) -> tuple[ScorerInfo, int, np.ndarray[Any, np.dtype[np.float32]]]:
        """The next answer, of any chunk: which model it is of, the chunk's number, and the log-probabilities.

        Raises:
            UserError: The actor could not load the model or score the chunk, or the chunk was lost too often.
        """
        # What Ray raises of the actors' code would be pages; a UserError comes as an answer.
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
        """Ends the actors; leaves the cluster, which ends if it is a local one."""
        if self._thread is not None:
            with self._lock:
                self._has_ended = True
                self._say_what_is_there()
            if not self._chunks:
                next(self._answers, None)  # the end
            del self._answers  # which ends what is still under way
            # The thread must not be inside of Ray when that goes.
            self._relay.end.remote()
            self._thread.join(timeout=10)
            if not self._is_ours:
                self._ray.kill(self._relay)
        self._ending.close()

    def _serve(self) -> None:
        """Answers questions until the end, in a thread of its own."""
        with suppress(self._ray.exceptions.RayError):  # which the actors have too, and `next` says
            while (question := self._ray.get(self._relay.asked.remote())) is not None:
                kind, number = question
                with self._lock:
                    if kind == "chunk":
                        self._relay.answer.remote(kind, number, self._chunk(number))
                    else:
                        self._waiting.add(number)
                        self._say_what_is_there()

    def _chunk(self, number: int) -> Chunk | None:
        """A chunk to be scored; None where that is given up."""
        attempts = self._attempts[number] = self._attempts.get(number, 0) + 1
        if 1 < attempts <= MAX_ATTEMPTS:
            _LOGGER.info("ray: an actor was lost, rescoring its documents")
        return self._chunks.get(number) if attempts <= MAX_ATTEMPTS else None

    def _say_what_is_there(self) -> None:
        for number in [number for number in self._waiting if number < self._made or self._has_ended]:
            self._waiting.remove(number)
            self._relay.answer.remote("is there", number, number < self._made)


_VARIABLES = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of its C++ part, which would say on stderr what it does
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # events of the cluster would go to stdout
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread of Ray Data that is late would start another cluster
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def _environment() -> Iterator[None]:
    """Sets what Ray reads in the environment alone, unless the user has set it, for this block."""
    ours = {name: value for name, value in _VARIABLES.items() if name not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _import_ray() -> Any:
    """The module, which reads some of its settings where it is imported."""
    with _environment():
        return require("ray", extra="ray", purpose="`ray`")


def _connect(ray: Any, settings: Ray) -> None:
    """Starts a local cluster, or joins one.

    Raises:
        UserError: It cannot be reached.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if settings.ray == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    cannot = f"cannot use Ray at {settings.ray!r}"
    step = "start a cluster with ray start, or leave the address out for one on this machine"
    with library_errors(cannot, step), _without_log_level():
        if settings.ray not in ("local", "auto"):  # for which Ray would wait for minutes
            host, _, port = str(settings.ray).removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(settings.ray, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray's log and its warnings off the screen in this block; what is wrong it raises."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("ray", "ray.data"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    added = warnings.filters[0]
    try:
        yield
    finally:
        with suppress(ValueError):  # where somebody else has put other filters in place
            warnings.filters.remove(added)  # type: ignore[attr-defined]  # a list
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def _without_log_level() -> Iterator[None]:
    """Leaves out the line with which Ray's C++ part says its log level; what others write there comes afterwards."""
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
    """Least and most actors, and the resources of one, which has as many GPUs as share a layer.

    Raises:
        UserError: No node of a local cluster has what an actor takes.
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
    """How many actors a node has room for."""
    if not any(wanted.values()):
        return 1
    return min(int(node.get(name, 0.0) / size + 1e-9) for name, size in wanted.items() if size)


class RayScorer:
    """A scorer whose requests are answered by actors, see `longlens.scoring.scorer.Scorer`.

    Args:
        actors: The pool.
        model: Tokenizes the documents in the driver.
        tokenizer_sha256: Hash of its tokenizer.
        batch_tokens: Tokens of a batch of the actors' model; None for their default.

    Attributes:
        info: Of the actors' model.

    Raises:
        UserError: The model cannot be loaded there, or its tokenizer is another one than here.
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
        """Log-probabilities of each request's tokens from its start on, in any order.

        Raises:
            UserError: An actor fails, or has another model than the first one.
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
        """The number of one of these chunks that is answered; answers to another call are kept for it."""
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
    """A model that actors of Ray load: here are its tokenizer and configuration alone.

    Args:
        name: Name or path of the model, on the nodes of the cluster as well as here.
        loading: How it is loaded.
        engine: The inference engine.
        settings: The cluster and its actors.

    Raises:
        UserError: No such model, or an engine that Ray is of no use to.
    """

    def __init__(self, name: str, loading: Loading, engine: Engine, settings: Ray) -> None:
        kind = engine_name(name, engine)
        check_taken(kind, loading, engine)
        if kind in OWN and OWN[kind].is_server:
            raise UserError("`ray` would have no effect on a server, which runs its own processes: leave it out")
        if kind == TRANSFORMERS and (loading.tensor_parallel or 1) > 1:
            raise UserError("`tensor_parallel` of transformers needs torchrun: leave out `ray`, or use `engine=vllm`")
        _import_ray()  # before anything is read
        self._there = name, loading, engine
        if kind in OWN:  # all of which tokenize as transformers does
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
        """`info` with all that tells the model from others; None where that is known on the nodes alone."""
        if self._kind in OWN and (self._kind != TRANSFORMERS or self._loading.dtype == "auto"):
            return None
        return super().identify()

    def load(self) -> Scorer:
        """The actors.

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
