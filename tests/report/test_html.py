import base64
import hashlib
import json
import os
import re
from functools import partial
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.report import write_report
from longlens.report.documents import embedded
from tests.toys import scores, token_scores

UNICODE = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>&/'\"\0🙂\u2028\u202e"))


class Parsed(HTMLParser):
    """Elements with their attributes, and what stands in scripts and styles."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.inside = [], {"script": [], "style": []}
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in self.inside and self.cdata_elem:
            self.inside[self.elements[-1][0]][-1] += data


@pytest.fixture
def write():
    """Writes a report of one model and an evaluator."""
    row = token_scores(["the ", "key"] * 4, [-1.0] * 8, [-1.0, -5.0] * 4)
    return partial(write_report, runs=[scores(row, name="m")], evaluator_scores=scores(row, name="e"))


@given(st.recursive(UNICODE, lambda inner: st.lists(inner) | st.dictionaries(UNICODE, inner), max_leaves=8))
def test_embedded_json_is_ascii_that_no_parser_of_html_takes_for_markup(content):
    text = str(embedded(content))
    assert json.loads(text) == content
    assert text.isascii()
    assert not set(text) & set("<>&\0\r\n")


def test_the_policy_allows_the_script_and_the_style_of_the_file_by_their_hashes_and_nothing_else(tmp_path, write):
    write(tmp_path / "r.html")
    page = Parsed((tmp_path / "r.html").read_text(encoding="utf-8"))
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = {name: sources for name, *sources in map(str.split, policy.split("; "))}

    def hashed(content):
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    kinds = [a.get("type") for tag, a in page.elements if tag == "script"]
    (script,) = (text for kind, text in zip(kinds, page.inside["script"], strict=True) if kind is None)
    assert rules == {
        "default-src": ["'none'"],
        "script-src": [hashed(script)],
        "style-src": [hashed(*page.inside["style"])],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "require-trusted-types-for": ["'script'"],
    }
    assert "Copyright (c) 2022 Leon Sorokin" in script  # of uPlot, which is in it
    tags = [tag for tag, _ in page.elements]
    assert tags.index("meta") < tags.index("script")
    before = [a for tag, a in page.elements[: tags.index("style")] if tag == "meta"]
    assert [list(a) for a in before[:2]] == [["charset"], ["http-equiv", "content"]]


def test_nothing_in_the_page_names_another_file_or_carries_style_or_script_in_an_attribute(tmp_path, write):
    write(tmp_path / "r.html")
    for tag, attributes in Parsed((tmp_path / "r.html").read_text(encoding="utf-8")).elements:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset", "action")
        ], tag
        assert attributes.get("href", "#").startswith(("#", "data:,"))


def test_the_same_scores_give_the_same_bytes(tmp_path, write):
    for name in ("one.html", "two.html"):
        write(tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert b"\r" not in (tmp_path / "one.html").read_bytes()


def test_a_report_is_replaced_and_what_is_none_is_kept(tmp_path, write):
    path = tmp_path / "r.html"
    assert write(str(path)).documents == ["a"]
    first = path.read_bytes()
    assert write(path, num_documents=1).documents == ["a"]
    assert path.read_bytes() == first
    for content in ("mine", "<!doctype html><title>longlens</title>", ""):
        path.write_text(content)
        with pytest.raises(UserError, match=r"r\.html exists and is not a report of longlens: use another file name"):
            write(path)
        assert path.read_text() == content
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder exists and is not a report"):
        write(tmp_path / "folder")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "r.html"]


def test_a_missing_folder_and_an_unknown_document_are_said_and_leave_nothing(tmp_path, write):
    with pytest.raises(UserError, match=r"nosuch is not a folder: create it, then write r\.html there"):
        write(tmp_path / "nosuch" / "r.html")
    with pytest.raises(UserError, match=r"document 'b' was not scored: expected an id such as one of \['a'\]"):
        write(tmp_path / "r.html", documents=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_leaves_the_old_one_and_no_temporary(tmp_path, write, monkeypatch):
    path = tmp_path / "r.html"
    write(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("longlens.files.os.replace", full)
    with pytest.raises(UserError, match=r"cannot write .*r\.html: No space left on device: make room"):
        write(path)
    monkeypatch.setattr("longlens.report.documents.page_document", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(path)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("r.html", before)]


def test_a_name_that_is_not_unicode_is_written_somehow(tmp_path):
    name = os.fsdecode(b"run\xff")  # as a folder of that name has it
    write_report(tmp_path / "r.html", [scores(token_scores(["a", "b"], [-1, -1]), name=name)])
    (title,) = re.findall("<title>(.*)</title>", (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert title.startswith("longlens report: run")
