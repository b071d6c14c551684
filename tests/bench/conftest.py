from __future__ import annotations

import functools
import logging

import pytest
import transformers

from tests.tasks.fixtures import write
from tests.tiny import byte_tokenizer, tiny_model

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@functools.cache
def saved(folder, family="llama", chat=False):
    tiny_model(family, max_position_embeddings=4096).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    transformers.logging.set_verbosity_error()
    return saved(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("bench") / "tiny-chat", chat=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def log():
    """Lines of the library's log."""
    lines, logger, handler = [], logging.getLogger("longlens.bench"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)
