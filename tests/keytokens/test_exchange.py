import json

import pytest

from longlens.corpus import Document, text_sha256
from longlens.errors import LonglensWarning, UserError
from longlens.keytokens import import_upstream, read_keys, select_key_tokens, write_keys
from longlens.scoring.scores import identity_of
from tests.toys import NAN, scores, token_scores


def run(**settings):
    a = token_scores(["ab", "cd", "e", "f"], [NAN, -1, -1, -1], [NAN, -5, -5, -1], id="a")
    b = token_scores(["ünïcöde"], [NAN], [NAN], id="ö\n")
    return scores(a, b, name="E", **settings)


LINE = {
    "schema_version": 1,
    "id": "a",
    "text_sha256": "0" * 64,
    "evaluator": "E",
    "alpha": 2.0,
    "beta": -2.0,
    "lcl": True,
    "context": 4,
    "stride": 2,
    "bos": "window",
    "dtype": "float32",
    "num_key_tokens": 2,
    "char_runs": [[2, 5], [9, 10]],
}


def test_what_is_written_is_the_documented_line(tmp_path):
    write_keys(tmp_path / "keys.jsonl", select_key_tokens(run()))
    first, second = (tmp_path / "keys.jsonl").read_text(encoding="utf-8").splitlines()
    evaluator = {"evaluator_sha256": identity_of(run()).sha256}
    assert json.loads(first) == LINE | evaluator | {"text_sha256": text_sha256("abcdef"), "char_runs": [[2, 5]]}
    assert json.loads(second)["char_runs"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["keys.jsonl"]


def test_keys_come_back_as_they_were(tmp_path):
    view = select_key_tokens(run())
    write_keys(tmp_path / "keys.jsonl", view)
    keys = read_keys(tmp_path / "keys.jsonl")
    assert keys.settings == view.settings
    assert list(keys.ids) == list(view.ids)
    assert len(keys) == 2
    for read, written in zip(keys, view, strict=True):
        assert (read.id, read.text_sha256, read.num_key_tokens) == (
            written.id,
            written.text_sha256,
            written.num_key_tokens,
        )
        assert read.char_runs.tolist() == written.char_runs.tolist()
        assert read.token_indices is read.num_near_threshold is None
    write_keys(tmp_path / "again.jsonl", keys)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "keys.jsonl").read_bytes()


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "keys.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists: choose another file"):
        write_keys(path, select_key_tokens(run()))
    assert path.read_text() == "precious"
    write_keys(path, select_key_tokens(run()), overwrite=True)
    assert len(read_keys(path)) == 2


def test_a_failure_leaves_nothing_behind(tmp_path):
    class Broken:
        settings = select_key_tokens(run()).settings

        def __len__(self):
            return 1

        def __iter__(self):
            yield select_key_tokens(run())[0]
            raise OSError("disk")

    with pytest.raises(UserError, match=r"cannot write .*keys\.jsonl: disk"):
        write_keys(tmp_path / "keys.jsonl", Broken())
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_what_cannot_be(tmp_path):
    with pytest.raises(UserError, match="no documents"):
        write_keys(tmp_path / "keys.jsonl", select_key_tokens(scores()))
    with pytest.raises(UserError, match="is not a folder"):
        write_keys(tmp_path / "no" / "keys.jsonl", select_key_tokens(run()))


def test_writing_warns_once_of_tokens_near_a_threshold(tmp_path):
    with pytest.warns(LonglensWarning, match="tokens are within 0.1 nats") as warned:
        write_keys(tmp_path / "keys.jsonl", select_key_tokens(run(dtype="bfloat16"), alpha=3.95))
    assert len(warned) == 1
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "is a JSON list, expected an object with the key tokens"),
        ("[" * 100_000, "not JSON"),
        (LINE | {"schema_version": 2}, "schema_version is 2, expected 1"),
        ({k: v for k, v in LINE.items() if k != "beta"}, "field 'beta' is missing"),
        ({k: v for k, v in LINE.items() if k != "char_runs"}, "field 'char_runs' is missing"),
        (LINE | {"id": 3}, "id is 3, expected a string"),
        (LINE | {"text_sha256": "0"}, "text_sha256 is '0', expected 64 hexadecimal digits"),
        (LINE | {"lcl": 1}, "lcl is 1, expected bool or null"),
        (LINE | {"alpha": float("nan")}, "alpha is nan, expected float or null"),
        (LINE | {"num_key_tokens": -1}, "expected an integer or null"),
        (LINE | {"char_runs": 3}, "expected a list"),
        (LINE | {"char_runs": [[1]]}, r"run \[1\] is not \[start, end\] in integers"),
        (LINE | {"char_runs": [[1.0, 2]]}, "in integers"),
        (LINE | {"char_runs": [[False, 2]]}, "in integers"),
        (LINE | {"char_runs": [[-1, 2]]}, r"run \[-1, 2\] is empty, reversed or negative"),
        (LINE | {"char_runs": [[4, 2]]}, "reversed"),
        (LINE | {"char_runs": [[4, 2**70]]}, "expected 0 <= start < end"),
        (LINE | {"char_runs": [[4, 6], [5, 9]]}, r"run \[5, 9\] begins before the run before it ends"),
        (LINE | {"id": "first"}, "id 'first' occurs twice"),
        (LINE | {"alpha": 1.0}, r"alpha is 1.0 and 2.0 before: a key file contains one selection"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "keys.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(LINE | {"id": "first"}) + "\n" + text + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"keys\.jsonl:2'.*{message}"):
        read_keys(path)


def test_files_that_hold_no_keys_are_refused(tmp_path):
    path = tmp_path / "keys.jsonl"
    with pytest.raises(UserError, match="does not exist: write it with longlens keys"):
        read_keys(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_keys(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-16"):
        read_keys(path)


def upstream(folder, *contents):
    for number, content in enumerate(contents):
        (folder / f"slice_{number}.txt").write_text(content, encoding="utf-8")
    return folder


def documents(*texts):
    return [Document(id=f"d{number}", text=text) for number, text in enumerate(texts)]


def test_published_files_belong_to_documents_in_order(tmp_path):
    folder = tmp_path / "Qwen2-72B-Instruct"
    folder.mkdir()
    upstream(folder, "[0, 2];[2, 3];[5, 9]", "", "[4, 4];[0, 0];[1, 2]\n", "not asked for")
    keys = import_upstream(folder, iter(documents("a" * 9, "b", "cccc")))
    assert [key.char_runs.tolist() for key in keys] == [[[0, 3], [5, 9]], [], [[1, 2]]]
    assert keys.get("d1").text_sha256 == text_sha256("b")
    assert keys.settings["evaluator"] == "Qwen2-72B-Instruct"
    assert {value for name, value in keys.settings.items() if name != "evaluator"} == {None}
    write_keys(tmp_path / "keys.jsonl", keys)
    assert read_keys(tmp_path / "keys.jsonl").settings == keys.settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 99]", r"slice_0.txt: run \[0, 99\] ends after the document, which has 10 characters"),
        ("[0, 3];[2, 4]", r"run \[2, 4\] overlaps or precedes"),
        ("[5, 6];[1, 2]", r"run \[1, 2\] overlaps or precedes"),
        ("[4, 2]", r"run \[4, 2\] is reversed"),
        ("[1,2]", "is not a run such as"),
        ("[1, 2];", "'' is not a run"),
        ("[1, 2]\n[3, 4]", "is not a run"),
        ("[tensor(1), tensor(2)]", "is not a run"),
        ("__import__('os').system('true')", "is not a run"),
        ("[" + "9" * 5000 + ", 1]", "is not a run"),
    ],
)
def test_published_files_are_read_strictly(tmp_path, content, message):
    upstream(tmp_path, content)
    with pytest.raises(UserError, match=message):
        import_upstream(tmp_path, documents("0123456789"))


def test_a_missing_published_file_is_named(tmp_path):
    upstream(tmp_path, "[0, 1]")
    with pytest.raises(UserError, match=r"slice_1\.txt is missing, .* document 'd1'"):
        import_upstream(tmp_path, documents("aa", "bb"))
    with pytest.raises(UserError, match="is not a folder"):
        import_upstream(tmp_path / "no", documents("aa"))
    with pytest.raises(UserError, match="two documents have the id 'd0'"):
        import_upstream(tmp_path, documents("aa") * 2)
