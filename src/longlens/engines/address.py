"""Addresses of servers, and which key may be sent where. Imports no heavy package."""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple
from urllib.parse import urlsplit

from longlens.errors import UserError, one_line, shown

KEY = "LONGLENS_API_KEY"
"""Environment variable with the key for the server that is named."""
OPENAI_KEY = "OPENAI_API_KEY"
OPENAI_HOSTS = ("api.openai.com",)
"""Hosts that the key in `OPENAI_KEY` is for."""


class Server(NamedTuple):
    """Where a server is, and which of its models is meant."""

    address: str
    name: str

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.address).netloc

    @property
    def root(self) -> str:
        """The address without its path, below which servers have what is not of OpenAI."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        name = urlsplit(self.address).hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    @property
    def is_openai(self) -> bool:
        """Whether the key in `OPENAI_KEY` is for this server."""
        parts = urlsplit(self.address)
        return parts.scheme == "https" and parts.hostname in OPENAI_HOSTS


def read_server(model: str, *, secret: str = f"put the key into the environment as {KEY}") -> Server:
    """The server and the model of ``http://HOST:PORT/v1#NAME``.

    Args:
        model: The name of a model that is a URL.
        secret: What to do with a key, for the message if the URL contains one.

    Raises:
        UserError: It is broken, names no model, or has a user name, a password or a query, which would be stored.
    """
    address, _, name = model.partition("#")
    expected = "expected a server and its model, such as http://localhost:8000/v1#NAME"
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"`model` is a broken address ({one_line(error)}); {expected}") from error
    if "@" in address or "?" in address:
        raise UserError(
            f"`model` has a user name, a password or a query in the address of {shown(parts.hostname or '')}, which "
            f"would be stored: leave them out, and {secret}"
        )
    if not name or not parts.hostname:
        raise UserError(f"{shown(model)}: {expected}")
    return Server(address.rstrip("/"), name)


def find_key(server: Server) -> str:
    """The key that is sent to a server: that in `KEY`, else, to OpenAI's hosts alone, that in `OPENAI_KEY`; or none.

    Raises:
        UserError: It has characters that no key has, such as a line's end.
    """
    return read_key(KEY if os.environ.get(KEY) or not server.is_openai else OPENAI_KEY)


def read_key(name: str) -> str:
    """The key in an environment variable; empty if there is none.

    Raises:
        UserError: It has characters that no key has, such as a line's end; it is not repeated.
    """
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the key in {name} has characters that no key has: set it again, without spaces and quotes")
    return key
