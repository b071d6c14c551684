"""vLLM itself (`make test-vllm`): its server on loopback and its engine in the process, on SmolLM2 in float32."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("vllm")

from longlens import UserError, load_scorer, open_scores, rope, score
from longlens.scoring.scorer import Request
from longlens.testing import check_scorer
from tests.engines.smollm2 import CONTEXT, STRIDE, TOKENS, documents, save_folder
from tests.engines.vllm_server import end, server
from tests.tiny import byte_tokenizer, tiny_model

pytestmark = pytest.mark.real

NATS = 1e-3
SETTINGS = {"context": CONTEXT, "stride": STRIDE, "max_length": TOKENS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("smollm2") / "smollm2")


@pytest.fixture(scope="module")
def expected(folder: Path):
    return score(documents(), load_scorer(str(folder), dtype="float32"), **SETTINGS)


@contextmanager
def engine(path: Path, **settings):
    """The engine in this process, whose own processes end with the block."""
    scorer = load_scorer(str(path), engine="vllm", dtype="float32", **settings)
    try:
        yield scorer
    finally:
        scorer._engine.engine_core.shutdown()
        del scorer
        gc.collect()


def apart(found, expected) -> float:
    """Largest difference in nats over documents, long and short contexts."""
    assert list(found.ids) == list(expected.ids)
    differences = []
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        for name in ("long_logprobs", "short_logprobs"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert (np.isnan(mine) == np.isnan(theirs)).all()
            differences.append(np.nanmax(np.abs(mine - theirs), initial=0.0))
    return float(max(differences))


def test_the_engine_in_the_process_gives_the_numbers_of_transformers(folder, expected, tmp_path):
    with engine(folder, max_model_len=2048) as scorer:
        assert scorer.info.engine.startswith("vllm ")
        assert scorer.info.dtype == "float32"
        found = score(documents(), scorer, out=tmp_path / "run", **SETTINGS)
        assert apart(found, expected) < NATS
        check_scorer(scorer)
        with pytest.raises(UserError, match="supports 2,048: use a smaller `max_length`"):
            list(scorer.logprobs([Request(0, [5] * 2049, 1)]))
        # Stopped in the middle, it leaves nothing under way.
        next(iter(scorer.logprobs(Request(i, [5, 6, 7, 8], 1) for i in range(10_000))))
        assert not scorer._engine.has_unfinished_requests()
    with pytest.raises(UserError, match="engine is 'vllm' there"):
        score(documents(), load_scorer(str(folder), dtype="float32"), out=tmp_path / "run", **SETTINGS)


def test_a_document_may_be_as_long_as_the_model(tmp_path):
    model = tiny_model("llama", num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=256)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 256, 256).tolist()
    requests = [Request("long", ids, 1), Request("late", ids, 200), Request("short", ids[:40], 39)]
    by_key = {r.key: r.logprobs for r in load_scorer(str(tmp_path)).logprobs(requests)}
    with engine(tmp_path, batch_tokens=64) as scorer:
        assert scorer.info.max_length == 256
        for result in scorer.logprobs(requests):
            np.testing.assert_allclose(result.logprobs, by_key[result.key], atol=NATS)


def test_an_extended_folder_has_the_same_numbers_or_is_refused(folder, tmp_path):
    long = [documents()[0]]
    settings = {"context": 512, "stride": 512, "max_length": 1000}
    rope.extend(str(folder), rope.YaRN(factor=2), tmp_path / "yarn")
    wanted = score(long, load_scorer(str(tmp_path / "yarn"), dtype="float32"), **settings)
    plain = score(long, load_scorer(str(folder), dtype="float32"), **settings)
    assert apart(wanted, plain) > 0.1  # what the extension changes
    with engine(tmp_path / "yarn", max_model_len=9000) as scorer:
        assert scorer.info.max_length == 16384
        assert apart(score(long, scorer, **settings), wanted) < NATS
    for method, said in (
        (rope.DynamicNTK(factor=2), "depend on the length of each sequence"),
        (rope.EABF(factor=2), "which vLLM does not have"),
    ):
        rope.extend(str(folder), method, tmp_path / method.name)
        with pytest.raises(UserError, match=said):
            load_scorer(str(tmp_path / method.name), engine="vllm", max_model_len=16384)


@pytest.mark.parametrize("chunk", [7, 64])
def test_the_second_model_runner_is_asked_from_the_start_on(chunk):
    """It needs Triton, thus a GPU: here the part of it that scores a prompt, on logits of our own."""
    import torch
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

    from longlens.engines.vllm import VllmScorer

    logits = torch.randn(40, 90, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ids = torch.randint(90, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    scorer = VllmScorer(Mock(), None, None, longest=64, batch_tokens=64, by_start=True)
    for start in (1, 17, 39):
        request = Request("a", ids, start)
        sampling = scorer._sampling(request)
        assert len(sampling.prompt_logprob_token_ids) == len(ids) - 1 - sampling.prompt_logprob_start  # vLLM's own rule
        assert sampling.skip_reading_prefix_cache
        sampling.prompt_logprob_token_ids = np.ascontiguousarray(sampling.prompt_logprob_token_ids, np.int32)
        worker = PromptLogprobsWorker(1, torch.device("cpu"), "raw_logits")
        worker.add_request("a", 0, sampling)
        found = {}
        for first in range(0, len(ids), chunk):
            size = min(chunk, len(ids) - first)
            batch = SimpleNamespace(
                req_ids=["a"],
                idx_mapping_np=np.array([0]),
                num_computed_prefill_tokens_np=np.array([first]),
                num_scheduled_tokens=np.array([size]),
                prefill_len_np=np.array([len(ids)]),
                query_start_loc_np=np.array([0, size]),
            )
            rows = logits[first : first + size]
            found |= worker.compute_prompt_token_id_logprobs(lambda h: h, rows, batch, np.array([len(ids)]))
        output = SimpleNamespace(prompt_token_id_logprobs=found["a"].numpy())
        expected = [float(logits[i - 1, ids[i]]) for i in range(start, len(ids))]
        np.testing.assert_allclose(scorer._values(request, output), expected, rtol=1e-6)


def longlens(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "longlens", *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_server_gives_the_numbers_of_transformers_also_after_it_was_killed(folder, expected, tmp_path):
    text, run, log = tmp_path / "documents", tmp_path / "run", tmp_path / "server.log"
    text.mkdir()
    for number, document in enumerate(documents()):
        (text / f"{number}-{document.id}.txt").write_text(document.text, encoding="utf-8")
    settings = ["--context", CONTEXT, "--stride", STRIDE, "--max-length", TOKENS, "--tokenizer", folder, "-o", run]
    command = ["score", text, *settings, "--model"]
    with server(folder, log) as (address, process):
        scored = longlens(*command, address)
        # It is killed when windows were answered and documents are not all done.
        deadline = time.monotonic() + 300
        while "POST /v1/completions" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(10)
        end(process)
        _, said = scored.communicate(timeout=300)
        assert scored.returncode == 2, said
        assert said.strip().splitlines()[-1].startswith("error") or "127.0.0.1" in said
    with server(folder, log) as (address, _):
        scored = longlens(*command, address)
        _, said = scored.communicate(timeout=600)
        assert scored.returncode == 0, said
    found = open_scores(run)
    differences = []
    for one, other in zip(found, expected, strict=True):
        differences.append(np.nanmax(np.abs(one.long_logprobs - other.long_logprobs)))
        differences.append(np.nanmax(np.abs(one.short_logprobs - other.short_logprobs), initial=0.0))
    assert max(differences) < NATS


def test_a_process_that_ends_with_an_error_ends(folder):
    """The scorer is referred to by the traceback: vLLM's own processes are stopped nevertheless."""
    program = (
        "import sys, longlens\n"
        "if __name__ == '__main__':\n"
        "    scorer = longlens.load_scorer(sys.argv[1], engine='vllm', dtype='float32', max_model_len=256)\n"
        "    raise SystemError('as a bug would')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 1
    assert "as a bug would" in ended.stderr
