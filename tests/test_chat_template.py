"""The one renderer of chat templates: it writes what transformers writes, and no template runs without bound."""

import time

import jinja2
import pytest

from longlens.bench.engine import PromptLimit
from longlens.bench.prompts import PromptBuilder, PromptSettings
from longlens.chat_template import SECONDS, render, template_tokens
from longlens.data.conversation import ChatTemplate
from longlens.errors import UserError
from longlens.models.generate import TransformersGenerator
from tests.bench.fakes import Toy
from tests.bench.test_prompts import samples
from tests.data import test_chat as chat
from tests.tiny import byte_tokenizer, tiny_model

TALK = [
    {"role": "system", "content": "Be\tbrief <b>."},
    {"role": "user", "content": "q ✓ " * 50},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nan answer", "reasoning": "hm", "tool_calls": None},
    {"role": "user", "content": "and?"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": None, "b": [1, 2.5, True]}}}]
TEMPLATES = {
    name: value for name, value in vars(chat).items() if name.isupper() and isinstance(value, str) and "{%" in value
} | {
    "TOOLS": "{% for t in tools or [] %}{{ t | tojson(indent=2) }}{% endfor %}{{ dict(a=1) | tojson }}",
    "LOOPS": "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{% if loop.last %}"
    "{{ m | items | map('first') | join(',') }}{% endif %}{{ loop.previtem.role if loop.previtem }}{% break %}"
    "{% endfor %}",
    "MACROS": "{% macro turn(m, n=2) -%}{{ caller(m) if caller }}"
    "{{ '-' * n ~ m.role | upper ~ '%s:%5.1f' % ('a', 1.2) }}"
    "{%- endmacro %}{% for m in messages %}{{ turn(m) }}{% call(x) turn(m) %}{{ x.content | trim | indent(4) }}"
    "{% endcall %}{% endfor %}{{ '{} {:>8}'.format(1, 'a') }}",
    "NAMESPACE": "{% set ns = namespace(n=0, text='') %}{% for m in messages[::-1] %}"
    "{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}{{ x is defined }}{{ enable_thinking }}"
    "{% set text = messages[-2].content.split('</think>')[-1].replace('q', 'Q') %}"
    "{% set block %}{{ bos_token }}{% endset %}{{ block | default('none') }}{{ text }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_texts_and_tokens_are_those_of_transformers(name, prompt):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    given = {"tools": TOOLS, "add_generation_prompt": prompt}
    for talk in (TALK, TALK[1:]):
        try:
            expected = tokenizer.apply_chat_template(talk, tokenize=False, enable_thinking=False, **given)
        except (jinja2.TemplateError, TypeError) as error:
            with pytest.raises(UserError, match=str(error)[:20]):
                render(tokenizer, talk, arguments={"enable_thinking": False}, **given)
            continue
        assert render(tokenizer, talk, arguments={"enable_thinking": False}, **given).text == expected
        ids = tokenizer.apply_chat_template(talk, enable_thinking=False, **given)["input_ids"]
        assert template_tokens(tokenizer, talk, arguments={"enable_thinking": False}, **given) == ids


HOSTILE = {
    "raises": ("{{ raise_exception('bad') }}", "bad"),
    "syntax": ("{% for", "unexpected 'end of template'"),
    "escape": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "missing": ("{{ nothing.x }}", "undefined"),
    "type": ("{{ 'a' + 1 }}", "concatenate"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "import": ("{% include 'x' %}", "no loader"),
    "overflow": ("{{ 10.0 ** 400 }}", "out of range"),
    "recursion": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    "branches": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "recursion|more than 1,048,576 steps",
    ),
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "more than 1,048,576 steps",
    ),
    "output": ("{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "writes more than"),
    "set": ("{% set x %}{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}{% endset %}", "a value of more than"),
    "doubling": (
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "a value of more than",
    ),
    "joining": (
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "a value of more than",
    ),
    "squaring": (
        "{% set n = namespace(x=2) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "a value of more than",
    ),
    "huge format": ("{{ '%1000000000d' % 1 }}", "width"),
    "huge format method": ("{{ '{:1000000000}'.format(1) }}", "width"),
    "given width": ("{{ '{:{}}'.format(1, 1000000000) }}", "a value of more than"),
    **{
        f"value {text}": (f"{{{{ {text} }}}}", "a value of more than")
        for text in (
            "'a' * 10**9",
            "'a'.center(10**9)",
            "'a' | center(1000000000)",
            "10 ** (10 ** 10)",
            "('a\n' * 100000) | indent(10000)",
            "('a' * 100000).replace('a', 'b' * 100000)",
            "('a' * 100000) | replace('a', 'b' * 100000)",
            "('a' * 100000).join('b' * 100000)",
            "['a'] | tojson(indent=1000000000)",
            "range(99999) | map('center', 100000000) | list",
        )
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_fails_or_runs_away_is_one_line(name):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, message = HOSTILE[name]
    before = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        render(tokenizer, [{"role": "user", "content": "q"}])
    assert time.monotonic() - before < SECONDS + 10
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_long_messages_may_be_written_and_looped_over():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for w in messages[0].content.split(' ') %}{{ w }} {% endfor %}"
    long = "word " * 600_000
    assert render(tokenizer, [{"role": "user", "content": long}]).text == long + " "


@pytest.mark.parametrize("name", ["raises", "loops", "value 'a' * 10**9"])
def test_all_that_write_conversations_go_by_it(name):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, message = HOSTILE[name]
    builder = PromptBuilder(PromptSettings(template="chat"), PromptLimit(tokenizer, 4096))
    generator = TransformersGenerator(tiny_model("llama"), tokenizer, name="tiny", identity_sha256="", max_new_tokens=1)
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for writes in (
        lambda: builder.build(Toy(words=3), samples(Toy(words=3))[0]),
        lambda: generator.generate(["q"]),
        lambda: ChatTemplate(tokenizer).write(talk, [1], tools=None, turns="together"),
        lambda: template_tokens(tokenizer, talk),
    ):
        with pytest.raises(UserError, match=message):
            writes()
