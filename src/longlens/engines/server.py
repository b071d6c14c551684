"""Base class of scorers of servers. Checks that the server has the model and that its tokenizer is the same."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from longlens.engines.address import Server
from longlens.engines.frame import TOKENIZER_TEXT, Answer, EngineScorer
from longlens.engines.http import Http, Refused
from longlens.errors import UserError, shown, shown_value
from longlens.models.files import load_tokenizer
from longlens.scoring.scorer import Request, ScorerInfo
from longlens.settings.options import Engine, Loading
from longlens.tokenization import TextEncoder

UNKNOWN = "unknown"
_LOGGER = logging.getLogger(__name__)


class ServerScorer(EngineScorer):
    """A scorer over HTTP. Subclasses define the requests and read the log-probabilities from the answers."""

    def __init__(self, tokenizer: Any, info: ScorerInfo, http: Http, *, longest: int | None) -> None:
        super().__init__(TextEncoder(tokenizer), info, longest=longest)
        self.tokenizer, self.http = tokenizer, http
        self.check_tokenizer()

    @abstractmethod
    def request(self, token_ids: Sequence[int], start: int) -> tuple[str, dict[str, Any]]:
        """Path and body of a request for log-probabilities of ``token_ids[start:]``."""

    @abstractmethod
    def read(self, answer: Any, token_ids: Sequence[int], start: int) -> Sequence[Any]:
        """Log-probabilities of ``token_ids[start:]``, unchanged from the answer.

        Raises:
            UserError: The answer does not contain them.
        """

    def _answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        def make(request: Request) -> tuple[str, Any]:
            return self.request([int(token) for token in request.token_ids], request.start)

        with closing(self.http.answers(requests, make)) as answers:  # type: ignore[type-var]  # a generator
            try:
                for request, answer in answers:
                    yield request, self.read(answer, request.token_ids, request.start)
            except Refused as refused:
                raise self.refusal(refused) from refused

    def refusal(self, refused: Refused) -> UserError:
        """The error message about a rejected request."""
        return UserError(
            f"the server {self.http.server.host} rejects a request (status {refused.status}): {refused.said}: see its "
            "log, and docs/engines.md for the options that it must be started with"
        )

    def check_tokenizer(self) -> None:
        """Compares the tokenizer with the server's, if the server has an endpoint for this.

        Raises:
            UserError: The tokenizers differ.
        """
        ours = self._encoder.encode(TOKENIZER_TEXT).token_ids.tolist()
        body = {"model": self.http.server.name, "prompt": TOKENIZER_TEXT, "add_special_tokens": False}
        without = "the tokenizer is not compared with the server's"
        answer = self.http.ask_if_there("POST", "/tokenize", body, without=without)
        theirs = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(theirs, list):
            _LOGGER.info("%s has no /tokenize, so its tokenizer is checked only by its answers", self.http.server.host)
            return
        if theirs != ours:
            raise UserError(
                f"the tokenizer is not that of {shown(self.http.server.name)} on {self.http.server.host}, which "
                f"tokenizes a text into {len(theirs)} other tokens than its {len(ours)}: pass the served model's "
                "`tokenizer`"
            )


def find_model(http: Http) -> dict[str, Any]:
    """The server's entry for the model; empty if the server has no list of models.

    Raises:
        UserError: The server has only other models, or cannot be reached.
    """
    server = http.server
    try:
        answer = http.get("models")
    except Refused as refused:
        if refused.status == 404:
            return {}
        raise UserError(
            f"the server {server.host} does not list its models (status {refused.status}): {refused.said}: check the "
            "address, such as http://localhost:8000/v1#NAME"
        ) from refused
    models = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(models, list):
        raise UserError(f"{server.address} is not an OpenAI-compatible server: expected http://HOST:PORT/v1#NAME")
    found = {str(model.get("id")): model for model in models if isinstance(model, dict)}
    if server.name not in found:
        raise UserError(
            f"the server {server.host} has no model {shown(server.name)}: it has {shown_value(sorted(found))}; put one "
            "of them after the #"
        )
    return dict(found[server.name])


def find_tokenizer(server: Server, root: Any, loading: Loading, engine: Engine) -> Any:
    """The tokenizer that is set, else that of the served name or of the path from which the server loaded the model.

    Raises:
        UserError: No tokenizer is found on this machine or the Hub.
    """
    given: Any = engine.tokenizer
    if given is not None and not isinstance(given, str):
        return given
    if given is not None:
        return load_tokenizer(given, trust_remote_code=loading.trust_remote_code)
    names = {server.name: loading.trust_remote_code}
    if isinstance(root, str):  # a path reported by the server is not a reason to run code that comes with it
        names.setdefault(root, False)
    for name, trust in names.items():
        try:
            tokenizer = load_tokenizer(name, trust_remote_code=trust)
        except UserError as error:
            _LOGGER.debug("no tokenizer %s: %s", shown(name), error)
        else:
            _LOGGER.info("%s: the tokenizer is that of %s", server.name, name)
            return tokenizer
    raise UserError(
        f"no tokenizer was found under the name of the served model ({', '.join(map(shown, names))}): pass the model's "
        "Hub id or directory as `tokenizer`"
    )


def server_info(
    server: Server,
    tokenizer: Any,
    *,
    kind: str,
    version: str,
    root: Any,
    max_length: int | None,
    dtype: str = UNKNOWN,
) -> ScorerInfo:
    """Facts that a run records about a server. The address is not among them, so that the server may move.

    Args:
        server: The server.
        tokenizer: Its tokenizer, of transformers.
        kind: Kind of server, such as ``vllm``.
        version: Version of the server; empty if it reports none.
        root: Path from which the model was loaded, as the server reports it; None if it does not.
        max_length: Maximum number of tokens of a request.
        dtype: Dtype of the weights, if the server reports it.
    """
    encoder = TextEncoder(tokenizer)
    return ScorerInfo(
        name=server.name,
        source=f"server ({kind})",
        architecture=UNKNOWN,
        weights_sha256=None,
        tokenizer_sha256=encoder.sha256,
        max_length=max_length,
        dtype=dtype,
        device=UNKNOWN,
        attention=UNKNOWN,
        bos_token_id=encoder.bos_token_id,
        own_prefix=tuple(encoder.own_prefix),
        config={"server": kind, "served_model": server.name} | ({} if root is None else {"root": str(root)}),
        engine=f"{kind} {version}".strip(),
    )


def longest_request(stated: Any, engine: Engine) -> int | None:
    """Maximum number of tokens of a request: the server's limit or a smaller setting, minus one generated token.

    Raises:
        UserError: The setting is larger than the server's limit.
    """
    limit = stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 1 else None
    given = engine.max_model_len
    if given is not None and limit is not None and given > limit:
        raise UserError(f"`max_model_len` is {given:,}, and the server supports {limit:,}: remove `max_model_len`")
    room = limit if given is None else given
    return None if room is None else room - 1
