"""What the engine refuses, what it bounds, and what it leaves as it was."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers

import longlens
from longlens.logprobs import Head, token_logprobs
from longlens.losses import longce_loss
from longlens.models.forward import find_decoder, probe_ids
from longlens.scoring.scorer import Request
from longlens.scoring.transformers import TransformersScorer
from tests.families import family_model
from tests.reference.scoring import naive_logprobs, naive_scores
from tests.tiny import VOCABULARY, byte_tokenizer, tiny_model

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 4


def make_scorer(model, **options):
    return TransformersScorer(model, byte_tokenizer(), name="tiny", weights_sha256="0", **options)


def score(scorer, *texts, **options):
    documents = [longlens.Document(id=str(i), text=text) for i, text in enumerate(texts)]
    return longlens.score(documents, scorer, **{"context": 64, "stride": 32} | options)


class Doubled(torch.nn.Module):
    """A vocabulary head that a table of known transforms does not know."""

    def __init__(self, head):
        super().__init__()
        self.weight, self.bias = head.weight, None

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.weight) ** 3


def test_a_model_whose_logits_are_made_in_an_unknown_way_is_refused():
    model = tiny_model("llama")
    model.lm_head = Doubled(model.lm_head)
    with pytest.raises(
        longlens.UserError, match=r"LlamaForCausalLM computes its logits in an unsupported way: .* off by"
    ):
        make_scorer(model)


def test_a_model_that_is_not_causal_is_refused():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    with pytest.raises(longlens.UserError, match="not causal"):
        make_scorer(model)


def test_a_model_without_a_vocabulary_head_is_refused():
    class Headless(transformers.LlamaForCausalLM):
        def get_output_embeddings(self):
            return None

    with pytest.raises(longlens.UserError, match="has no vocabulary head"):
        make_scorer(Headless(tiny_model("llama").config).eval())


def test_weights_that_overflow_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(longlens.UserError, match="not finite"):
        make_scorer(model)


def test_a_model_that_overflows_on_a_text_is_refused(monkeypatch):
    scorer = make_scorer(tiny_model("llama"))
    monkeypatch.setattr(scorer, "_hidden", lambda ids, keep: torch.full((int(keep.sum()), 32), float("nan")))
    with pytest.raises(longlens.UserError, match="tiny overflows in float32"):
        score(scorer, TEXT)


def test_learned_positions_cannot_be_exceeded():
    scorer = make_scorer(tiny_model("gpt2", max_position_embeddings=100))
    with pytest.raises(longlens.UserError, match="100 learned positions and does not support"):
        score(scorer, TEXT, extrapolate=True, max_length=4000)


def test_logits_exist_for_scored_rows_alone_in_bounded_blocks(monkeypatch):
    rows = []
    original = Head.logits
    monkeypatch.setattr(
        Head, "logits", lambda self, hidden, *to: rows.append(len(hidden)) or original(self, hidden, *to)
    )
    monkeypatch.setattr("longlens.scoring.transformers.BLOCK_BYTES", 16 * VOCABULARY * 4)
    scorer = make_scorer(tiny_model("llama"))
    rows.clear()
    n = len(score(scorer, TEXT)[0].token_ids)
    assert max(rows) <= 16
    assert sum(rows) == n + (n - 64)


def test_blocks_of_any_size_give_the_same_log_probabilities():
    torch.manual_seed(0)
    head = Head(weight=torch.randn(VOCABULARY, 8), scale=0.5, softcap=3.0)
    hidden, targets = torch.randn(37, 8), torch.randint(VOCABULARY, (37,))
    whole = (torch.tanh(hidden @ head.weight.T * 0.5 / 3.0) * 3.0).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    for block_bytes in (1, 5 * VOCABULARY * 4, 2**30):
        ours = token_logprobs(hidden, targets, head, block_bytes=block_bytes)
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=0)
    assert token_logprobs(hidden[:0], targets[:0], head).shape == (0,)


def test_batches_are_bounded_and_sliding_layers_are_fed_in_chunks(monkeypatch):
    monkeypatch.setattr("longlens.scoring.transformers.CHUNK_TOKENS", 32)
    scorer = make_scorer(tiny_model("gemma3"), batch_tokens=300)
    shapes = []
    assert scorer._forward.has_cache
    scorer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    score(scorer, TEXT, *["short text"] * 20)
    assert max(length for _, length in shapes) <= 32
    assert max(batch for batch, _ in shapes) > 4
    assert all(batch * length <= 300 for batch, length in shapes)


def test_a_model_in_training_mode_is_scored_without_dropout_and_left_as_it_was():
    model = tiny_model("gpt2", resid_pdrop=0.5, attn_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    scorer = make_scorer(model)
    first, second = score(scorer, TEXT)[0], score(scorer, TEXT)[0]
    np.testing.assert_array_equal(first.long_logprobs, second.long_logprobs)
    assert [module.training for module in model.modules()] == modes


def test_scorers_that_are_read_in_turn_leave_no_mode_on():
    model = tiny_model("llama").train()
    scorers = [make_scorer(each, batch_tokens=20) for each in (model, tiny_model("qwen2"))]
    requests = [Request(str(n), (1, 2, 3 + n), 1) for n in range(40)]
    for _ in zip(*(scorer.logprobs(requests) for scorer in scorers), strict=True):
        assert model.training
        assert not torch.is_inference_mode_enabled()
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    abandoned = [scorer.logprobs(requests) for scorer in scorers]
    for each in abandoned:
        next(each)
    for each in abandoned:
        each.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"sliding_window": "x"}),
        ("llama", {"layer_types": ["sliding_attention"] * 3, "sliding_window": "x"}),
        ("mixtral", {"num_experts_per_tok": 9}),
        ("gemma3", {"layer_types": ["full_attention"]}),
        ("mamba", {"layer_types": ["no such"]}),
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path, family, changes):
    (family_model("mamba") if family == "mamba" else tiny_model(family)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(longlens.UserError, match=r"cannot be run (on|with)|cannot load the ") as told:
        score(longlens.load_scorer(str(tmp_path), attention="eager"), TEXT)
    assert "\n" not in str(told.value)


def llama4(*, nested):
    text = {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 24}
    if not nested:
        return tiny_model("llama4", **text)
    eyes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.Llama4Config(
        text_config=tiny_model("llama4", **text).config.to_dict(),
        vision_config={**eyes, "image_size": 8, "patch_size": 4, "vision_output_dim": 16, "projector_input_dim": 16},
    )
    torch.manual_seed(0)
    return transformers.Llama4ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("nested", [False, True])
def test_the_decoder_of_llama_4_is_found_where_get_decoder_finds_the_whole(nested):
    model = llama4(nested=nested)
    assert type(find_decoder(model)) is transformers.Llama4TextModel
    if nested and transformers.__version__ >= "5.24":  # which cannot compute its logits without an image
        with pytest.raises(longlens.UserError, match="Llama4ForConditionalGeneration cannot be run on 48 tokens: "):
            make_scorer(model)
        return
    row = score(make_scorer(model), TEXT, context=None)[0]
    ids = torch.tensor([[256, *row.token_ids.tolist()]])
    with torch.no_grad():
        loss = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(row.long_logprobs, loss.numpy(), atol=1e-4)
    longce_loss(model.train(), ids, context=8, stride=4).backward()


def test_a_model_without_such_a_decoder_is_refused():
    model = tiny_model("llama")
    model.model.forward = lambda inputs_embeds: None
    with pytest.raises(longlens.UserError, match="LlamaForCausalLM has no decoder that maps token ids to hidden"):
        make_scorer(model)


def test_a_model_that_takes_a_cache_and_ignores_it_is_fed_whole(monkeypatch):
    monkeypatch.setattr("longlens.scoring.transformers.ATTENTION_BYTES", 4 * 4 * 8 * 100)
    model = family_model("openai-gpt")
    model.set_attn_implementation("eager")
    row = score(make_scorer(model), TEXT, context=None)[0]
    np.testing.assert_allclose(row.long_logprobs, naive_logprobs(model, [256, *row.token_ids.tolist()]), atol=1e-4)


DISK = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "disk", "model.rotary_emb": "cpu"}


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto", DISK | {"lm_head": "disk"}, DISK | {"lm_head": "cpu"}])
def test_device_maps_give_the_same_scores(tmp_path, device_map):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    plain = longlens.load_scorer(str(tmp_path / "model"))
    mapped = longlens.load_scorer(str(tmp_path / "model"), device_map=device_map)
    for row, expected in zip(score(mapped, TEXT, "short"), score(plain, TEXT, "short"), strict=True):
        np.testing.assert_allclose(row.long_logprobs, expected.long_logprobs, atol=1e-6)
        np.testing.assert_allclose(row.short_logprobs, expected.short_logprobs, atol=1e-6)
    assert plain.info.identity == mapped.info.identity
    assert mapped.info.device == ("disk, cpu" if isinstance(device_map, dict) and len(device_map) > 1 else "cpu")


def test_an_offloaded_model_continues_and_generates_as_a_plain_one():
    from accelerate import cpu_offload

    from longlens.models.forward import device_of
    from longlens.models.generate import TransformersGenerator
    from longlens.scoring.transformers import ContinuationScorer

    plain, offloaded = tiny_model("llama"), tiny_model("llama")
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert device_of(offloaded) == torch.device("cpu")
    text, continuations = [1, 2, 3, 4], [[5, 6], [7]]
    answers = [
        ContinuationScorer(model, byte_tokenizer(), weights_sha256="0").continuations(text, continuations)
        for model in (plain, offloaded)
    ]
    for answer, expected in zip(*answers, strict=True):
        assert answer.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert answer.is_greedy == expected.is_greedy
    written = [
        TransformersGenerator(model, byte_tokenizer(), name="x", identity_sha256="0", max_new_tokens=4).generate(["ab"])
        for model in (plain, offloaded)
    ]
    assert written[0] == written[1]
    # A loss cannot go into weights that are not there.
    with pytest.raises(longlens.UserError, match="vocabulary head of LlamaForCausalLM is offloaded by its device_map"):
        longce_loss(offloaded, torch.ones(1, 40, dtype=torch.int64), context=8, stride=4)


class Elsewhere(torch.Tensor):
    """A tensor of a second device, as far as this machine can have one: see `TwoDevices`."""


class TwoDevices(torch.overrides.TorchFunctionMode):
    """As CUDA does it: what mixes tensors of two devices fails, scalars aside, and ``to`` brings them together."""

    other = torch.device("cpu", 1)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(issubclass(kind, Elsewhere) for kind in types) and self.other not in (*args, *kwargs.values()):
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if function == torch.Tensor.device.__get__:
                return self.other
            plain = [torch.Tensor.as_subclass(a, torch.Tensor) if isinstance(a, Elsewhere) else a for a in args]
            if name == "cpu":
                return plain[0]
            if name == "to":
                moved = plain[0].to(*(a for a in plain[1:] if not isinstance(a, torch.device)))
                devices = [a for a in plain[1:] if isinstance(a, torch.device)]
                stays = isinstance(args[0], Elsewhere) and not devices
                return moved.as_subclass(Elsewhere) if stays or self.other in devices else moved
            tensors = [a for a in self._flat([*args, *kwargs.values()]) if isinstance(a, torch.Tensor) and a.dim()]
            if len({isinstance(a, Elsewhere) for a in tensors}) > 1:
                raise RuntimeError(f"{name}: expected all tensors to be on the same device")
            found = function(*args, **{n: v for n, v in kwargs.items() if v != self.other})
            if name in ("__iter__", "unbind"):
                return iter([row.as_subclass(Elsewhere) for row in found])
            return found.as_subclass(Elsewhere) if type(found) is torch.Tensor else found

    def _flat(self, values):
        for value in values:
            if isinstance(value, (list, tuple)):
                yield from self._flat(value)
            else:
                yield value


@pytest.mark.parametrize("chunks", [False, True])
def test_a_last_layer_on_another_device_than_the_first(monkeypatch, chunks):
    """accelerate leaves a decoder's output on the device of its last layer, and brings the model's logits back."""
    if chunks:  # the way of long sequences under eager attention, and of a cache
        monkeypatch.setattr("longlens.scoring.transformers.ATTENTION_BYTES", 4 * 4 * 8 * 100)
    model = tiny_model("llama")
    if chunks:
        model.set_attn_implementation("eager")
    expected = score(make_scorer(model), TEXT, "short")
    model._hf_hook = inside = None  # as with a device map

    def enter(*_):
        nonlocal inside
        inside = True

    def leave(*_):
        nonlocal inside
        inside = False

    def move(decoder, _, output):
        if not inside:
            output.last_hidden_state = output.last_hidden_state.as_subclass(Elsewhere)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave)
    model.model.register_forward_hook(move)
    head = model.lm_head.weight.detach()
    monkeypatch.setattr("longlens.logprobs._resident", lambda _: Head(weight=head.as_subclass(Elsewhere)))
    with TwoDevices():
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(2).as_subclass(Elsewhere)[torch.tensor([True, False])]
        found = score(make_scorer(model), TEXT, "short")
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(row.long_logprobs, other.long_logprobs, atol=1e-6)
        np.testing.assert_allclose(row.short_logprobs, other.short_logprobs, atol=1e-6)


def test_a_model_that_mixes_the_rows_of_a_batch_is_run_one_sequence_at_a_time(caplog):
    model = tiny_model("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output + output.mean(0, keepdim=True))
    with caplog.at_level(logging.INFO, "longlens"):
        scorer = make_scorer(model, batch_tokens=1000)
    assert "LlamaForCausalLM is run with one sequence at a time: its states change with other sequences" in caplog.text
    for row in score(scorer, TEXT[:80], TEXT[:50], TEXT[10:90]):
        long, short = naive_scores(model, row.token_ids.tolist(), context=64, stride=32, bos=256)
        np.testing.assert_allclose(row.long_logprobs, long, atol=1e-4)
        np.testing.assert_allclose(row.short_logprobs, short, atol=1e-4)


def test_the_probe_has_no_token_that_stands_for_an_image():
    model = family_model("gemma4")
    places = {value for name, value in vars(model.config).items() if name.endswith("_token_id") and value}
    assert places & set(torch.randint(300, (1, 48), generator=torch.Generator().manual_seed(0))[0].tolist())
    assert not places & set(probe_ids(model)[0].tolist())


def test_out_of_memory_says_what_to_change(monkeypatch):
    scorer = make_scorer(tiny_model("llama"))

    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scorer, "_hidden", fail)
    with pytest.raises(longlens.UserError, match=r"tiny ran out of memory .* `batch_tokens` \(it was 1024\)"):
        score(scorer, TEXT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_of_half_precision_is_widened_once_for_all_calls(dtype):
    scorer = TransformersScorer(tiny_model("llama", dtype), byte_tokenizer())
    first, second = (scorer._head.to(torch.float32).weight for _ in range(2))
    assert first is second
    assert torch.equal(first, scorer.model.lm_head.weight.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_with_float32_results_are_those_of_widened_operands(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(n, 64, generator=generator).to(dtype) for n in (VOCABULARY, 40))
    weight.requires_grad_()
    targets = torch.randint(VOCABULARY, (40,), generator=generator)
    head = Head(weight=weight, bias=torch.randn(VOCABULARY, generator=generator).to(dtype), softcap=3.0)
    expected = token_logprobs(hidden, targets, head)
    (gradient,) = torch.autograd.grad(expected.sum(), weight)
    used = []

    def mm(a, b, out_dtype):  # CUDA's overload, which the CPU lacks
        used.append((a.dtype, b.dtype))
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr("longlens.logprobs._multiplies_exactly", lambda hidden, weight: hidden.dtype == weight.dtype)
    ours = token_logprobs(hidden, targets, head, block_bytes=4 * VOCABULARY * 16)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), weight)[0], gradient)
    assert set(used) == {(dtype, dtype)}
