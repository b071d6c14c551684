"""The adapter of lm-evaluation-harness: what it hands on and when, and the private names that it relies on."""

from __future__ import annotations

import inspect
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

import pytest
import torch

from longlens.bench.engine import EngineSettings, ModelAnswer, ModelRequest, describe, load_prompt_limit, prompt_tokens
from longlens.bench.lm_eval import backends, engine
from longlens.bench.lm_eval.backends import open_engine
from longlens.errors import UserError
from longlens.models import resolve
from longlens.models.forward import BATCH_TOKENS
from longlens.rope import EABF, DynamicNTK, YaRN, extend
from tests.bench.conftest import saved
from tests.bench.fakes import engine_settings
from tests.families import family_model
from tests.tiny import OWN_GENERATION, byte_tokenizer, tiny_model

TEXT = "The keeper of the mill counts the lamps"
NEIGHBORS = ["llama", "llama-dynamic-ntk", "phi3-longrope", "gemma3", "any-rwkv", "any-jamba", "any-qwen3_next"]


def opened(name, **options):
    settings = engine_settings(model=name, **options)
    return open_engine(settings, load_prompt_limit(settings))


@pytest.fixture(scope="module")
def made(model):
    return opened(model, batch_size=2)


def answers(made, requests) -> list[ModelAnswer]:
    found: list[ModelAnswer] = []
    made.answer(requests, found.append)
    return sorted(found)


def greedy(prompt, tokens):
    """What transformers' own generate writes, one prompt at a time."""
    tokenizer, model = byte_tokenizer(), tiny_model("llama")
    ids = torch.tensor([prompt_tokens(tokenizer, prompt)])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_pinned_version_has_the_names_that_are_used():
    assert metadata.version("lm_eval") == "0.4.13"
    names = {"_detect_batch_size", "_loglikelihood_tokens", "_encode_pair", "set_cache_hook", "generate_until"}
    assert all(hasattr(backends.HFLM, name) for name in names)
    assert list(inspect.signature(backends.HFLM._loglikelihood_tokens).parameters)[1:] == [
        "requests",
        "disable_tqdm",
        "override_bs",
    ]
    assert engine.api_models.LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER == engine.NO_ANSWER


def test_answers_are_those_of_greedy_generation(made):
    prompts = [TEXT, TEXT + " and waits", "On day 7"]
    found = answers(made, [ModelRequest(f"k{n}", prompt, None, 6) for n, prompt in enumerate(prompts)])
    assert [answer.text for answer in found] == [greedy(prompt, 6) for prompt in prompts]
    assert [answer.is_truncated for answer in found] == [True] * 3


def test_an_answer_ends_at_its_stop_and_is_not_truncated_then(made):
    whole = greedy(TEXT, 6)
    stop = next(c for c in whole[1:] if c not in whole[:1] and c.isprintable())
    (found,) = answers(made, [ModelRequest("k", TEXT, None, 6, (stop,))])
    assert found.text == whole.partition(stop)[0]
    assert found.is_truncated is False


def test_requests_of_one_prompt_are_all_answered(made):
    found = answers(made, [ModelRequest(f"k{n}", TEXT, None, 4) for n in range(3)])
    assert len(found) == 3
    assert len({answer.text for answer in found}) == 1


def test_an_answer_is_handed_on_before_the_next_batch_is_asked(made, monkeypatch):
    events = []
    generate = made.lm.forward.generate
    monkeypatch.setattr(
        made.lm.forward, "generate", lambda *args, **options: events.append("asked") or generate(*args, **options)
    )
    requests = [ModelRequest(f"k{n}", TEXT + "." * n, None, 2) for n in range(4)]
    made.answer(requests, lambda answer: events.append(answer.key))
    assert events == ["asked", "k3", "k2", "asked", "k1", "k0"]


def naive(prompt, continuation):
    tokenizer, model = byte_tokenizer(), tiny_model("llama")
    before, whole = prompt_tokens(tokenizer, prompt), prompt_tokens(tokenizer, prompt + continuation)
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0, len(before) - 1 : -1]
    targets = torch.tensor(whole[len(before) :])
    return float(logits.log_softmax(-1).gather(-1, targets[:, None]).sum()), bool((logits.argmax(-1) == targets).all())


CONTINUATIONS = [" at dawn", " at noon, and then rests", "\n"]


def test_continuations_are_those_of_one_pass(made):
    found = answers(made, [ModelRequest(f"k{n}", TEXT, text) for n, text in enumerate(CONTINUATIONS)])
    for answer, text in zip(found, CONTINUATIONS, strict=True):
        logprob, is_greedy = naive(TEXT, text)
        assert answer.logprob == pytest.approx(logprob, abs=0.01)
        assert answer.is_greedy == is_greedy


@pytest.mark.parametrize("bytes_at_once", [0, 2**28], ids=["ours", "harness"])
def test_the_harnesss_own_tasks_have_the_same_continuations_either_way(made, monkeypatch, bytes_at_once):
    monkeypatch.setattr(backends, "FULL_LOGITS_BYTES", bytes_at_once)
    monkeypatch.setattr(made.lm, "exact_pairs", False)
    found: dict = {}
    asked = {str(n): (TEXT, text) for n, text in enumerate(CONTINUATIONS)}
    made.ask("loglikelihood", asked, lambda key, answer, ended: found.update({key: answer}))
    for key, (prompt, text) in asked.items():
        logprob, is_greedy = naive(prompt, text)
        assert found[key] == (pytest.approx(logprob, abs=0.01), is_greedy)


def test_a_prompt_may_end_in_a_line_end(made):
    """As chat templates do; lm-evaluation-harness would move it to the continuation and score it too."""
    (found,) = answers(made, [ModelRequest("k", TEXT + "\n", "at dawn")])
    assert found.logprob == pytest.approx(naive(TEXT + "\n", "at dawn")[0], abs=0.01)


@pytest.mark.parametrize("continuation", [None, " at dawn"])
def test_a_prompt_that_would_be_cut_is_refused_before_anything_is_asked(made, monkeypatch, continuation):
    monkeypatch.setattr(made.lm, "generate_until", lambda *args: pytest.fail("asked"))
    long = ModelRequest("long", "x" * 4100, continuation, 5)
    with pytest.raises(UserError, match=r"long needs 4,1\d\d tokens and .* supports 4,096: use shorter `lengths`"):
        made.answer([ModelRequest("short", TEXT, None, 5), long], lambda answer: pytest.fail("answered"))


def test_settings_of_the_models_folder_are_not_in_force(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(OWN_GENERATION))
    made = opened(str(tmp_path / "m"), batch_size=2)
    found = answers(made, [ModelRequest(f"k{n}", TEXT + "." * n, None, 8) for n in range(2)])
    assert [answer.text for answer in found] == [greedy(TEXT + "." * n, 8) for n in range(2)]
    recorded = made.info["generation"]
    assert recorded["in_force"].items() >= {"do_sample": False, "num_beams": 1, "eos_token_id": [257]}.items()
    assert recorded["ignored"].keys() == OWN_GENERATION.keys()


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("family", NEIGHBORS)
def test_an_answer_depends_on_its_prompt_alone(tmp_path, family, batch_size):
    """On no longer prompt that was asked before, on no neighbor in a batch, and not on how its neighbor begins."""
    made = family_model(family.removeprefix("any-")) if family.startswith("any-") else tiny_model(family)
    made.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    prompts = ["<s>" + TEXT * 2, TEXT * 2, TEXT * 2 + "!", TEXT[:20], "<s>" + TEXT[:17], TEXT[:29]]
    requests = [ModelRequest(f"k{n}", prompt, None, 6) for n, prompt in enumerate(prompts)]
    together = answers(opened(str(tmp_path), max_length=400, batch_size=batch_size), requests)
    assert together == [answers(opened(str(tmp_path), max_length=400), [request])[0] for request in requests]


def test_an_automatic_batch_is_sized_by_tokens(model, monkeypatch):
    """Not by trying out logits of 64 rows of the model's maximum length."""
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 200)
    made, shapes = opened(model, batch_size="auto"), []
    made.lm.model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(tuple((inputs.get("input_ids", args[0] if args else None)).shape)),
        with_kwargs=True,
    )
    found = answers(made, [ModelRequest(f"k{n}", TEXT + "." * n, None, 4) for n in range(6)])
    assert [answer.text for answer in found] == [greedy(TEXT + "." * n, 4) for n in range(6)]
    assert max(rows * length for rows, length in shapes) <= 200
    assert max(rows for rows, _ in shapes) > 2
    made.lm.exact_pairs = False  # as lm-evaluation-harness's own tasks are scored
    monkeypatch.setattr(backends, "FULL_LOGITS_BYTES", 4 * 300 * 150)
    shapes.clear()
    made.ask("loglikelihood", {f"k{n}": (TEXT + "." * n, " at dawn") for n in range(6)}, lambda *taken: None)
    assert max(rows * length for rows, length in shapes) <= 150
    assert max(rows for rows, _ in shapes) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "vlm"}, "no backend 'vlm'; lm-evaluation-harness has"),
        ({"backend": "vllm"}, r"the backend 'vllm' cannot load .*: check the model, `arguments`"),
        ({"arguments": {"nosuch": 1}}, "`arguments` has nosuch: the backend 'hf' accepts logits_cache"),
        ({"batch_size": "many"}, "`batch_size` is 'many'; expected a number of at least 1, or auto"),
        ({"max_length": 0}, "`max_length` is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_run_is_one_line(model, options, message):
    with pytest.raises(UserError, match=message):
        opened(model, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://localhost:1/v1", "expected a server and its model, such as http://localhost:8000/v1#NAME"),
        ("http://localhost:1/v1#m", "a server does not report its tokenizer: pass it as `tokenizer`"),
    ],
)
def test_a_server_has_to_be_named_in_full(name, message):
    with pytest.raises(UserError, match=message):
        opened(name)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
@pytest.mark.parametrize("method", [None, YaRN(factor=2), DynamicNTK(factor=2), EABF(factor=2)], ids=str)
def test_what_is_known_of_a_model_before_it_is_loaded_is_what_it_says_itself(tmp_path, family, method):
    folder = saved(tmp_path / "model", family)
    if method is not None:
        extend(folder, method, tmp_path / "extended")
        folder = str(tmp_path / "extended")
    settings = engine_settings(model=folder, dtype="bfloat16")
    before = describe(settings, load_prompt_limit(settings))
    info = opened(folder, dtype="bfloat16").info
    assert {name: info[name] for name in before} == before
    assert before["weights_sha256"]


SECRET = "sk-sesame-open-0123"


@pytest.mark.parametrize(
    "address", [f"http://user:{SECRET}@h/v1#m", f"https://h/v1?api_key={SECRET}#m", f"http://{SECRET}@h/v1"]
)
def test_an_address_with_a_secret_is_refused_without_saying_it(address):
    with pytest.raises(UserError, match=r"which would be stored.*`api_key_env`") as caught:
        EngineSettings(model=address)
    assert SECRET not in str(caught.value)
    with pytest.raises(UserError, match="is a server, but model files are required") as caught:
        resolve(address)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("concurrent", [1, 4])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"api_key_env": "OPENAI_API_KEY"}, f"Bearer {SECRET}"),
        ({"api_key_env": "OTHER_KEY"}, "Bearer other-key"),
        ({"arguments": {"header": {"Authorization": "Bearer given"}}}, "Bearer given"),
    ],
)
def test_a_key_is_sent_to_the_server_that_it_is_for(server, model, monkeypatch, log, concurrent, options, expected):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OTHER_KEY", "other-key")
    arguments = {"num_concurrent": concurrent, **options.get("arguments", {})}
    options = {"tokenizer": model, "max_length": 512, **options, "arguments": arguments}
    settings = EngineSettings(model=f"{server}#tiny", **options)
    answers(open_engine(settings, load_prompt_limit(settings)), [ModelRequest("k", TEXT, None, 6)])
    assert {sent["authorization"] for sent in Server.sent} == {expected}
    settings.log_unsent_key()
    note = "OPENAI_API_KEY is set and not sent to 127.0.0.1: pass `api_key_env=OPENAI_API_KEY`"
    assert [line[: len(note)] for line in log] == ([note] if expected is None else [])
    assert SECRET not in json.dumps(settings.recorded_arguments())
    hosts = {"https://api.openai.com/v1#m": SECRET, "http://api.openai.com/v1#m": "", "https://openai.com.h/v1#m": ""}
    assert {host: EngineSettings(model=host).api_key for host in hosts} == hosts
    monkeypatch.setenv("LONGLENS_API_KEY", "of-the-named-server")
    named = EngineSettings(model="http://h/v1#m")
    assert named.api_key == "of-the-named-server"
    assert named.redact("no entry of-the-named-server") == "no entry ***"


@pytest.mark.parametrize("concurrent", [1, 4])
def test_a_refusal_that_repeats_the_key_is_not_repeated(server, model, monkeypatch, concurrent):
    monkeypatch.setenv("OTHER_KEY", SECRET)
    for status, message in ((401, "and the key, see `api_key_env`"), (400, "did not answer")):
        Server.status = status
        made = opened(
            f"{server}#tiny",
            tokenizer=model,
            max_length=512,
            api_key_env="OTHER_KEY",
            arguments={"num_concurrent": concurrent, "max_retries": 1},
        )
        with pytest.raises(UserError, match=message) as caught:
            answers(made, [ModelRequest("k", TEXT, None, 6)])
        assert SECRET not in str(caught.value)
        assert SECRET in Server.said


def test_a_key_that_is_not_there_is_said():
    for model, message in (("http://h/v1#m", "NO_SUCH_KEY' is not set in the environment"), ("m", "is for a server")):
        with pytest.raises(UserError, match=message):
            EngineSettings(model=model, api_key_env="NO_SUCH_KEY")


class Server(BaseHTTPRequestHandler):
    """A server of completions that answers with the number of the tokens it was sent."""

    sent: list[dict] = []
    status = 200
    said = ""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.sent.append({"path": self.path, "authorization": self.headers.get("Authorization"), **body})
        if self.status != 200:
            reply = json.dumps({"error": f"wrong key {self.headers.get('Authorization')}"}).encode()
            Server.said = reply.decode()
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
            return
        if "messages" in body:
            text = None if "empty" in body["messages"][0]["content"] else "a message"
            choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
        else:
            prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
            choices = [{"index": n, "text": f"{len(ids)} tokens"} for n, ids in enumerate(prompts)]
        reply = json.dumps({"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.sent, Server.status = [], 200
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}/v1"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("concurrent", [1, 4])
def test_a_server_is_sent_all_tokens_with_bos(server, model, concurrent):
    made = opened(f"{server}#tiny", tokenizer=model, max_length=512, arguments={"num_concurrent": concurrent})
    found = answers(made, [ModelRequest("a", "x" * 500, None, 5), ModelRequest("b", TEXT, None, 5)])
    assert [answer.text for answer in found] == ["501 tokens", f"{len(TEXT) + 1} tokens"]
    request = next(row for row in Server.sent if len(row["prompt"]) == 501 or len(row["prompt"][0]) == 501)
    assert request["path"] == "/v1/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("tiny", 5, 0)
    assert request["repetition_penalty"] == 1.0


def test_a_chat_server_is_sent_messages_and_an_answer_left_out_is_a_truncated_one(server, model):
    made = opened(f"{server}#tiny", backend="local-chat-completions", tokenizer=model, max_length=512)
    messages = [json.dumps([{"role": "user", "content": text}]) for text in ("one", "empty")]
    found = answers(made, [ModelRequest(f"k{n}", text, None, 5) for n, text in enumerate(messages)])
    assert [(answer.text, answer.is_truncated) for answer in found] == [("a message", True), ("", True)]
    assert Server.sent[0]["messages"][0]["content"] in ("one", "empty")
    assert Server.sent[0]["path"] == "/v1/chat/completions"


def test_too_little_memory_is_one_line_and_what_was_answered_stays(made, monkeypatch):
    generate = made.lm.model.generate

    def short_of_memory(input_ids, **options):
        if input_ids.shape[1] < len(TEXT) + 3:
            raise torch.OutOfMemoryError("out of memory")
        return generate(input_ids, **options)

    monkeypatch.setattr(made.lm.model, "generate", short_of_memory)
    found: list[ModelAnswer] = []
    with pytest.raises(UserError, match="ran out of memory; finished answers are kept: use a smaller `batch_size`"):
        made.answer([ModelRequest(f"k{n}", TEXT + "." * n, None, 2) for n in range(4)], found.append)
    assert {answer.key for answer in found} == {"k3", "k2"}
