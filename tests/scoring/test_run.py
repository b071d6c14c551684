"""The loop over documents: resuming after any end, sharding, cutting, and what is refused."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import longlens
from longlens import Document, LonglensWarning, UserError, open_scores, score
from longlens.cli import main
from longlens.models import checkpoint
from longlens.models.checkpoint import resolve_device
from longlens.models.tensor_parallel import Team
from longlens.progress import Progress
from longlens.report import summarize_runs
from longlens.runs import parts
from longlens.scoring.scorer import Result, ScorerInfo
from longlens.scoring.scores import ShortContext, short_contexts
from longlens.scoring.transformers import TransformersScorer
from longlens.scoring.truncation import CharacterLimit, TokenLimit, make_limit
from longlens.settings.options import Truncation
from longlens.tokenization import Encoded
from tests.tiny import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
BOS = 256


class FakeScorer:
    """A token a byte; a log-probability is a hash of the tokens before and the token, so any mistake shows.

    Answers come in batches of three requests, the last first. `requests` holds what was asked for: id, K (None is
    long) and number of tokens.
    """

    def __init__(self, *, max_length=4096, bos=BOS, own_prefix=(), seconds=0.0, weights="0"):
        self.info = ScorerInfo(
            name="fake",
            source="a test",
            architecture="Fake",
            weights_sha256=weights,
            tokenizer_sha256="bytes",
            max_length=max_length,
            dtype="float32",
            device="cpu",
            attention="none",
            bos_token_id=bos,
            own_prefix=own_prefix,
        )
        self.requests, self._seconds = [], seconds

    tokenizer = None
    team = Team()

    def identify(self):
        return self.info

    def load(self):
        return self

    def encode(self, document):
        spans = [(i, i + 1) for i, character in enumerate(document.text) for _ in character.encode()]
        ids = np.frombuffer(document.text.encode(), dtype=np.uint8).astype(np.int64)
        return Encoded(ids, np.array(spans, dtype=np.int64).reshape(-1, 2))

    def logprobs(self, requests):
        batch = []
        for request in requests:
            batch.append(request)
            if len(batch) == 3:
                yield from self._answers(batch)
                batch = []
        yield from self._answers(batch)

    def _answers(self, batch):
        for request in reversed(batch):
            time.sleep(self._seconds)
            short = request.key.short
            self.requests.append((request.key.id, short and short.context, len(request.token_ids)))
            yield Result(request.key, hashed_logprobs(request.token_ids)[request.start :])


def hashed_logprobs(token_ids):
    """Entry i hashes the tokens up to and with i."""
    found, value = [], 0
    for token in token_ids:
        value = zlib.crc32(int(token).to_bytes(4, "little"), value)
        found.append(-(value % 100_003) / 10_000)
    return np.array(found, dtype=np.float32)


TEXTS = {"empty-ish": "x", "short": "below K", "emoji": "Straße 🙂 " * 5, "plain": "It was the best of times. " * 6}
RULE = {"context": 16, "stride": 5}


def documents(texts=TEXTS):
    return [Document(id=id, text=text) for id, text in texts.items()]


def rows(scores):
    """What has to be the same, by id."""
    return {
        row.id: (
            row.text,
            row.text_sha256,
            row.total_tokens,
            row.token_ids.tolist(),
            row.char_spans.tolist(),
            row.long_logprobs.tobytes(),
            {short: values.tobytes() for short, values in row.short.items()},
        )
        for row in scores
    }


def expected_rows(**options):
    return rows(score(documents(), FakeScorer(), **(RULE | options)))


def test_the_fake_scorer_follows_the_definition(tmp_path):
    """The loop against the definition, by hand: token i under tokens from j d on, and BOS before both."""
    for row in score(documents(), FakeScorer(), **RULE, out=tmp_path / "run"):
        ids = row.token_ids.tolist()
        np.testing.assert_array_equal(row.long_logprobs, hashed_logprobs([BOS, *ids])[1:])
        for i in range(len(ids)):
            if i < 16:
                assert np.isnan(row.short_logprobs[i])
            else:
                start = (i - 16) // 5 * 5
                assert row.short_logprobs[i] == hashed_logprobs([BOS, *ids[start : i + 1]])[-1]


def test_memory_and_disk_hold_the_same(tmp_path):
    assert rows(score(documents(), FakeScorer(), **RULE, out=tmp_path / "run")) == expected_rows()


def test_without_bos_the_first_token_has_no_score():
    long = score(documents(), FakeScorer(bos=None), **RULE).get("plain").long_logprobs
    assert np.isnan(long[0])
    assert np.isfinite(long[1:]).all()
    one = score([Document(id="a", text="x")], FakeScorer(bos=None), **RULE)[0]
    assert np.isnan(one.long_logprobs).tolist() == [True]


DRIVER = """
import os, signal, sys
import longlens
from longlens.runs import parts
from tests.scoring.test_run import RULE, FakeScorer, documents
out, events_left = sys.argv[1], int(sys.argv[2])
parts.PART_SECONDS = 0.0

def watched(function):
    def watch(*arguments, **options):
        global events_left
        events_left -= 1
        if events_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return watch

# Every step that touches the disk, and every answer, is a point to be killed at.
for owner, name in [
    (parts.pq.ParquetWriter, "write_table"), (parts.pq.ParquetWriter, "close"), (parts.Path, "rename"),
    (parts.Path, "mkdir"), (parts.os, "fsync"), (parts.PartWriter, "add"), (parts.PartWriter, "tick"),
]:
    setattr(owner, name, watched(getattr(owner, name)))
longlens.score(documents(), FakeScorer(), **RULE, out=out)
"""


def drive(folder, events):
    return subprocess.run([sys.executable, "-c", DRIVER, str(folder), str(events)], cwd=ROOT, capture_output=True)


def test_a_run_that_is_killed_again_and_again_gives_the_same_rows(tmp_path):
    expected, killed = expected_rows(), 0
    for events in (14, 30, 3, 45, 8):
        done = drive(tmp_path / "run", events)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        killed += done.returncode != 0
        if (tmp_path / "run" / "manifest.json").exists():
            for id, row in rows(open_scores(tmp_path / "run")).items():
                assert row == expected[id], events
    assert killed == 5
    scorer = FakeScorer()
    assert rows(score(documents(), scorer, **RULE, out=tmp_path / "run")) == expected
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_resumed_run_scores_only_what_is_missing(tmp_path):
    score(documents()[:2], FakeScorer(), **RULE, out=tmp_path / "run")
    scorer = FakeScorer()
    assert rows(score(documents(), scorer, **RULE, out=tmp_path / "run")) == expected_rows()
    assert {id for id, _, _ in scorer.requests} == {"emoji", "plain"}
    again = FakeScorer()
    score(documents(), again, **RULE, out=tmp_path / "run")
    assert again.requests == []


def test_a_lost_part_is_scored_again(tmp_path):
    score(documents(), FakeScorer(), **RULE, out=tmp_path / "run")
    (lost,) = (tmp_path / "run" / "short" / "K16-d5").glob("part-*")
    lost.unlink()
    scorer = FakeScorer()
    assert rows(score(documents(), scorer, **RULE, out=tmp_path / "run")) == expected_rows()
    assert {context for _, context, _ in scorer.requests} == {16}


def test_another_context_later_scores_its_short_side_alone(tmp_path):
    score(documents(), FakeScorer(), **RULE, out=tmp_path / "run")
    scorer = FakeScorer()
    scores = score(documents(), scorer, context=[4, 16], stride=5, out=tmp_path / "run")
    assert {context for _, context, _ in scorer.requests} == {4}
    assert scores.short_contexts == [ShortContext(4, 5), ShortContext(16, 5)]
    assert rows(scores) == expected_rows(context=[4, 16])
    assert scores[0].selected == ShortContext(16, 5)


def test_the_stride_is_a_quarter_of_each_context_unless_it_is_set(tmp_path):
    assert score(documents(), FakeScorer(), context=16).short_contexts == [ShortContext(16, 4)]
    assert score(documents(), FakeScorer(), context=[16, 2]).short_contexts == [ShortContext(2, 1), ShortContext(16, 4)]
    assert score(documents(), FakeScorer(), context=16, stride=5).short_contexts == [ShortContext(16, 5)]
    assert short_contexts(4096) == short_contexts(4096, 1024)  # the paper's
    # What context reach needs, d <= K/2, is what the command gives without --stride.
    text = tmp_path / "a.txt"
    text.write_text("To be, or not to be, that is the question. " * 3)
    model = tmp_path / "model"
    tiny_model("llama").save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    assert main(["score", str(text), "--model", str(model), "--context", "8,16,32", "-o", str(tmp_path / "run")]) == 0
    assert [short.stride for short in open_scores(tmp_path / "run").short_contexts] == [2, 4, 8]
    assert main(["reach", str(tmp_path / "run")]) == 0


def test_short_contexts_after_a_long_only_run(tmp_path):
    score(documents(), FakeScorer(), context=None, out=tmp_path / "run")
    scorer = FakeScorer()
    assert rows(score(documents(), scorer, **RULE, out=tmp_path / "run")) == expected_rows()
    assert None not in {context for _, context, _ in scorer.requests}


def test_one_id_with_another_text_is_an_error(tmp_path):
    score(documents(), FakeScorer(), **RULE, out=tmp_path / "run")
    changed = documents(TEXTS | {"emoji": "another text"})
    with pytest.raises(UserError, match="document 'emoji' was scored before with a different text: use a new id"):
        score(changed, FakeScorer(), **RULE, out=tmp_path / "run")
    assert rows(open_scores(tmp_path / "run")) == expected_rows()


def test_two_documents_of_one_call_with_one_id_are_an_error():
    with pytest.raises(UserError, match="two documents have the id 'a': document ids must be unique"):
        score([Document(id="a", text="x"), Document(id="a", text="x")], FakeScorer(), **RULE)


def test_another_model_is_refused(tmp_path):
    score(documents(), FakeScorer(), **RULE, out=tmp_path / "run")
    with pytest.raises(UserError, match="weights_sha256 is '0' there and '1' here"):
        score(documents(), FakeScorer(weights="1"), **RULE, out=tmp_path / "run")


def test_a_document_that_was_cut_resumes_without_a_request(tmp_path):
    options = RULE | {"max_length": 20, "out": tmp_path / "run"}
    score(documents(), FakeScorer(), **options)
    scorer = FakeScorer()
    scores = score(documents(), scorer, **options)
    assert scorer.requests == []
    assert {row.id: row.truncated for row in scores} == {
        "empty-ish": False,
        "short": False,
        "emoji": True,
        "plain": True,
    }


def test_shards_together_score_everything_once(tmp_path):
    scorers = [FakeScorer(), FakeScorer()]
    for rank, scorer in enumerate(scorers):
        score(documents(), scorer, **RULE, out=tmp_path / "run", shard=(rank, 2))
    first, second = ({id for id, _, _ in scorer.requests} for scorer in scorers)
    assert first == {"empty-ish", "emoji"}
    assert second == {"short", "plain"}
    assert rows(open_scores(tmp_path / "run")) == expected_rows()
    whole = FakeScorer()
    score(documents(), whole, **RULE, out=tmp_path / "run")
    assert whole.requests == []


class Seen(Progress):
    """What a display was told."""

    def __init__(self):
        self.started, self.done, self.notes, self.ended = [], [], [], 0

    def start(self, title, *, unit, total=None, done=0.0):
        self.started.append((title, unit, total, done))

    def update(self, done, *, note=""):
        self.done.append(done)
        self.notes.append(note)

    def finish(self):
        self.ended += 1


def test_progress_counts_characters_by_the_model_input_that_is_done(tmp_path):
    seen, options = Seen(), RULE | {"out": tmp_path / "run"}
    score(documents()[:2], FakeScorer(), **options)
    scorer = FakeScorer()
    score(documents(), scorer, **options, progress=seen)
    total, before = sum(map(len, TEXTS.values())), len(TEXTS["empty-ish"]) + len(TEXTS["short"])
    assert seen.started == [("score fake", "characters", total, before)]
    assert seen.done == sorted(seen.done)
    assert seen.done[-1] == pytest.approx(total)
    assert len(seen.done) == len(scorer.requests)
    tokens = sum(tokens for _, _, tokens in scorer.requests)
    assert re.fullmatch(rf"{tokens:,} tokens of model input, [\d,]+/s", seen.notes[-1])
    assert seen.ended == 1
    again = Seen()  # of an iterator the total is not known, and nothing is left to do
    score(iter(documents()), FakeScorer(), **options, progress=again)
    assert (again.started, again.done, again.ended) == ([], [], 0)
    lazy, cut = Seen(), Truncation(max_length=20)
    score(iter(documents()), FakeScorer(), context=4, limit=cut, progress=lazy)
    assert lazy.started == [("score fake", "characters", None, 0)]
    assert lazy.done[-1] == pytest.approx(sum(min(len(text), 100) for text in TEXTS.values()))


def test_a_model_reads_its_configuration_once(models, monkeypatch):
    counted = Counter()

    def counting(name, function):
        def call(*arguments, **options):
            counted[name] += 1
            return function(*arguments, **options)

        return call

    for name in ("load_config", "plan_quantization"):
        monkeypatch.setattr(checkpoint, name, counting(name, getattr(checkpoint, name)))
    unloaded = longlens.models.UnloadedModel(str(models / "llama"))
    identified = unloaded.identify()
    assert unloaded.load().info.weights_sha256 == identified.weights_sha256
    assert counted == {"load_config": 1, "plan_quantization": 1}
    longlens.load_scorer(str(models / "llama"))
    assert counted == {"load_config": 2, "plan_quantization": 2}


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    assert resolve_device("auto").type in ("cpu", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [resolve_device(device) for device in ("auto", "cpu")] == [torch.device("cuda:3"), torch.device("cpu")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_cannot_be(shard):
    with pytest.raises(UserError, match=r"`shard` is .* a rank below the world size"):
        score(documents(), FakeScorer(), **RULE, shard=shard)


def test_documents_no_longer_than_k_have_no_short_scores(tmp_path):
    scores = score(documents({"a": "x" * 16, "b": "x" * 17}), FakeScorer(), **RULE, out=tmp_path / "run")
    assert np.isnan(scores.get("a").short_logprobs).all()
    assert np.isfinite(scores.get("b").short_logprobs).tolist() == [False] * 16 + [True]


def test_no_documents():
    assert len(score([], FakeScorer(), **RULE)) == 0


def test_a_shard_may_have_no_documents(tmp_path):
    one = documents({"a": "x" * 40})
    assert len(score(one, FakeScorer(), **RULE, out=tmp_path / "run", shard=(1, 2))) == 0
    assert len(score(one, FakeScorer(), **RULE, out=tmp_path / "run", shard=(0, 2))) == 1


def test_documents_are_cut_to_tokens_and_say_so():
    scores = score(documents(), FakeScorer(), context=4, stride=2, max_length=13)
    emoji, short = scores.get("emoji"), scores.get("short")
    assert (emoji.text, len(emoji.token_ids)) == ("Straße 🙂 ", 13)
    assert (emoji.total_tokens, emoji.truncated) == (len(TEXTS["emoji"].encode()), True)
    assert (short.text, short.total_tokens, short.truncated) == ("below K", 7, False)
    assert emoji.text_sha256 == longlens.corpus.text_sha256(emoji.text)


def test_a_document_too_long_to_count_has_no_total():
    row = score([Document(id="a", text="x" * 10_000)], FakeScorer(), context=4, max_length=8)[0]
    assert (len(row.token_ids), row.total_tokens, row.truncated) == (8, None, True)


def test_documents_are_cut_to_characters():
    limit = CharacterLimit(max_characters=9)
    scores = score(documents(), FakeScorer(), context=4, stride=2, limit=limit)
    emoji, short = scores.get("emoji"), scores.get("short")
    assert (emoji.text, emoji.total_tokens, emoji.truncated) == ("Straße 🙂 ", None, True)
    assert (short.total_tokens, short.truncated) == (7, False)
    assert scores.manifest["settings"]["max_length"] == 9
    assert scores.manifest["settings"]["max_length_counted_by"] == "characters"


def test_a_truncation_says_what_documents_are_cut_to():
    by_characters = {"context": 4, "stride": 2, "limit": Truncation(max_characters=9)}
    assert score(documents(), FakeScorer(), **by_characters).get("emoji").text == "Straße 🙂 "
    long = {"context": 4, "stride": 2, "limit": Truncation(max_length=64, extrapolate=True)}
    assert len(score(documents(), FakeScorer(max_length=60), **long).get("emoji").token_ids) == 64
    with pytest.raises(UserError, match="`max_characters` and `max_length`"):
        Truncation(max_length=4, max_characters=9)
    with pytest.raises(
        UserError, match="`max_length` counts tokens: pass the model whose tokenizer counts them as `tr"
    ):
        make_limit(Truncation(max_length=4), None)


def test_two_models_see_the_text_that_one_of_them_cut():
    coarse = TokenLimit(max_tokens=3, counted_by="words", encode=words)
    row = score([Document(id="a", text="one two three four")], FakeScorer(), context=2, limit=coarse)[0]
    assert row.text == "one two three"


def test_a_text_that_another_tokenizer_cut_is_truncated():
    coarse = TokenLimit(max_tokens=3, counted_by="words", encode=words)
    row = score([Document(id="a", text="one two three four")], FakeScorer(), context=2, limit=coarse)[0]
    assert (row.total_tokens, row.truncated) == (None, True)


def words(text):
    starts = [i for i, character in enumerate(text) if i == 0 or character == " "]
    return Encoded(np.arange(len(starts)), np.array(list(zip(starts, [*starts[1:], len(text)], strict=True))))


@pytest.mark.parametrize("max_length", [None, 30])
@pytest.mark.parametrize("out", [None, "run"])
def test_a_text_that_begins_with_the_bos_has_it_once_and_unscored(models, max_length, out, tmp_path):
    scorer = longlens.load_scorer(str(models / "llama"))
    text = "Call me Ishmael. Some years ago, never mind how long"
    two = [Document(id="plain", text=text), Document(id="own", text="<s>" + text)]
    settings = {"context": 8, "stride": 4, "max_length": max_length}
    plain, own = map(score(two, scorer, **settings, out=out and tmp_path / out).get, ("plain", "own"))
    assert own.token_ids.tolist() == [BOS, *plain.token_ids.tolist()]
    for side in ("long_logprobs", "short_logprobs"):
        assert np.isnan(getattr(own, side)[0])
        np.testing.assert_allclose(getattr(own, side)[1:], getattr(plain, side), atol=1e-4)
    # The published package puts its own before it all the same.
    published = score(two, scorer, bos="published", **settings, out=out and tmp_path / "published")
    plain, own = map(published.get, ("plain", "own"))
    assert np.isfinite(own.long_logprobs[0])
    assert np.abs(own.long_logprobs[1:] - plain.long_logprobs).max() > 1e-2


def own_limit(scorer, max_length=None, **options):
    return make_limit(Truncation(max_length=max_length, **options), scorer)


def test_the_maximum_length_is_what_the_model_takes_without_its_bos():
    assert own_limit(FakeScorer(max_length=100)).max_tokens == 99
    assert own_limit(FakeScorer(max_length=100, bos=None)).max_tokens == 100
    assert own_limit(FakeScorer(max_length=None)).max_tokens == 32768
    assert own_limit(FakeScorer(max_length=100_000)).max_tokens == 32768
    assert own_limit(FakeScorer(max_length=100_000), 50_000).max_tokens == 50_000


def test_more_than_the_model_takes_needs_a_word():
    with pytest.raises(
        UserError,
        match=r"`max_length` is 101; fake supports 99 tokens and BOS\. Use a smaller one, or `ext",
    ):
        own_limit(FakeScorer(max_length=100), 101)
    with pytest.warns(LonglensWarning, match=r"fake supports 100 tokens including BOS: documents are truncated to 99"):
        assert own_limit(FakeScorer(max_length=100), 100).max_tokens == 99
    assert own_limit(FakeScorer(max_length=100), 100, extrapolate=True).max_tokens == 100
    with pytest.raises(UserError, match=r"`max_length` is 101; fake supports 100 tokens\. Use a smaller one"):
        own_limit(FakeScorer(max_length=100, bos=None), 101)


def test_a_document_longer_than_the_model_takes_is_refused_unless_extrapolating():
    options = RULE | {"limit": CharacterLimit(max_characters=1000)}
    with pytest.raises(UserError, match=r"document 'emoji' has 66 tokens of fake, which supports 60 \(truncated by c"):
        score(documents(), FakeScorer(max_length=60), **options)
    assert rows(score(documents(), FakeScorer(max_length=60), **options, extrapolate=True)) == expected_rows()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"context": 99},
            "`context=99` is not less than the maximum length, 99 tokens .fake supports 100.: no token would",
        ),
        ({"context": 30, "limit": CharacterLimit(max_characters=30)}, "the maximum length, 30 characters"),
        ({"context": 0}, "`context` is 0; the short context K must be at least 1 token"),
        ({"context": "64"}, "`context` is '64'; expected tokens, such as `context=1024`, or a list of them"),
        ({"context": 4, "stride": 1.5}, "`stride` is 1.5; expected tokens, such as `stride=1024`, or a list of them"),
        ({"context": 4, "stride": 0}, "`stride` is 0; d must be at least 1 token, such as `stride=1024`"),
        ({"context": [4, 8], "stride": [1, 2, 3]}, "3 strides for 2 contexts: pass one `stride`, or one per"),
        ({"context": 4, "bos": "none"}, "`bos` is 'none'; expected 'window' or 'published'"),
        ({"context": 4, "max_length": 1}, "`max_length` is 1; expected at least 2"),
    ],
)
def test_settings_that_cannot_be(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        score(documents(), FakeScorer(max_length=100), **options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The command line with the fake scorer, and with a real one


CLI_DRIVER = """
import signal
import sys
import longlens.evaluation
from longlens.cli import main
from longlens.report import summarize_runs
from longlens.runs import parts
from tests.scoring.test_run import FakeScorer
parts.PART_SECONDS = 0.05
# A test run in the background of a shell starts with SIGINT ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
longlens.evaluation.UnloadedModel = lambda *_, **__: FakeScorer(seconds=0.002)
sys.exit(main(sys.argv[1:]))
"""


def jsonl(path, number=60):
    lines = [{"id": f"{i:03}", "text": f"document {i} is about {i * i}. " * 3} for i in range(number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [Document(**line) for line in lines]


def command(tmp_path, model="fake"):
    where = [str(tmp_path / "documents.jsonl"), "-o", str(tmp_path / "run")]
    return ["score", *where, "--model", str(model), "--context", "16", "--stride", "5"]


def wait_for_a_part(folder, process):
    for _ in range(1200):
        if list(folder.glob("short/*/part-*")) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr("longlens.evaluation.UnloadedModel", lambda *_: FakeScorer())


def test_an_interrupted_run_exits_130_keeps_what_is_finished_and_goes_on(tmp_path, fake, capsys):
    texts = jsonl(tmp_path / "documents.jsonl", 300)
    driver = [sys.executable, "-c", CLI_DRIVER, *command(tmp_path)]
    with subprocess.Popen(driver, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_a_part(tmp_path / "run", process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; finished work is kept, and the same command resumes from there"
    assert "Traceback" not in err
    kept = open_scores(tmp_path / "run")
    assert 0 < len(kept) < 300
    assert main(command(tmp_path)) == 0
    assert rows(open_scores(tmp_path / "run")) == rows(score(texts, FakeScorer(), **RULE))


def test_a_real_model_that_is_killed_gives_the_same_rows(tmp_path, models):
    texts = jsonl(tmp_path / "documents.jsonl", 40)
    model = models / "llama"
    program = "import sys\nfrom longlens.runs import parts\nfrom longlens.cli import main\nparts.PART_SECONDS = 0.0\n"
    driver = [sys.executable, "-c", f"{program}sys.exit(main(sys.argv[1:]))", *command(tmp_path, model)]
    # Of a stride given twice, the last one counts.
    driver += ["--batch-tokens", "100", "--stride", "40"]
    with subprocess.Popen(driver, cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_for_a_part(tmp_path / "run", process)
        process.kill()
    before = open_scores(tmp_path / "run")
    assert 0 < len(before) < 40
    scorer = longlens.load_scorer(str(model))
    resumed = score(texts, scorer, context=16, stride=40, out=tmp_path / "run")
    whole = score(texts, scorer, context=16, stride=40)
    assert sorted(resumed.ids) == sorted(whole.ids)
    for row in resumed:
        expected = whole.get(row.id)
        assert (row.text_sha256, row.token_ids.tolist()) == (expected.text_sha256, expected.token_ids.tolist())
        np.testing.assert_array_equal(row.char_spans, expected.char_spans)
        # Batches of other sizes add up in another order.
        np.testing.assert_allclose(row.long_logprobs, expected.long_logprobs, atol=2e-5)
        np.testing.assert_allclose(row.short_logprobs, expected.short_logprobs, atol=2e-5)


def test_documents_in_batches_equal_documents_one_by_one(models):
    texts = [*documents(), *documents({f"{i}": "x" * i for i in range(1, 40, 3)})]
    together = score(texts, longlens.load_scorer(str(models / "llama")), **RULE)
    alone = score(texts, longlens.load_scorer(str(models / "llama"), batch_tokens=1), **RULE)
    for row in together:
        np.testing.assert_allclose(row.long_logprobs, alone.get(row.id).long_logprobs, atol=1e-5)
        np.testing.assert_allclose(row.short_logprobs, alone.get(row.id).short_logprobs, atol=1e-5)


def error_line(capsys):
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if "rror" in line]
    assert len(errors) == 1, err
    assert (errors[0][:7], out) == ("error: ", "")
    return errors[0]


@pytest.mark.parametrize("method", ["write_table", "close"])
def test_a_disk_that_is_full_while_writing(method, tmp_path, monkeypatch, fake, capsys):
    texts = jsonl(tmp_path / "documents.jsonl")
    monkeypatch.setattr(parts, "ROW_GROUP_TOKENS", 300)
    monkeypatch.setattr(parts, "PART_TOKENS", 600)
    calls, original = [], getattr(pq.ParquetWriter, method)

    def full(self, *arguments, **options):
        calls.append(self)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, method, full)
        assert main(command(tmp_path)) == 2
    message = error_line(capsys)
    assert "No space left on device; what was committed before is kept: make room and run the same command" in message
    kept = {path: path.read_bytes() for path in (tmp_path / "run").glob("**/part-*")}
    assert len(kept) > 2
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert len(open_scores(tmp_path / "run")) > 0
    assert main(command(tmp_path)) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert rows(open_scores(tmp_path / "run")) == rows(score(texts, FakeScorer(), **RULE))


def test_a_disk_that_is_really_full(tmp_path, fake, capsys, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        monkeypatch.setattr(parts, "ROW_GROUP_TOKENS", 2000)
        monkeypatch.setattr(parts, "PART_TOKENS", 4000)
        texts = jsonl(tmp_path / "documents.jsonl", 500)
        arguments = [*command(tmp_path), "-o", str(disk / "run")]
        assert main(arguments) == 2
        assert "No space left on device" in error_line(capsys)
        assert not list(disk.rglob("*.tmp"))
        kept = rows(open_scores(disk / "run"))
        assert kept
        # "make room": the same folder on a larger disk
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True, capture_output=True)
        assert main(arguments) == 0
        resumed = rows(open_scores(disk / "run"))
        assert {id: resumed[id] for id in kept} == kept
        assert resumed == rows(score(texts, FakeScorer(), **RULE))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("stored", [True, False])
def test_answers_of_documents_reach_the_numbers(stored, tmp_path):
    text = "What is it? It is 42, as was said before."
    given = {"a": [(12, 14), (18, 20), (38, 41)], "b": [], "c": None}
    documents = [Document(id=id, text=text, answer_spans=spans) for id, spans in given.items()]
    limit = CharacterLimit(max_characters=40)
    out = tmp_path / "run" if stored else None
    found = score(documents, FakeScorer(), context=4, stride=2, limit=limit, out=out)
    assert [row.answer_spans for row in found] == [[(12, 14), (18, 20), (38, 40)], [], None]
    result = longlens.perplexity(found)
    assert (result.num_answer_tokens, result.num_rest_tokens) == (6, 34 + 40)
    named = {id: spans for id, spans in given.items() if spans is not None}
    assert longlens.perplexity(found, answers=named) == result
    assert longlens.perplexity(found, answers={"c": [(0, 40)]}).num_answer_tokens == 40  # in place of them
    assert summarize_runs([found]).runs[0].distributions.lsd.answers is not None


@pytest.mark.parametrize("spans", [[[3]], 5, ["a", "b"], [(2, 1)], [(0, 99)]], ids=str)
def test_answers_that_are_none_are_refused_before_a_model_runs(spans):
    scorer = FakeScorer()
    with pytest.raises(UserError, match="answer_spans of document 'a' has"):
        score([Document(id="a", text="some text", answer_spans=spans)], scorer, context=4, stride=2)
    assert scorer.requests == []


def test_two_lengths_are_refused():
    with pytest.raises(UserError, match="`max_length` is 30, and `limit` says what documents are truncated to"):
        score([], FakeScorer(), context=4, stride=2, max_length=30, limit=CharacterLimit(max_characters=40))


def test_scores_in_memory_have_the_order_of_the_documents():
    texts = ["short", "much longer than the others " * 20, "of some length " * 5]
    documents = [longlens.Document(id=f"{n}", text=text) for n, text in enumerate(texts)]
    scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer())
    scores = longlens.score(documents, scorer, context=16, stride=8)
    assert [row.text for row in scores] == texts
    assert scores.ids == ["0", "1", "2"]
