"""Parses addresses of servers and finds the key that may be sent to each. Imports no heavy package."""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple
from urllib.parse import urlsplit

from longlens.errors import UserError, one_line, shown

KEY = "LONGLENS_API_KEY"
"""Environment variable with the key for the server of the `model` setting."""
OPENAI_KEY = "OPENAI_API_KEY"
OPENAI_HOSTS = ("api.openai.com",)
"""Hosts to which the key in `OPENAI_KEY` may be sent."""


class Server(NamedTuple):
    """The address of a server and the name of one of its models."""

    address: str
    name: str

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.address).netloc

    @property
    def root(self) -> str:
        """The address without its path. Servers have their endpoints outside of OpenAI's API below it."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        name = urlsplit(self.address).hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    @property
    def is_openai(self) -> bool:
        """Whether the key in `OPENAI_KEY` may be sent to this server."""
        parts = urlsplit(self.address)
        return parts.scheme == "https" and parts.hostname in OPENAI_HOSTS


def read_server(model: str, *, secret: str = f"put the key into the environment as {KEY}") -> Server:
    """Parses ``http://HOST:PORT/v1#NAME`` into a server and a model.

    Args:
        model: A model name that is a URL.
        secret: Next step in the error message about a URL that contains a key.

    Raises:
        UserError: The URL is invalid, contains no model name, or contains a user name, a password or a query, which
            would be stored.
    """
    address, _, name = model.partition("#")
    expected = "expected a server and its model, such as http://localhost:8000/v1#NAME"
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"`model` is an invalid address ({one_line(error)}); {expected}") from error
    if "@" in address or "?" in address:
        raise UserError(
            f"`model` has a user name, a password or a query in the address of {shown(parts.hostname or '')}, which "
            f"would be stored: remove them, and {secret}"
        )
    if not name or not parts.hostname:
        raise UserError(f"{shown(model)}: {expected}")
    return Server(address.rstrip("/"), name)


def find_key(server: Server) -> str:
    """The key to send to a server: the value of `KEY`, else, only for OpenAI's hosts, of `OPENAI_KEY`; or empty.

    Raises:
        UserError: The key contains characters that no key contains, such as a newline.
    """
    return read_key(KEY if os.environ.get(KEY) or not server.is_openai else OPENAI_KEY)


def read_key(name: str) -> str:
    """Reads the key from an environment variable; empty if the variable is not set.

    Raises:
        UserError: The key contains characters that no key contains, such as a newline. The message does not repeat it.
    """
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the key in {name} contains invalid characters: set it again, without spaces and quotes")
    return key
