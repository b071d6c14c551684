"""``stdlib:NAME``: text that every Python has."""

import json.decoder
import sys
import typing
from pathlib import Path

import pytest

from longlens.corpus import read_documents
from longlens.errors import UserError


def test_a_module_is_one_document_of_its_source():
    (document,) = read_documents(["stdlib:typing"])
    assert document.id == "stdlib:typing.py"
    with open(typing.__file__, encoding="utf-8") as file:
        assert document.text == file.read()


def test_a_package_is_its_modules_in_order():
    found = {document.id: document.text for document in read_documents(["stdlib:json"])}
    assert list(found) == sorted(found)
    assert {"stdlib:json/__init__.py", "stdlib:json/decoder.py"} <= found.keys()
    (alone,) = read_documents(["stdlib:json.decoder"])
    assert (alone.id, alone.text) == ("stdlib:json/decoder.py", found["stdlib:json/decoder.py"])


def test_a_frozen_module_has_a_source_as_well():
    assert [document.id for document in read_documents(["stdlib:os"])] == ["stdlib:os.py"]


def test_nothing_is_imported():
    assert "this" not in sys.modules
    assert len(list(read_documents(["stdlib:this"]))) == 1
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emal", "'stdlib:emal': Python's standard library has no module 'emal' (nearest: 'email')"),
        ("", "'stdlib:': Python's standard library has no module ''"),
        ("../secrets", "'stdlib:../secrets' is not a module name, such as stdlib:email.mime"),
        ("email./etc", "'stdlib:email./etc' is not a module name, such as stdlib:email.mime"),
        ("numpy", "'stdlib:numpy': Python's standard library has no module 'numpy'"),
        ("sys", "'stdlib:sys' is built in or an extension, and has no Python source: pass another module, such as"),
        ("email.nosuch", "'stdlib:email.nosuch' is no module of it: pass another module, such as stdlib:typing"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(UserError) as refused:
        read_documents([f"stdlib:{name}"])
    assert str(refused.value).startswith(message)


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="needs the sources of Python's standard library, which this Python lacks"):
        read_documents(["stdlib:typing"])
    assert json.decoder


def test_another_version_of_a_module_is_seen_in_a_data_set(monkeypatch):
    from longlens.data import documents

    before = documents.fingerprint("stdlib:shlex")
    assert before != documents.fingerprint("stdlib:textwrap")
    assert before == documents.fingerprint("stdlib:shlex")
    monkeypatch.setattr(documents, "module_files", lambda name: [("stdlib:shlex.py", Path(__file__))])
    assert documents.fingerprint("stdlib:shlex") != before
