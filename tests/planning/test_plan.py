"""Plans of scoring and of training, against what runs feed, and what the command prints."""

import json
import random
import time
import warnings

import peft
import pytest
import torch
import transformers
from typer.testing import CliRunner

import longlens
from longlens.cli.app import app
from longlens.losses import ChunkedLongCE, LongCE
from longlens.planning.devices import DEVICES, Rates, find_device, measure, small_config
from longlens.planning.score import document_requests, plan_batches, plan_score
from longlens.planning.train import parse_loss, plan_train, recipe_settings
from longlens.scoring.transformers import TransformersScorer
from longlens.train.recipe import read_recipe
from tests.families import family_model
from tests.tiny import byte_tokenizer, tiny_model

H100 = DEVICES["h100"]


class Recording(TransformersScorer):
    """Keeps the shapes of what runs."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.requests, self.batches = [], []

    def logprobs(self, requests):
        def seen():
            for request in requests:
                size = len(request.token_ids)
                self.requests.append((size, size - request.start, request.is_short))
                yield request

        yield from super().logprobs(seen())

    def _score(self, batch):
        scored = sum(len(request.token_ids) - request.start for request in batch)
        self.batches.append((len(batch), len(batch[0].token_ids), scored))
        return super()._score(batch)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("context", "stride"), [(None, 8), (16, 8), ([16, 32], [8, 16]), (64, 64), (500, 8)])
def test_planned_requests_and_batches_are_those_of_a_run(bos, context, stride):
    scorer = Recording(tiny_model("llama"), byte_tokenizer(bos=bos), batch_tokens=100)
    documents = [longlens.Document(id=str(number), text="a" * 90) for number in range(7)]
    longlens.score(documents, scorer, context=context, stride=stride)
    requests = document_requests(90, context, stride, bos=bos)
    assert [tuple(request) for request in requests] * 7 == scorer.requests
    assert [tuple(batch) for batch in plan_batches(requests * 7, 100)] == scorer.batches
    if not isinstance(context, list):
        plan = plan_score(
            scorer.model.config, length=90, documents=7, context=context, stride=stride, bos=bos, device=H100,
            batch_tokens=100,
        )  # fmt: skip
        assert plan.tokens == sum(size for size, _, _ in scorer.requests)


def test_the_answer_of_a_plan_follows_from_its_parts():
    config = tiny_model("llama").config
    plan = plan_score(config, length=5000, documents=4, context=1000, stride=500, device=H100, devices=2)
    assert plan.flops == plan.long.total + plan.short.total
    assert plan.overhead == plan.short.total / plan.long.total
    expected = (plan.flops - 0) / (989.4e12 * 0.4) / 2
    assert plan.seconds == pytest.approx(expected)
    once = plan_score(config, length=5000, context=None, device=H100)
    assert once.short.total == once.overhead == 0
    assert once.long.total == pytest.approx(plan.long.total / 4)
    alone = plan_score(
        config, length=5000, documents=4, context=1000, stride=500, device=H100, devices=2, device_map=True
    )
    assert alone.seconds == pytest.approx(2 * plan.seconds)
    assert alone.memory.weights < plan.memory.weights


def test_a_plan_says_in_which_type_quantized_weights_are_counted():
    config = tiny_model("llama").config
    config.quantization_config = {"quant_method": "fp8"}
    plan = plan_score(config, length=300, context=None, device=H100)
    assert plan.notes == ("its weights are quantized (fp8), and are counted in bfloat16",)
    assert plan_train(config, length=300, device=H100).notes == (plan.notes[0].replace("bfloat16", "float32"),)


def test_a_multimodal_model_is_planned_as_it_is_scored():
    model = family_model("llava")
    plan = plan_score(model.config, length=300, context=64, stride=32, device=H100)
    assert plan.num_parameters == model.num_parameters()


def test_many_documents_cost_as_many_times_as_much():
    config = tiny_model("llama").config
    few, many = (
        plan_score(config, length=300, documents=n, context=64, stride=32, device=H100, batch_tokens=512)
        for n in (16, 1600)
    )
    assert many.flops == pytest.approx(100 * few.flops)


def test_what_does_not_fit_is_told_what_would():
    config = transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    plan = plan_score(config, length=8191, context=None, device=H100, batch_tokens=8192)
    assert plan.fits is False
    assert plan.memory.weights == pytest.approx(2 * plan.num_parameters, rel=1e-3)
    assert [note.split(":")[0] for note in plan.notes] == [
        "fits on 2 with `device_map=auto` and `devices=2`",
        "fits on 2 with `tensor_parallel=2` and `devices=2`",
    ]
    shared = plan_score(config, length=8191, context=None, device=H100, batch_tokens=8192, devices=2, tensor_parallel=2)
    assert shared.fits
    assert shared.memory.weights == pytest.approx(plan.memory.weights / 2, rel=1e-3)
    assert shared.seconds == pytest.approx(plan.seconds / 2)


def small(num_hidden_layers=2, vocab_size=300, **settings):
    return transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=num_hidden_layers, vocab_size=vocab_size, **settings,
    )  # fmt: skip


def test_more_never_costs_less():
    draw = random.Random(0)
    for _ in range(3):
        less = {"length": draw.randint(60, 3000), "num_hidden_layers": 2, "vocab_size": draw.choice([100, 3000])}
        what = draw.choice(list(less))
        more = less | {what: less[what] + draw.choice([1, 7, 50] if what != "num_hidden_layers" else [1])}
        context, stride, batch_tokens = draw.randint(4, 30), draw.randint(1, 20), draw.choice([64, 200, 8192])
        loss, _ = parse_loss(draw.choice(["ce", "longce", "sampled-longce", "chunked-longce"]), context=context,
                             stride=stride, gamma=5)  # fmt: skip
        found = []
        for one in (less, more):
            config = small(**{name: value for name, value in one.items() if name != "length"})
            scored = plan_score(
                config, length=one["length"], context=context, stride=stride, batch_tokens=batch_tokens, documents=3,
                device=H100,
            )  # fmt: skip
            trained = plan_train(config, length=one["length"], longce=loss, device=H100)
            found.append([number for plan in (scored, trained) for number in (plan.flops, plan.memory_bytes)])
        assert all(a <= b for a, b in zip(*found, strict=True)), (less, more, found)


def test_documents_of_any_length_are_planned_at_once():
    """Windows are counted, not listed: here there are ten million of them."""
    begun = time.process_time()
    settings = {"context": 64, "stride": 1}
    plan = plan_score(small(), length=10**7, bos=False, device=H100, **settings)
    assert plan.short.total == pytest.approx(
        100 * plan_score(small(), length=10**5, bos=False, device=H100, **settings).short.total, rel=0.002
    )
    trained = plan_train(small(), length=10**7, longce=LongCE(**settings), device=H100)
    assert trained.short.total == pytest.approx(plan.short.total, rel=1e-6)
    assert time.process_time() - begun < 8


def test_batches_that_are_counted_cost_as_those_that_are_listed(monkeypatch):
    settings = {"length": 9000, "context": [64, 256], "stride": [32, 100], "batch_tokens": 2048, "device": H100}
    listed = plan_score(small(), **settings)
    monkeypatch.setattr("longlens.planning.score.LISTED_REQUESTS", 0)
    counted = plan_score(small(), **settings)
    assert counted.tokens == listed.tokens == 9001 + 279 * 97 + (64 + 8 + 1) + 87 * 357 + (256 + 44 + 1)
    assert counted.flops == pytest.approx(listed.flops, rel=0.01)
    assert counted.memory_bytes == pytest.approx(listed.memory_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            lambda: transformers.BertConfig(num_hidden_layers=2),
            "BertLMHeadModel is not causal: its attention sees later tokens",
        ),
        (lambda: transformers.ElectraConfig(num_hidden_layers=2), "ElectraForCausalLM is not causal"),
        (
            lambda: transformers.RemBertConfig(num_hidden_layers=2),
            "RemBertForCausalLM is not causal",
        ),  # attention of its own
        (transformers.BartConfig, "bart is an encoder and a decoder: longlens supports only decoders"),
        (transformers.WhisperConfig, "whisper is an encoder and a decoder: longlens supports only decoders"),
        (lambda: small(num_hidden_layers=0), "`num_hidden_layers` of llama is 0; expected at least 1"),
        (lambda: transformers.GPT2Config(n_embd=0), "`hidden_size` of gpt2 is 0; expected at least 1"),
    ],
)
def test_what_scoring_refuses_is_not_planned(config, reason):
    with pytest.raises(longlens.UserError, match=reason):
        plan_score(config(), length=300, context=None, device=H100)
    with pytest.raises(longlens.UserError, match=reason):
        plan_train(config(), length=300, device=H100)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_modules_that_are_trained_whole_beside_adapters_are_those_of_peft(tie_word_embeddings):
    config = small(tie_word_embeddings=tie_word_embeddings)
    settings = {"r": 4, "target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]}
    model = transformers.AutoModelForCausalLM.from_config(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, of which each gets a copy
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    trained, every = adapted.get_nb_trainable_parameters()
    plan, without = (
        plan_train(config, length=300, lora=4, modules_to_save=modules, device=H100)
        for modules in (("embed_tokens", "lm_head"), ())
    )
    assert plan.num_trained == trained
    assert plan.memory.optimizer == 8 * trained
    assert plan.memory.weights - without.memory.weights == 4 * (trained - without.num_trained)
    assert plan.memory.weights == pytest.approx(4 * every, rel=1e-3)  # buffers
    with pytest.raises(longlens.UserError, match="`modules_to_save` has 'nonsense', but llama has no such module"):
        plan_train(config, length=300, lora=4, modules_to_save=["nonsense"], device=H100)


def test_losses_differ_by_their_short_pass_alone():
    config = tiny_model("llama").config
    settings = {"length": 256, "device": H100}
    ce, exact, chunked, offline = (
        plan_train(config, longce=longce, offline=is_offline, **settings)
        for longce, is_offline in (
            (None, False),
            (LongCE(context=64, stride=16), False),
            (ChunkedLongCE(context=64, stride=64), False),
            (LongCE(context=64, stride=16), True),
        )
    )
    assert ce.step == exact.step == chunked.step == offline.step
    assert ce.overhead == offline.overhead == 0 < chunked.overhead < exact.overhead
    assert offline.once.total > exact.short.total
    assert exact.seconds > ce.seconds


def test_sharding_divides_states_and_not_activations():
    config = tiny_model("llama").config
    one = plan_train(config, length=256, device=H100)
    four = {
        s: plan_train(config, length=256, device=H100, devices=4, batch_size=4, sharding=s) for s in ("ddp", "fsdp")
    }
    assert four["ddp"].memory.optimizer == one.memory.optimizer == 8 * one.num_parameters
    assert four["ddp"].memory.gradients == 2 * one.memory.gradients  # and the buckets
    assert four["fsdp"].memory.optimizer == one.memory.optimizer / 4
    assert four["fsdp"].step.total == pytest.approx(4 * one.step.total)
    assert four["fsdp"].seconds == pytest.approx(one.seconds)


def test_context_parallelism_divides_the_sequence():
    config = tiny_model("llama").config
    one = plan_train(config, length=2048, device=H100)
    two = plan_train(config, length=2048, device=H100, devices=2, context_parallel=2, sharding="fsdp")
    assert two.step.total == pytest.approx(one.step.total)
    assert two.memory.activations < 0.6 * one.memory.activations + one.memory.gradients


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sharding": "fsdp3"}, "`sharding` is 'fsdp3'"),
        ({"devices": 4, "context_parallel": 3}, "`context_parallel` is 3"),
        ({"devices": 4, "batch_size": 6}, "`batch_size` is 6 rows"),
        ({"length": 1}, "`length` is 1; expected at least 2"),
        *(({name: 0}, f"`{name}` is 0; expected at least 1") for name in ("batch_size", "per_device_batch_size")),
        ({"lora": -1}, "`lora` is -1; expected at least 1"),
        ({"precision": "bf16"}, "`precision` is 'bf16'; expected one of float32, bfloat16, float16"),
        ({"dtype": "auto"}, "`dtype` is 'auto'; expected one of float32"),
        ({"attention": "flash"}, "`attention` is 'flash'; expected one of sdpa, eager, flash_attention_2"),
        ({"longce": LongCE(context=64, stride=8)}, "`context` is 64, but rows have 64 tokens"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(longlens.UserError, match=said):
        plan_train(tiny_model("llama").config, **{"length": 64, "device": H100, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_tokens": 0}, "`batch_tokens` is 0; expected at least 1"),
        ({"dtype": "int8"}, "`dtype` is 'int8'; expected one of float32"),
        ({"attention": "flash"}, "`attention` is 'flash'; expected one of sdpa"),
        ({"devices": 3, "tensor_parallel": 3}, "cannot be shared by `tensor_parallel=3`: it has 4 num_attention_heads"),
    ],
)
def test_settings_that_no_run_takes_are_refused(settings, said):
    with pytest.raises(longlens.UserError, match=said):
        plan_score(tiny_model("llama").config, **{"length": 64, "device": H100, **settings})


def test_adapters_of_modules_whose_weights_are_used_without_calling_them():
    config = transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8)
    plan = plan_train(config, length=64, lora=4, device=H100)
    assert 0 < plan.num_trained < plan.num_parameters


def test_devices_by_name_and_by_numbers():
    assert find_device("H100", memory_bytes=5e10).memory_bytes == 5e10
    given = find_device("a100", flops=1e14)
    assert given.rates("bfloat16") == Rates(linear=1e14, attention=1e14, head=1e14, wide_head=1e14)
    assert H100.rates("bfloat16", 0.5).linear == 989.4e12 / 2
    with pytest.raises(longlens.UserError, match="`device` is 'v100'; expected cpu or one of h100"):
        find_device("v100")
    with pytest.raises(longlens.UserError, match="`loss` is 'ppo'"):
        parse_loss("ppo", context=1, stride=1, gamma=5.0)


def test_a_speed_can_be_measured_on_few_layers():
    config = tiny_model("gemma3").config
    assert small_config(config).num_hidden_layers == config.num_hidden_layers == 6
    assert small_config(tiny_model("llama").config).num_hidden_layers == 1
    found = measure(config, device="cpu", lengths=(16, 64), trains=True, repeats=1)
    assert all(rate > 0 for rates in (found.forward, found.training) for rate in vars(rates).values())
    assert found.device.on_gpu is False


@pytest.fixture
def model(tmp_path):
    config = tiny_model("llama").config
    config.save_pretrained(tmp_path)
    return str(tmp_path / "config.json")


def command(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_a_configuration_is_enough_and_the_answer_comes_first(model):
    asked = ["--model", model, "--length", "900", "--context", "256", "--stride", "64", "--device", "h100"]
    for mode in ("score", "train"):
        said = command(mode, *asked)
        assert said.exit_code == 0, said.output
        assert said.stdout.startswith("fits on 1 x H100 SXM (80.0 GB): ")
        content = json.loads(command(mode, *asked, "--json").stdout)
        assert {"flops", "memory_bytes", "seconds", "overhead"} < set(content)
        assert content["fits"]
        assert content["overhead"] > 0


def test_a_plan_reads_no_weights_and_asks_no_network(model, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr("safetensors.safe_open", None)
    assert command("score", "--model", model, "--length", "64", "--long-only", "--device", "h100").exit_code == 0


def test_options_that_contradict_each_other_are_one_line(model):
    def refused(*arguments):
        done = command("score", "--model", model, "--length", "64", *arguments)
        assert done.exit_code != 0
        return str(done.exception)

    assert "--flops and --measure both set the speed" in refused("--flops", "1e9", "--measure")
    assert "--measure measures this machine" in refused("--measure", "--device", "h100")
    assert "--utilization is 2" in refused("--utilization", "2")
    assert "would have no effect with --long-only" in refused("--long-only", "--context", "8")


def test_a_recipe_is_planned_as_it_is_trained(model, tmp_path):
    asked = ["--model", model, "--device", "h100", "--devices", "8", "--json"]
    content = json.loads(command("train", "longce-pg19-pi", *asked).stdout)
    whole = json.loads(command("train", "longce-pg19-pi", *asked, "--sharding", "ddp").stdout)
    assert content["memory_by_part"]["optimizer"] == pytest.approx(whole["memory_by_part"]["optimizer"] / 8)
    assert content["length"] == 32768
    assert content["overhead"] > 0
    assert content["notes"] == []
    assert json.loads(command("train", "longce-pg19-pi", *asked).stdout)["memory_by_part"] == content["memory_by_part"]
    whole = json.loads(command("train", "longce-pg19-pi", *asked, "--sharding", "ddp").stdout)
    assert whole["memory_by_part"]["optimizer"] == pytest.approx(8 * content["memory_by_part"]["optimizer"])
    done = command("train", "longce-pg19-pi", *asked, "--loss", "ce")
    assert "--loss would have no effect with a recipe" in str(done.exception)
    done = command("train", "--model", model)
    assert "--length is missing: pass --length 32768" in str(done.exception)


def test_the_sliding_window_that_a_recipe_turns_off_is_not_planned(tmp_path):
    config, model = tmp_path / "config.json", tiny_model("mistral-sliding").config
    config.write_text(json.dumps(model.to_dict()))
    asked = ["longce-mistral", "--model", config, "--device", "h100", "--devices", "8"]
    found = json.loads(command("train", *asked, "--json").stdout)
    settings = recipe_settings(read_recipe("longce-mistral").runs["."]) | {"model": model}
    del settings["tokens"]
    windowed = plan_train(**settings, device=H100, devices=8)  # whose mask makes sdpa compute the whole square
    assert found["flops_by_part"]["step"]["attention"] < 0.6 * windowed.step.attention
    config.write_text(json.dumps(tiny_model("llama").config.to_dict()))
    assert "llama has no sliding window to turn off" in str(command("train", *asked).exception)


def test_the_first_run_of_a_sweep_is_planned_and_said(model):
    said = command("train", "prolong-64k-theta", "--model", model, "--device", "h100", "--devices", "8")
    assert "the recipe is a sweep of 3 runs; only the first is planned: extend.theta=5e5" in said.stderr


def test_training_that_does_not_fit_is_told_what_would():
    device = find_device("h100", memory_bytes=0.6e9 + 16 * 2**20)
    config = tiny_model("llama").config
    plan = plan_train(config, length=4096, device=device, precision="bfloat16")
    assert plan.fits is False
    assert plan.notes[0].startswith("fits with `gradient_checkpointing=True`: ")
