"""Servers: the numbers of the same weights in this process, over HTTP, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import shutil
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import longlens
from longlens import Document, LonglensWarning, UserError, load_scorer, score
from longlens.bench.engine import EngineSettings
from longlens.engines.http import Http
from longlens.testing import check_scorer
from tests.engines.fake import Fake, share

DOCUMENTS = [Document(id=f"d{n}", text=f"Document {n}: " + "it was the best of times; " * (n + 2)) for n in range(4)]
WINDOWS = {"context": 16, "stride": 8}
SECRET = "sesame-open-7"


@pytest.fixture(scope="module")
def scorer(models: Path):
    return load_scorer(str(models / "llama"))


@pytest.fixture(scope="module")
def tokenizer(models: Path):
    return str(models / "llama")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Back-off of milliseconds, so that failures take no time."""
    start = Http.__init__
    monkeypatch.setattr(Http, "__init__", lambda self, *a, **k: start(self, *a, **({"back_off": 0.002} | k)))


@pytest.fixture
def serve(scorer):
    running = []

    def start(*arguments, **options):
        running.append(Fake(scorer, *arguments, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def engine_of(fake):
    return "sglang" if fake.kind == "sglang" else None


def load(fake, tokenizer, **options):
    return load_scorer(fake.url, engine=engine_of(fake), tokenizer=tokenizer, **options)


def same(ours, theirs):
    found = {one.id: one for one in ours}  # a folder has them in the order in which they were complete
    assert len(found) == len(ours) == len(theirs)
    for other in theirs:
        one = found[other.id]
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(one.long_logprobs, other.long_logprobs, atol=2e-5)
        np.testing.assert_allclose(one.short_logprobs, other.short_logprobs, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "mode"), [("vllm", ""), ("openai", ""), ("openai", "none of generated"), ("sglang", "")]
)
def test_scores_are_those_of_the_same_weights_here(serve, scorer, tokenizer, kind, mode):
    documents = [*DOCUMENTS, Document(id="one token", text="x"), Document(id="nothing", text="")]
    ours = score(documents, load(serve(kind, mode), tokenizer), **WINDOWS)
    same(ours, score(documents, scorer, **WINDOWS))


@pytest.mark.parametrize("kind", ["vllm", "openai", "sglang"])
def test_a_server_keeps_the_contract(serve, tokenizer, kind):
    check_scorer(load(serve(kind), tokenizer))


def test_what_a_server_is_stands_in_the_manifest_and_where_it_is_does_not(serve, tokenizer, tmp_path):
    fake = serve("vllm", max_model_len=200)
    scorer = load(fake, tokenizer)
    score(DOCUMENTS[:1], scorer, **WINDOWS, out=tmp_path / "run")
    text = (tmp_path / "run" / "manifest.json").read_text()
    model = json.loads(text)["model"]
    assert (model["name"], model["engine"], model["source"]) == ("tiny", "vllm 0.32.0", "server (vllm)")
    probe = model["config"].pop("probe")
    assert len(probe) == 24
    assert model["config"] == {"server": "vllm", "served_model": "tiny", "root": "tiny"}
    assert (model["weights_sha256"], model["max_length"]) == (None, 199)  # one token is generated
    assert str(fake.port) not in text
    assert load(serve("sglang", max_model_len=200), tokenizer).info.dtype == "float32"


def test_the_tokenizer_is_found_by_what_the_server_says(serve, tokenizer):
    assert load_scorer(serve(root=tokenizer).url).info.config["root"] == tokenizer
    with pytest.raises(UserError, match=r"no tokenizer was found under the name of the served model \('tiny'\): pass"):
        load_scorer(serve().url)


@pytest.mark.parametrize(
    ("kind", "mode", "said"),
    [
        ("vllm", "chat-only", r"has no completions \(status 404 at .*, like chat-only servers"),
        ("vllm", "refuses", r"rejects a request \(status 400\): no prompts today"),
        ("vllm", "top-k", "returns only the most likely tokens, and not those of the prompt"),
        ("openai", "top-k", "returns only the most likely tokens, and not those of the prompt"),
        ("vllm", "no logprobs", r"returns no log-probabilities of the prompt \(echo is ignored\)"),
        ("openai", "no logprobs", r"returns no log-probabilities of the prompt \(echo is ignored\)"),
        ("openai", "of a chat", r"returns no log-probabilities of the prompt \(echo is ignored\)"),
        ("openai", "takes text", r"failed \(attempt 5 of 5\): status 500 \(takes no ids\)"),
        ("sglang", "no logprobs", "returns no input_token_logprobs"),
        ("sglang", "ids of others", "returns log-probabilities of .* tokens that are not the"),
        *((kind, "shifted", "the list is shifted") for kind in ("vllm", "openai", "sglang")),
        *((kind, "stale", "log-probabilit") for kind in ("vllm", "openai", "sglang")),
        *((kind, "other tokenizer", "the tokenizer is not that of 'tiny'") for kind in ("vllm", "openai", "sglang")),
        *((kind, mode, mode) for kind in ("vllm", "openai", "sglang") for mode in ("None", "NaN")),
        *((kind, "-Infinity", "minus infinity") for kind in ("vllm", "openai", "sglang")),
    ],
)
def test_what_cannot_be_scored_with_is_refused_before_anything_is(serve, tokenizer, kind, mode, said):
    with pytest.raises(UserError, match=said) as caught:
        load(serve(kind, mode), tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vllm", "openai", "sglang"])
@pytest.mark.parametrize("mode", ["short", "long"])
def test_lists_of_wrong_length_are_refused(serve, tokenizer, kind, mode):
    scorer = load(serve(kind, mode), tokenizer)  # the probe is shorter
    with pytest.raises(UserError, match=r"log-probabilities|prompt_logprobs"):
        score(DOCUMENTS, scorer, **WINDOWS)


def test_another_model_or_none_is_refused(serve, tokenizer):
    fake = serve()
    with pytest.raises(UserError, match=r"has no model 'other': it has \['another', 'tiny'\]; put one of them after"):
        load_scorer(fake.url.replace("#tiny", "#other"), tokenizer=tokenizer)
    with pytest.raises(UserError, match="expected a server and its model, such as http://localhost:8000/v1#NAME"):
        load_scorer(fake.url.partition("#")[0], tokenizer=tokenizer)
    fake.stop()
    with pytest.raises(UserError, match=r"failed \(attempt 1 of 5\): ConnectError .*: check that it runs"):
        load_scorer(fake.url, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["vllm", "openai", "sglang"])
def test_another_tokenizer_than_the_server_s_is_refused(serve, models, tmp_path, kind):
    shutil.copytree(models / "llama", tmp_path / "m")
    content = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the tokenizer is not that of 'tiny' on 127"):
        load(serve(kind), str(tmp_path / "m"))


def test_a_document_longer_than_the_server_takes_is_refused_before_it_is_sent(serve, tokenizer):
    fake = serve(max_model_len=100)
    scorer = load(fake, tokenizer)
    before = len(fake.requests)
    with pytest.raises(UserError, match="has 150 tokens, and the engine of 'tiny' supports 99: use a smaller"):
        score([Document(id="a", text="x" * 149)], scorer, context=None, max_length=150, extrapolate=True)
    assert len(fake.requests) == before
    cut = score([Document(id="a", text="x" * 149)], scorer, context=None)
    assert len(cut[0].token_ids) == 98
    with pytest.raises(UserError, match="`max_model_len` is 200, and the server supports 100: remove `max_model_len`"):
        load(fake, tokenizer, max_model_len=200)
    assert load(fake, tokenizer, max_model_len=50).info.max_length == 49


@pytest.mark.parametrize("kind", ["vllm", "openai", "sglang"])
@pytest.mark.parametrize("fault", [408, 429, (429, {"Retry-After": "0"}), 500, 503, "drop", "cut"])
def test_what_passes_is_tried_again(serve, scorer, tokenizer, kind, fault):
    fake = serve(kind)
    ours = load(fake, tokenizer)
    fake.number, fake.fails = 0, lambda number: fault if number % 2 == 0 else None
    same(score(DOCUMENTS[:2], ours, **WINDOWS), score(DOCUMENTS[:2], scorer, **WINDOWS))


def test_retry_after_is_waited_for(serve, tokenizer):
    fake = serve()
    ours = load(fake, tokenizer)
    fake.number, fake.fails = 0, lambda number: (429, {"Retry-After": "1"}) if number == 0 else None
    start = time.monotonic()
    score(DOCUMENTS[:1], ours, context=None)
    assert time.monotonic() - start >= 1
    fake.number, fake.fails = 0, lambda number: (503, {"Retry-After": "7200"}) if number == 0 else None
    with pytest.raises(UserError, match=r"asks to wait 7200 s \(status 503\): run the same command again after that"):
        score(DOCUMENTS[:1], ours, context=None)


def test_a_server_that_hangs_is_a_time_out(serve, tokenizer, monkeypatch):
    fake = serve()
    ours = load(fake, tokenizer)
    ours.http._seconds = 0.1
    fake.number, fake.fails = 0, lambda number: "hang"
    with pytest.raises(UserError, match=r"failed \(attempt 3 of 10\): no answer within \d+ s: check that it runs"):
        score(DOCUMENTS[:1], ours, context=None)


def test_requests_in_flight_are_bounded_and_taken_as_needed(serve, tokenizer):
    fake = serve()
    ours = load(fake, tokenizer, concurrency=3)
    taken = []

    def requests():
        for number in range(40):
            taken.append(number)
            yield longlens.scoring.scorer.Request(number, [1, 2, 3, 4, 5 + number], 1)

    results = ours.logprobs(requests())
    next(results)
    assert len(taken) <= 7
    keys = [result.key for result in results]
    assert sorted(keys) != keys or len(keys) == 39
    assert len(taken) == 40
    assert 1 < fake.most_in_flight <= 3


def test_an_error_and_an_interrupt_leave_nothing_behind(serve, tokenizer):
    fake = serve()
    ours = load(fake, tokenizer, concurrency=4)
    fake.number, fake.fails = 0, lambda number: "hang" if number else None
    request = longlens.scoring.scorer.Request
    results = ours.logprobs(request(number, [1, 2, 3], 1) for number in range(100))
    assert len(next(results).logprobs) == 2
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 2
    fake.number, fake.fails = 0, lambda number: "hang" if number else 400
    start = time.monotonic()
    with pytest.raises(UserError, match=r"rejects a request \(status 400\): failed"):
        list(ours.logprobs(request(number, [1, 2, 3], 1) for number in range(100)))
    assert time.monotonic() - start < 2
    fake.fails = lambda number: None
    assert len(list(ours.logprobs(request(number, [1, 2, 3], 1) for number in range(9)))) == 9


def test_a_server_that_dies_and_a_run_that_goes_on(serve, scorer, tokenizer, tmp_path):
    whole = score(DOCUMENTS, scorer, **WINDOWS)
    fake = serve()
    ours = load(fake, tokenizer, concurrency=1)
    ours.http._attempts = 2
    fake.number, fake.fails = 0, lambda number: "drop" if number > 25 else None
    with pytest.raises(UserError, match=r"failed \(attempt 2 of 2\): RemoteProtocolError .* resumes where it stopped"):
        score(DOCUMENTS, ours, **WINDOWS, out=tmp_path / "run")
    fake.stop()
    stored = longlens.open_scores(tmp_path / "run")
    assert 0 < len(stored) < len(DOCUMENTS)
    again = serve()  # on another port
    before = load(again, tokenizer)
    again.number = 0
    same(score(DOCUMENTS, before, **WINDOWS, out=tmp_path / "run"), whole)
    needed = sum(1 + max(0, -(-(len(s.token_ids) - 16) // 8)) for s in whole)
    assert 0 < again.number < needed
    for other, said in (
        (serve(name="tiny2"), "'tiny' there and 'tiny2' here"),
        (serve("sglang"), "config.server is 'vllm' there and 'sglang' here"),
        (serve(root="/models/other"), "config.root is 'tiny' there and '/models/other' here"),
    ):
        with pytest.raises(UserError, match=said):
            score(DOCUMENTS, load(other, tokenizer), **WINDOWS, out=tmp_path / "run")


def test_other_weights_of_the_same_name_are_another_model(serve, models, tokenizer, tmp_path):
    here, there = serve(), Fake(load_scorer(str(models / "other")))
    scorer = load(here, tokenizer)
    score(DOCUMENTS[:1], scorer, **WINDOWS, out=tmp_path / "run")
    with there, pytest.raises(UserError, match=r"config.probe is \[-\d.* there and \[-\d.* here"):
        score(DOCUMENTS[:2], load(there, tokenizer), **WINDOWS, out=tmp_path / "run")
    again = load(here, tokenizer)
    noise = np.random.default_rng(0).normal(0, 0.05, 24)
    config = dict(again.info.config) | {"probe": (np.array(again.info.config["probe"]) + noise).round(3).tolist()}
    again.info = dataclasses.replace(again.info, config=config)
    assert again.info.identity.sha256 == scorer.info.identity.sha256
    assert len(score(DOCUMENTS[:2], again, **WINDOWS, out=tmp_path / "run")) == 2


def test_a_soak_of_2000_requests_of_which_a_fifth_fails(serve, scorer, tokenizer, tmp_path):
    documents = [Document(id=f"{n}", text=f"{n % 20:02} of many things to say. " * 2) for n in range(520)]
    settings = {"context": 10, "stride": 14}
    whole = score(documents, scorer, **settings)
    fake = serve(fails=lambda number: None)
    ours = load(fake, tokenizer)
    fake.number, fake.fails = 0, share(0.2, [429, 500, 503, "drop", "cut"])
    same(score(documents, ours, **settings, out=tmp_path / "run"), whole)
    assert fake.number > 2000 * 1.2


def test_a_key_is_sent_and_written_nowhere(serve, tokenizer, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("LONGLENS_API_KEY", SECRET)
    fake = serve(key=SECRET)
    ours = load(fake, tokenizer)
    fake.number, fake.fails = 0, lambda number: 500 if number % 3 == 0 else None
    score(DOCUMENTS, ours, **WINDOWS, out=tmp_path / "run")
    assert set(fake.keys) == {f"Bearer {SECRET}"}
    fake.fails = lambda number: 500
    with pytest.raises(UserError, match=r"failed, Bearer \*\*\*") as caught:
        score([Document(id="x", text="more")], ours, context=None, out=tmp_path / "more")
    said = [str(caught.value)]
    fake.fails, fake.mode = lambda number: None, "refuses"
    with pytest.raises(UserError, match=r"no prompts today \(Bearer \*\*\*\)") as caught:
        load(fake, tokenizer)
    said.append(str(caught.value))
    monkeypatch.setenv("LONGLENS_API_KEY", "wrong-" + SECRET)
    with pytest.raises(UserError, match=r"denies access \(status 401\): correct the key in LONGLENS_API") as caught:
        load(fake, tokenizer)
    said.append(str(caught.value))
    monkeypatch.delenv("LONGLENS_API_KEY")
    with pytest.raises(UserError, match="put its key into LONGLENS_API_KEY"):
        load(fake, tokenizer)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in caplog.text + "".join(said)


def test_a_key_goes_to_the_host_that_it_is_for(serve, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    fake, other = serve(), serve()
    load(fake, tokenizer)
    assert set(fake.keys) == {""}
    monkeypatch.setenv("LONGLENS_API_KEY", "another-" + SECRET)
    fake.location = other.url
    with pytest.raises(UserError, match=r"redirects to '127.0.0.1', which is not followed"):
        load(fake, tokenizer)
    assert not other.requests
    monkeypatch.setenv("LONGLENS_API_KEY", f"{SECRET}\nX-Other: 1")
    with pytest.raises(UserError, match="the key in LONGLENS_API_KEY contains invalid characters") as caught:
        load(fake, tokenizer)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (200, b"<html>Welcome</html>", {"Content-Type": "text/html; charset=utf-8"}, r"/v1/models is a web page: pass"),
        (200, b"[" * 200_000, {}, r"\(attempt 5 of 5\): an answer that is invalid or incomplete JSON"),
        (422, b"[" * 200_000, {}, r"does not list its models \(status 422\)"),
        (
            200,
            gzip.compress(b" " * 2**21),
            {"Content-Encoding": "gzip"},
            "sent an answer of more than 1,048,576 bytes",
        ),
        (307, b"", {"Location": "http://[broken"}, "redirects to 'an invalid address', which is not followed"),
        (308, b"", {"Location": f"/v2/models?key={SECRET}"}, "redirects to '/v2/models', which is not followed"),
        (429, b"", {"Retry-After": "Mon, 01 Jan 0001 00:00:00 -0000"}, r"\(attempt 5 of 5\): status 429"),
    ],
)
def test_what_is_no_answer_is_one_line(serve, tokenizer, monkeypatch, status, body, headers, said):
    monkeypatch.setattr("longlens.engines.http.MOST_BYTES", 2**20)
    fake = serve()
    fake.raw = (status, body, headers)
    with pytest.raises(UserError, match=said) as caught:
        load(fake, tokenizer)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


HTML = {"Content-Type": "text/html"}
ASKED = {"vllm": ["/tokenize", "/version"], "sglang": ["/tokenize", "/server_info", "/model_info"]}


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b"", {}), r"denies access \(status 401\): put its key into LONGLENS_API_KEY"),
        ((403, b"", {}), r"denies access \(status 403\): put its key into LONGLENS_API_KEY"),
        ((302, b"", {"Location": "/login"}), "redirects to '/login', which is not followed"),
        ((200, b"<html>", HTML), "is a web page: pass the address of the server's API"),
    ],
)
def test_what_a_server_keeps_to_itself_is_a_warning(serve, tokenizer, kind, answer, said):
    fake = serve(kind)
    fake.at = dict.fromkeys(ASKED[kind], answer)
    with pytest.warns(LonglensWarning, match=said) as caught:
        load(fake, tokenizer)
    texts = [str(one.message) for one in caught]
    assert [text.partition(":")[0] for text in texts] == [*ASKED[kind][1:], "/tokenize"]
    assert texts[-1].endswith("; the tokenizer is not compared with the server's")
    assert not any("\n" in text for text in texts)


@pytest.mark.parametrize("status", [404, 422, 501])
def test_what_a_server_does_not_have_is_no_warning(serve, tokenizer, status):
    fake = serve()
    fake.at = dict.fromkeys(ASKED["vllm"], (status, b"{}", {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(fake, tokenizer)
    assert len(fake.requests) == len({path for path, _ in fake.requests}) + fake.number - 1  # each asked once


@pytest.mark.parametrize("path", ASKED["vllm"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, b"", {}), r"failed \(attempt 5 of 5\): status 503 \(no message\): check that it runs"),
        ((407, b"", {}), r"the proxy between here and 127.* asks for a password \(407\): check HTTP_PROXY"),
        ("hang", r"failed \(attempt 3 of 5\): no answer within \d s: check that it runs"),
    ],
)
def test_a_failure_is_not_taken_for_not_there(serve, tokenizer, monkeypatch, path, answer, said):
    start = Http.__init__
    monkeypatch.setattr(Http, "__init__", lambda self, *a, **k: start(self, *a, **({"seconds": 0.3} | k)))
    fake = serve()
    fake.at = {path: answer}
    with pytest.raises(UserError, match=said):
        load(fake, tokenizer)


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1#tiny", "localhost:8000", "host.example/v1#m", "gpu-7#org/m"])
def test_a_server_without_its_scheme_is_hinted_at(address):
    with pytest.raises(UserError, match=f"no such model: '{address}' .*: for a server pass 'http://{address}'$"):
        load_scorer(f"user:{SECRET}@{address}")


@pytest.mark.parametrize("key", [f"{SECRET}\nX-Other: 1", f"{SECRET}\x7f", f"{SECRET}-ü", f"{SECRET} x"])
@pytest.mark.parametrize("name", ["LONGLENS_API_KEY", "OTHER_KEY"])
def test_a_key_that_cannot_be_one_is_not_repeated(monkeypatch, name, key):
    monkeypatch.setenv(name, key)
    url = "http://127.0.0.1:9/v1#m"
    connect = partial(EngineSettings, model=url, api_key_env=name) if name == "OTHER_KEY" else partial(load_scorer, url)
    with pytest.raises(UserError, match=f"^the key in {name} contains invalid characters: set it again") as caught:
        connect()
    assert SECRET not in str(caught.value)


def test_a_proxy_that_fails_is_named(serve, tokenizer, monkeypatch):
    proxy = serve()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(UserError, match=r"the proxy between here and elsewhere\.invalid fails \(501.*check HTTP_PROXY"):
        load_scorer("https://elsewhere.invalid/v1#none", tokenizer=tokenizer)
    proxy.raw = (407, b"", {})
    with pytest.raises(UserError, match=r"elsewhere\.invalid asks for a password \(407\): check HTTP_PROXY"):
        load_scorer("http://elsewhere.invalid/v1#none", tokenizer=tokenizer)
    proxy.stop()
    with pytest.raises(UserError, match=r"ConnectError .*: check that it runs, and the proxies in the environment"):
        load_scorer("http://elsewhere.invalid/v1#none", tokenizer=tokenizer)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_no_proxy_is_asked_for_a_server_of_this_machine(serve, tokenizer, monkeypatch, host):
    fake, proxy = serve(), serve()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    load_scorer(fake.url.replace("127.0.0.1", host), tokenizer=tokenizer)
    assert fake.requests
    assert not proxy.requests
    with pytest.raises(UserError, match="elsewhere"):
        load_scorer("http://elsewhere.invalid/v1#none", tokenizer=tokenizer)
    assert proxy.requests


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_named(tokenizer, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(UserError, match=r"no connection to elsewhere\.invalid can be made: .*: check HTTP_PROXY"):
        load_scorer("http://elsewhere.invalid/v1#none", tokenizer=tokenizer)


@pytest.mark.parametrize("scheme", ["HTTP", "Https"])
def test_a_scheme_in_capitals_is_one(serve, tokenizer, scheme):
    if scheme == "HTTP":
        load_scorer(serve().url.replace("http", scheme), tokenizer=tokenizer)
    with pytest.raises(UserError, match="has a user name, a password or a query") as caught:
        load_scorer(f"{scheme}://user:{SECRET}@h/v1#m")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", [f"http://user:{SECRET}@h/v1#m", f"http://h/v1?key={SECRET}#m", f"http://h:{SECRET}/v1#m"]
)
def test_what_may_be_a_secret_in_a_url_is_not_repeated(url):
    with pytest.raises(UserError) as caught:
        load_scorer(url)
    assert SECRET not in str(caught.value) or ":sesame" in url


def test_threads_end_with_their_scorer(serve, tokenizer):
    import gc
    import threading

    def count():
        return sum(thread.name == "longlens-http" for thread in threading.enumerate())

    gc.collect()
    time.sleep(0.1)
    before = count()
    ours = load(serve(), tokenizer)
    assert count() == before + 1
    del ours
    gc.collect()
    end = time.monotonic() + 5
    while count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert count() == before
