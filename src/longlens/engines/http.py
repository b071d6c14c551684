"""HTTP client for servers, with bounded concurrency, retries with back-off, time-outs, and a key sent to no other host.

A request is retried after status 408, 429 and 5xx, a time-out, a dropped connection, and a truncated answer. Any other
rejection is an error immediately. Redirects are not followed, so the key is not sent to another host.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import httpx2
import tenacity

from longlens.engines.address import KEY, Server, find_key
from longlens.errors import LonglensWarning, UserError, library_errors, one_line, shown
from longlens.scoring.scorer import Request

CONCURRENCY = 8
ATTEMPTS = 10
"""Attempts per request. With back-off they span about a minute, in which a server can restart."""
FIRST_ATTEMPTS = 5
"""Attempts per request before scoring starts; only one if nothing listens at the address."""
MOST_TIME_OUTS = 3
"""Time-outs per request after which the server is assumed to hang."""
LONGEST_WAIT = 30.0
LONGEST_RETRY_AFTER = 600.0
CONNECT_SECONDS = 10.0
SECONDS = 120.0
SECONDS_PER_TOKEN = 0.005
"""Added to the time-out for each token in flight, because the server may process the other requests first."""
MOST_BYTES = 2**26
MOST_BYTES_PER_TOKEN = 2**10
"""Maximum size of an answer per token, decompressed. A log-probability entry has about 100 bytes."""
_LOGGER = logging.getLogger(__name__)
_PROXY = "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE in the environment, or unset them"
T = TypeVar("T")


class Refused(Exception):  # not a UserError: engines convert it into a message for the user
    """The server rejected a request, and would reject it again."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}" if said else str(status))
        self.status, self.said = status, said


class _NoAccess(UserError):
    """The server answers but does not serve this request: the key is wrong, or the resource is elsewhere."""


class _Again(Exception):
    """A transient failure: the wait the server requests, whether it is unreachable, and whether it timed out."""

    def __init__(self, said: str, after: float = 0.0, *, is_down: bool = False, is_late: bool = False) -> None:
        super().__init__(said)
        self.after, self.is_down, self.is_late = after, is_down, is_late


class Http:
    """Sends requests to one server from a thread of its own, which ends with this object.

    Args:
        server: The server.
        concurrency: Maximum number of requests in flight.
        attempts: Maximum number of attempts per request.
        seconds: Time-out of a request of few tokens.
        back_off: Upper bound in seconds of the first wait between attempts. It doubles each time.
    """

    def __init__(
        self,
        server: Server,
        *,
        concurrency: int | None = None,
        attempts: int = ATTEMPTS,
        seconds: float = SECONDS,
        back_off: float = 0.5,
    ) -> None:
        self.server, self._concurrency = server, concurrency or CONCURRENCY
        self._attempts, self._seconds, self._back_off = attempts, seconds, back_off
        self._in_flight = 0
        self._key = find_key(server)
        with library_errors(
            f"no connection to {server.host} can be made",
            _PROXY,
        ):
            self._client = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency),
                follow_redirects=False,
                # A proxy on another host cannot reach the servers of this machine.
                mounts={f"all://{urlsplit(server.address).netloc}": None} if server.is_loopback else None,
            )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop, self._client), daemon=True, name="longlens-http").start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def get(self, path: str) -> Any:
        """JSON at a path below the address; ``/path`` is below the root.

        Raises:
            Refused: The server rejects the request, for example because the path does not exist.
            UserError: The server does not answer.
        """
        return self._wait(self._submit(self._send("GET", path, None, 0, is_first=True)))

    def post(self, path: str, body: Any, tokens: int = 0) -> Any:
        """The answer to one request, sent before scoring starts.

        Raises:
            Refused: The server rejects it.
            UserError: The server does not answer.
        """
        return self._wait(self._submit(self._send("POST", path, body, tokens, is_first=True)))

    def ask_if_there(self, method: str, path: str, body: Any = None, *, without: str) -> Any:
        """JSON at a path that only some servers have; None if the path is missing or rejects the request.

        If the server denies access to the path, this is a warning, because scoring is possible without it.

        Args:
            method: ``GET`` or ``POST``.
            path: As in `get`.
            body: Body of the request.
            without: Consequence of a missing answer, for the warning.

        Raises:
            UserError: The server does not answer, or fails.
        """
        try:
            return self._wait(self._submit(self._send(method, path, body, 0, is_first=True)))
        except Refused as error:
            _LOGGER.debug("%s: no %s: %s", self.server.host, path, error)
        except _NoAccess as error:
            warnings.warn(f"{path}: {error}; {without}", LonglensWarning, stacklevel=2)
        return None

    def answers(
        self, requests: Iterable[Request], make: Callable[[Request], tuple[str, Any]]
    ) -> Iterator[tuple[Request, Any]]:
        """Sends requests concurrently and yields each with its JSON answer, in the order of the answers.

        Requests are consumed as others complete. If one fails or the iterator is closed, the others are cancelled.

        Args:
            requests: Any number of requests.
            make: Returns the path and the body of a request.

        Raises:
            Refused: The server rejects a request.
            UserError: The server does not answer after all attempts.
        """
        waiting: dict[Future[Any], Request] = {}
        source = iter(requests)
        is_over = False
        try:
            while True:
                while not is_over and len(waiting) < self._concurrency:
                    request = next(source, None)
                    if request is None:
                        is_over = True
                    else:
                        path, body = make(request)
                        waiting[self._submit(self._send("POST", path, body, len(request.token_ids)))] = request
                if not waiting:
                    return
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda future: future.exception() is not None):  # errors last
                    yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def redact(self, text: str) -> str:
        """Replaces the key in a text from the server."""
        for form in {self._key, quote(self._key, safe="")} if len(self._key) > 3 else ():
            text = text.replace(form, "***")
        return text

    def _submit(self, work: Awaitable[T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)  # type: ignore[arg-type]  # a coroutine

    def _wait(self, future: Future[T]) -> T:
        try:
            return future.result()
        finally:
            future.cancel()

    async def _send(self, method: str, path: str, body: Any, tokens: int, *, is_first: bool = False) -> Any:
        attempts, number, late = FIRST_ATTEMPTS if is_first else self._attempts, 0, 0
        self._in_flight += tokens

        def is_again(error: BaseException) -> bool:
            nonlocal late
            late += isinstance(error, _Again) and error.is_late
            return isinstance(error, _Again) and late < MOST_TIME_OUTS and not (is_first and error.is_down)

        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(is_again),
                stop=tenacity.stop_after_attempt(attempts),
                wait=self._pause,
                before_sleep=self._note,
                reraise=True,
            ):
                with attempt:
                    number = attempt.retry_state.attempt_number
                    return await self._once(method, path, body, MOST_BYTES + MOST_BYTES_PER_TOKEN * tokens)
            raise AssertionError
        except _Again as error:
            proxies = getproxies().keys() & {"all", urlsplit(self.server.address).scheme}
            is_proxied = error.is_down and proxies and not self.server.is_loopback
            place = "the proxies in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)" if is_proxied else "its log"
            raise UserError(
                f"the server {self.server.host} failed (attempt {number} of {attempts}): {error}: check that it runs, "
                f"and {place}, then run the same command again, which resumes where it stopped"
            ) from error
        finally:
            self._in_flight -= tokens

    async def _once(self, method: str, path: str, body: Any, most_bytes: int) -> Any:
        base = self.server.root if path.startswith("/") else self.server.address
        seconds = self._seconds + SECONDS_PER_TOKEN * self._in_flight
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, f"{base}/{path.lstrip('/')}", json=body) as response,
            ):
                content = await self._read(response, most_bytes)
        except TimeoutError as error:
            raise _Again(f"no answer within {seconds:.0f} s", is_late=True) from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise UserError(f"`model` is an invalid address: {self.redact(one_line(error))}") from error
        except httpx2.ProxyError as error:
            raise UserError(
                f"the proxy between here and {self.server.host} fails ({self.redact(one_line(error))}): {_PROXY}"
            ) from error
        except httpx2.HTTPError as error:
            is_down = isinstance(error, httpx2.ConnectError)
            raise _Again(f"{type(error).__name__} ({self.redact(one_line(error))})", is_down=is_down) from error
        status = response.status_code
        if status in (408, 429) or (status >= 500 and status != 501):
            raise _Again(f"status {status} ({self._said(content)})", self._retry_after(response))
        if 300 <= status < 400:
            raise _NoAccess(
                f"the server {self.server.host} redirects to {shown(_place(response.headers.get('location', '')))}, "
                "which is not followed, because the key is not sent elsewhere: pass that address"
            )
        if status in (401, 403):
            step = "correct the key in" if self._key else "put its key into"
            raise _NoAccess(f"the server {self.server.host} denies access (status {status}): {step} {KEY}")
        if status == 407:
            raise UserError(f"the proxy between here and {self.server.host} asks for a password (407): {_PROXY}")
        if status >= 400:
            raise Refused(status, self._said(content))
        if response.headers.get("content-type", "").lower().startswith("text/html"):
            raise _NoAccess(
                f"{base}/{path.lstrip('/')} is a web page: pass the address of the server's API, such as "
                "http://localhost:8000/v1#NAME"
            )
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _Again("an answer that is invalid or incomplete JSON") from error

    async def _read(self, response: httpx2.Response, most_bytes: int) -> bytes:
        """Reads and decompresses the body up to a size limit, so that a faulty or hostile server cannot fill memory."""
        parts, size = [], 0
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > most_bytes:
                raise UserError(
                    f"the server {self.server.host} sent an answer of more than {most_bytes:,} bytes: see its log, "
                    "and docs/engines.md for the options that it must be started with"
                )
        return b"".join(parts)

    def _said(self, content: bytes) -> str:
        text = content.decode(errors="replace")
        try:
            found = json.loads(text)
            error = found.get("error", found)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError, RecursionError):
            pass
        return self.redact(one_line(ValueError(text)) if text.strip() else "no message")

    def _retry_after(self, response: httpx2.Response) -> float:
        value = response.headers.get("retry-after", "")
        try:
            seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, OverflowError):
            return 0.0
        if seconds > LONGEST_RETRY_AFTER:
            raise UserError(
                f"the server {self.server.host} asks to wait {seconds:.0f} s (status {response.status_code}): run the "
                "same command again after that, it resumes where it stopped"
            )
        return max(seconds, 0.0)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = None if state.outcome is None else state.outcome.exception()
        jitter = tenacity.wait_random_exponential(multiplier=self._back_off, max=LONGEST_WAIT)(state)
        return (error.after if isinstance(error, _Again) else 0.0) + jitter

    def _note(self, state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        level = logging.INFO if state.attempt_number == 3 else logging.DEBUG
        _LOGGER.log(level, "%s: attempt %d failed, trying again: %s", self.server.host, state.attempt_number, error)


def _place(location: str) -> str:
    """The host of a redirect, or its path if it has no host. The query is dropped, because it may contain a key."""
    try:
        parts = urlsplit(location)
        return parts.hostname or parts.path
    except ValueError:
        return "an invalid address"


def _run(loop: asyncio.AbstractEventLoop, client: httpx2.AsyncClient) -> None:
    """Main function of the thread: runs submitted work until it is stopped, then closes the connections."""
    asyncio.set_event_loop(loop)
    loop.run_forever()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, client.aclose(), return_exceptions=True))
    loop.close()
