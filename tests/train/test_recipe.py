"""Training recipes: shipped ones are the published settings, and every key is known and used."""

import json
from pathlib import Path

import pytest
import yaml

from longlens.errors import UserError
from longlens.losses.settings import ChunkedLongCE, LongCE, SampledLongCE
from longlens.rope import EABF, NTK, PositionInterpolation
from longlens.settings.recipe import presets
from longlens.train.recipe import mixture_of, parse_recipe, read_recipe
from longlens.train.settings import ChatData, DocumentsData, MixtureData, Offline, PackedData

GOOD = {
    "model": "llama",
    "data": {"documents": ["a.txt"], "length": 64},
    "loss": {"longce": {"context": 16, "stride": 8}},
    "training": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3},
}
EVALUATION = {"documents": ["b.txt"], "every": 2, "keys": "keys.jsonl"}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a recipe, some of its sections changed, to r.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        content = json.loads(json.dumps(GOOD))
        for key, value in changes.items():
            content[key] = content[key] | value if isinstance(value, dict) and key in content else value
        Path("r.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return "r.yaml"

    return write


def only(recipe, *changes):
    return read_recipe(recipe, changes).runs["."]


@pytest.mark.parametrize("preset", presets("train"))
def test_shipped_recipes_resolve_and_say_the_same_again(preset):
    for recipe in read_recipe(preset).runs.values():
        again = parse_recipe(recipe.resolved(), "again")
        assert again.resolved() == recipe.resolved()
        assert json.loads(json.dumps(recipe.resolved())) == recipe.resolved()


def test_the_shipped_recipes_are_these():
    longce = ["arxiv-eabf", "llama2-13b", "llama2-7b-lora", "mistral", "pg19-eabf", "pg19-pi"]
    prolong = ["512k", "512k-theta", "64k", "64k-theta", "sft"]
    lecture = ["length-512k", "length-64k", "long-ratio", "sft-ratio"]
    names = {"lecture": lecture, "longce": longce, "prolong": prolong}
    assert presets("train") == [*(f"{group}-{name}" for group, found in names.items() for name in found), "smollm2-cpu"]


def test_the_lectures_length_table():
    """4B tokens more after 64K for 20B: at 64K, and at 512K."""
    for name, stage, batch in (("64k", "prolong-64k", 2**22), ("512k", "prolong-512k", 2**23)):
        recipe = only(f"lecture-length-{name}")
        assert recipe.model == "princeton-nlp/Llama-3-8B-ProLong-64k-Base"
        assert (recipe.data.mixture, recipe.data.tokens, recipe.training.epochs) == (stage, 4 * 10**9, 1)
        assert recipe.training.batch_size * recipe.length == batch
        assert recipe.length == 2**19 if name == "512k" else 2**16
    assert only("lecture-length-64k").method("extend") is None
    assert only("lecture-length-512k").method("extend") == only("prolong-512k").method("extend")


def test_the_lectures_ratios():
    """Long and short data from 0 to 100 %, and synthetic data of 0, 1, 3, 10 and 50 % in SFT: runs of a sweep."""
    found = read_recipe("lecture-long-ratio", ["data.sources.books=b", "data.sources.arxiv=a"])
    shares = []
    for recipe in found.runs.values():
        sources = mixture_of(recipe.data).sources
        shares.append(sum(sources[name].weight for name in ("code", "books") if name in sources))
        assert sources["books" if "books" in sources else "arxiv"].path == ("b" if "books" in sources else "a")
        assert (recipe.training.learning_rate, recipe.training.epochs) == (1e-5, 1)
        assert mixture_of(recipe.data).tokens == 5 * 10**9
        assert (recipe.model, recipe.length) == ("meta-llama/Meta-Llama-3-8B", 65536)
    assert shares == [0, 20, 40, 60, 80, 100]
    found = read_recipe("lecture-sft-ratio", ["data.sources.ultrachat=u", "data.sources.synthetic=s"])
    sources = [mixture_of(recipe.data).sources for recipe in found.runs.values()]
    assert [s["synthetic"].weight if "synthetic" in s else 0 for s in sources] == [0, 1, 3, 10, 50]
    for recipe in found.runs.values():
        assert recipe.training == only("prolong-sft").training
        assert recipe.model == only("prolong-sft").model
    assert not found.shares_data


def test_settings_of_the_longce_paper():
    settings = {"pg19-eabf": (64, 2e-5), "pg19-pi": (64, 2e-5), "arxiv-eabf": (8, 2e-5), "llama2-13b": (8, 2e-5)}
    for name, (batch, rate) in {**settings, "mistral": (8, 1e-6)}.items():
        recipe = only(f"longce-{name}")
        training = recipe.training
        assert (training.batch_size, training.learning_rate, training.steps) == (batch, rate, 200)
        assert (training.warmup_steps, training.weight_decay, list(training.betas)) == (20, 0, [0.9, 0.95])
        assert recipe.loss == LongCE(context=4096, stride=1024, gamma=5)
        assert recipe.length == 32768
        assert recipe.load.full_attention == (name == "mistral")
        expected = PositionInterpolation(factor=8) if name == "pg19-pi" else EABF(factor=8, theta=5e5)
        if name != "mistral":
            assert recipe.method("extend") == expected
    assert only("longce-mistral").method("extend") == EABF(factor=8, theta=5e5, original_length=4096)
    assert only("longce-pg19-eabf").method("after") == NTK(theta=2e6, factor=2)
    assert only("longce-pg19-eabf", "loss=ce").loss is None


@pytest.mark.parametrize("preset", [name for name in presets("train") if name != "smollm2-cpu"])
def test_large_recipes_spread_the_model_or_train_adapters(preset):
    for recipe in read_recipe(preset).runs.values():
        is_small = recipe.lora is not None and recipe.load.dtype == "bfloat16"
        spread = "fsdp" if recipe.training.context_parallel is None else "zero3"
        assert recipe.training.sharding == (None if is_small else spread)
        assert recipe.training.gradient_checkpointing
        assert recipe.training.batch_size % 8 == 0


def test_sharding_twice_is_refused():
    with pytest.raises(UserError, match=r"sharding and arguments\.fsdp are both set: choose one"):
        only("longce-pg19-pi", "training.arguments.fsdp=true")


def test_settings_of_prolong():
    for name, steps, tokens, rate, theta in [("64k", 5000, 2**22, 1e-5, 8e6), ("512k", 2500, 2**23, 5e-6, 1.28e8)]:
        recipe = only(f"prolong-{name}")
        training = recipe.training
        assert (training.steps, training.batch_size * recipe.length, training.learning_rate) == (steps, tokens, rate)
        assert (training.schedule, training.final_share, training.warmup_ratio) == ("cosine", 0.1, 0.1)
        assert (training.weight_decay, training.clip, recipe.loss) == (0.1, 1.0, None)
        assert recipe.method("extend") == NTK(theta=theta, factor=8)
    sft = only("prolong-sft")
    assert (sft.training.steps, sft.training.learning_rate, sft.training.warmup_ratio) == (250, 2e-5, 0.05)
    assert (sft.extend, sft.loss, sft.training.batch_size * sft.length) == (None, None, 2**22)
    assert isinstance(sft.data, ChatData)


@pytest.mark.parametrize(("name", "thetas"), [("64k", [5e5, 4e6, 8e6]), ("512k", [64e6, 128e6, 256e6])])
def test_sweeps_of_tables_18_and_19(name, thetas):
    found, base = read_recipe(f"prolong-{name}-theta"), only(f"prolong-{name}")
    assert [recipe.method("extend").theta for recipe in found.runs.values()] == thetas
    assert found.shares_data
    for recipe in found.runs.values():
        assert recipe.training == base.training
        assert recipe.data == base.data


def test_a_sweep_is_all_combinations(written):
    sweep = {"loss.longce.gamma": [2, 5], "training.seed": [0, 1]}
    found = read_recipe(written(sweep=sweep))
    assert [(r.loss.gamma, r.training.seed) for r in found.runs.values()] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    assert next(iter(found.runs)) == "loss.longce.gamma=2,training.seed=0"
    assert found.shares_data
    assert not read_recipe("r.yaml", ["sweep.data.length=[32, 64]"]).shares_data
    # Paths and long values are shortened, to names that differ where the values do.
    paths = read_recipe(written(sweep={"data.documents": [["a/b.txt"], ["a-b.txt"], ["x" * 300]]})).runs
    assert [Path(label).name == label and len(label) < 200 for label in paths] == [True] * 3
    assert next(iter(paths)).startswith("data.documents=a-b.txt-")
    assert list(read_recipe(written(sweep={"model": ["org/name"]})).runs) == ["model=org-name-e821b0"]
    with pytest.raises(UserError, match="sweep: 'model=a' occurs twice: remove one"):
        read_recipe(written(sweep={"model": ["a", "a"]}))


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("training.steps=20", ("training", "steps"), 20),
        ("training.steps=2e1", ("training", "steps"), 20),
        ("training.learning_rate=1e-5", ("training", "learning_rate"), 1e-5),
        ("training.clip=null", ("training", "clip"), None),
        ("training.arguments.optim=adamw_8bit", ("training", "arguments"), {"optim": "adamw_8bit"}),
        ("training.seed=9007199254740993", ("training", "seed"), 2**53 + 1),
        ("training.report_to=wandb", ("training", "report_to"), ["wandb"]),
        ("loss.longce.context=32", ("loss", "longce", "context"), 32),
        ("lora={r: 4, alpha: 8}", ("lora", "r"), 4),
        ("load.dtype=bfloat16", ("load", "dtype"), "bfloat16"),
        ("data.documents=[b.txt, stdlib:email]", ("data", "documents"), ["b.txt", "stdlib:email"]),
        ("model=other", ("model",), "other"),
    ],
)
def test_set(change, path, value, written):
    found = only(written(), change).resolved()
    for key in path:
        found = found[key]
    assert found == value


def test_null_takes_a_section_away(written):
    recipe = written(extend={"method": "pi", "factor": 8}, out="run")
    assert only(recipe).method("extend") == PositionInterpolation(factor=8)
    assert only(recipe, "extend=null").extend is None
    assert read_recipe(recipe).out == "run"
    assert read_recipe(recipe, ["out=other"]).out == "other"


@pytest.mark.parametrize(
    ("loss", "made"),
    [
        ("ce", None),
        ({"ce": None}, None),
        ({"longce": None}, LongCE(context=16, stride=8)),
        (
            {"sampled-longce": {"context": 16, "stride": 8, "share": 0.25}},
            SampledLongCE(context=16, stride=8, share=0.25),
        ),
        (
            {"chunked-longce": {"context": 16, "stride": 8, "gamma": "2e0"}},
            ChunkedLongCE(context=16, stride=8, gamma=2),
        ),
        ({"offline": {"gamma": 3}}, Offline(gamma=3.0)),
        ({"offline": {"gamma": 3, "floor": 1}}, Offline(gamma=3.0, floor=1.0)),
        ({"longce": {"context": 16, "stride": 8, "floor": 1}}, LongCE(context=16, stride=8, floor=1.0)),
    ],
)
def test_losses(loss, made):
    content = GOOD | {"loss": loss}
    if loss == {"longce": None}:
        content = GOOD | {"data": GOOD["data"] | {"length": 8192}, "loss": loss}
        made = LongCE()
    assert parse_recipe(content, "r").loss == made


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"mixture": "pg19", "sources": {"pg19": "x"}, "tokens": "1e6"}, MixtureData),
        ({"packed": "folder"}, PackedData),
        ({"documents": "a.txt", "length": 64}, DocumentsData),
        ({"chat": "chat.jsonl", "length": 64}, ChatData),
    ],
)
def test_data(data, kind):
    assert type(parse_recipe(GOOD | {"data": data}, "r").data) is kind


WRONG = [
    (
        {"trainng": {}},
        "r.yaml: unknown key 'trainng' (nearest: 'training'); known are model, data, training, loss, load, ex",
    ),
    ({"model": None}, "r.yaml: model is None; expected text"),
    ({"model": 3}, "r.yaml: model is 3; expected text"),
    (
        {"training": {"stepps": 3}},
        "r.yaml: training: unknown key 'stepps' (nearest: 'steps'); known are batch_size, learning_rate, step",
    ),
    ({"training": {"steps": None}}, "r.yaml: training: set either steps or epochs"),
    ({"training": {"epochs": 1}}, "r.yaml: training: set either steps or epochs"),
    (
        {"training": {"steps": "many"}},
        "r.yaml: training.steps is 'many'; expected an integer, such as 65536 or 1e9",
    ),
    ({"training": {"steps": 0}}, "r.yaml: training.steps is 0; expected at least 1"),
    (
        {"training": {"learning_rate": "big"}},
        "r.yaml: training.learning_rate is 'big'; expected a number, such as 0.1 or 1e-5",
    ),
    ({"training": {"learning_rate": -1}}, "r.yaml: training.learning_rate is -1; expected more than 0"),
    (
        {"training": {"batch_size": 3, "per_device_batch_size": 2}},
        "r.yaml: training: batch_size is 3 rows, which is not",
    ),
    (
        {"training": {"save_every": 5, "log_every": 2}},
        "r.yaml: training: save_every is 5 and log_every 2: a checkpoint",
    ),
    (
        {"training": {"final_share": 0.1}},
        "r.yaml: training: final_share is for schedule cosine, and schedule is linear",
    ),
    ({"training": {"warmup_steps": 2, "warmup_ratio": 0.1}}, "r.yaml: training: warmup_steps and warmup_ratio are bot"),
    ({"training": {"betas": [0.9]}}, "r.yaml: training.betas[1] is missing: set it"),
    ({"training": {"precision": "fp8"}}, "r.yaml: training.precision is 'fp8'; expected float32, bfloat16 or float16"),
    ({"training": {"seed": True}}, "r.yaml: training.seed is True; expected an integer, such as 65536 or 1e9"),
    (
        {"training": {"gradient_checkpointing": 1}},
        "r.yaml: training.gradient_checkpointing is 1; expected true or false",
    ),
    (
        {"data": {"packed": "x"}},
        "r.yaml: data: found packed and documents; expected one of mixture, packed, documents, chat, and t",
    ),
    (
        {"data": {"documents": None}},
        "r.yaml: data: found none of them; expected one of mixture, packed, documents, chat, and the keys ",
    ),
    (
        {"data": {"seed": 3}},
        "r.yaml: data: unknown key 'seed'; known are documents, length, packing, too_long, min_tokens, text_f",
    ),
    ({"data": {"length": None}}, "r.yaml: data.length is None; expected an integer, such as 65536 or 1e9"),
    ({"data": {"packing": "tight"}}, "r.yaml: data.packing is 'tight'; expected fill or best-fit"),
    ({"data": {"length": 16}}, "r.yaml: the context K of the loss is 16 and rows have 16 tokens, so no token"),
    (
        {"loss": None},
        "r.yaml: loss is None; expected one of longce, sampled-longce, chunked-longce, offline, ce with its k",
    ),
    (
        {"loss": {"ce": {}}},
        "r.yaml: loss is {'ce': {}, 'longce': {'context': 16, 'stride': 8}}; expected one of longce",
    ),
    (
        {"loss": "longec"},
        "r.yaml: loss is 'longec'; expected one of longce, sampled-longce, chunked-longce, offline, ce (neare",
    ),
    (
        {"loss": {"longce": {"contxt": 3}}},
        "r.yaml: loss.longce: unknown key 'contxt' (nearest: 'context'); known are context, stride, gamma, fl",
    ),
    ({"loss": {"longce": {"gamma": 0}}}, "r.yaml: loss.longce.gamma is 0; expected more than 0"),
    (
        {"loss": {"longce": {"share": 0.5}}},
        "r.yaml: loss.longce: unknown key 'share' (nearest: 'stride'); known are context, stride, gamma, floo",
    ),
    ({"extend": {"factor": 8}}, "r.yaml: extend.method is missing: set it"),
    ({"extend": {"method": ["pi"]}}, "r.yaml: extend.method is ['pi']; expected text"),
    (
        {"extend": {"method": "yan", "factor": 8}},
        "r.yaml: extend: method is 'yan'; expected one of pi, ntk, dynamic-ntk, yarn, longrope, llama3, eabf,",
    ),
    ({"extend": {"method": "pi"}}, "r.yaml: extend: method pi needs factor; its settings are factor, original_length"),
    (
        {"extend": {"method": "pi", "factor": 8, "theta": 1e6}},
        "r.yaml: extend: theta is not a setting of method pi, which has factor, original_length: leave it out",
    ),
    (
        {"extend": {"method": "pi", "fctor": 8}},
        "r.yaml: extend: unknown key 'fctor' (nearest: 'factor'); known are method, factor, theta, first_laye",
    ),
    ({"lora": {"r": 4}}, "r.yaml: lora.alpha is missing: set it"),
    (
        {"evaluation": {"documents": "b.txt", "every": 2}},
        "r.yaml: evaluation: LongPPL needs key tokens: set either key",
    ),
    (
        {"evaluation": {"documents": "b.txt", "every": 2, "keys": "k", "max_length": 9}},
        "r.yaml: evaluation: max_length truncates documents, and keys refer to them as they were scored: leave it out",
    ),
    (
        {"evaluation": {"documents": "a.txt", "every": 2, "keys": "k"}},
        "r.yaml: 'a.txt' is in data and in evaluation: evaluate on documents not trained on",
    ),
    ({"sweep": {"extend.theta": 3}}, "r.yaml: sweep.extend.theta is 3; expected a list of values"),
    ({"sweep": {"nosuch.key": [3]}}, "r.yaml: sweep nosuch.key: no such key"),
    ({"out": 3}, "r.yaml: out is 3; expected a folder"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_wrong_with_a_recipe(changes, message, written):
    with pytest.raises(UserError) as refused:
        read_recipe(written(**changes))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.steps", "`changes` is 'training.steps'; expected KEY=VALUE, such as training.steps=20"),
        (
            "trainig.steps=3",
            "`changes` trainig.steps: no such key (nearest: 'training'); known are model, data, training, loss, l",
        ),
        (
            "training.step=3",
            "r.yaml: training: unknown key 'step' (nearest: 'steps'); known are batch_size, learning_rate, steps,",
        ),
        ("model.x=3", "`changes` model.x: model is 'llama' and has no keys: set model instead"),
        (
            "loss={a",
            '`changes` loss is not valid YAML: while parsing a flow mapping in "<unicode string>", '
            "line 1, column 1: {a ",
        ),
    ],
)
def test_what_is_wrong_with_set(change, message, written):
    with pytest.raises(UserError) as refused:
        read_recipe(written(), [change])
    assert str(refused.value).startswith(message)


BOMB = "{a0: &a0 [x], " + ", ".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)) + "}"


@pytest.mark.parametrize(
    "value",
    [
        *(BOMB, "&a [*a]", "{<<: &a {x: 1}, y: *a}", "9" * 5000, "0x" + "f" * 5000, "!!int x", "!!float x", "!!bool x"),
        *("!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!python/object/apply:os.system [true]"),
        *('"a\\0b"', '"\\ud800"', "{[]: 1}", "{1: 2}", "{a: 1, a: 2}", "[" * 3000, "2001-99-99", "1:99:99e9"),
        "x" * 100_000,
    ],
)
def test_no_yaml_is_a_traceback_or_a_bomb(value, written):
    recipe = written()
    for key in ("training.seed", "loss"):
        with pytest.raises(UserError) as refused:
            read_recipe(recipe, [f"{key}={value}"])
        assert len(str(refused.value)) < 600
        assert str(refused.value).isprintable()
    Path(recipe).write_text(f"{Path(recipe).read_text()}\nload: {value}\n")
    with pytest.raises(UserError) as refused:
        read_recipe(recipe)
    assert len(str(refused.value)) < 600


def test_an_alias_to_a_plain_value_is_one(written):
    assert only(written(), "training={steps: &n 3, save_every: *n, batch_size: 1, learning_rate: 1}").training.keep == 1


@pytest.mark.parametrize("name", ["trust_remote_code", "allow_pickle"])
def test_code_of_others_is_confirmed_outside_of_the_recipe(name, written):
    for recipe in (written(load={name: True}), written(sweep={f"load.{name}": [False, True]})):
        with pytest.raises(UserError, match=rf"r.yaml sets load.{name}, .* and confirm with `{name}=True`"):
            read_recipe(recipe, **{("allow_pickle" if name[0] == "t" else "trust_remote_code"): True})
        assert getattr(list(read_recipe(recipe, **{name: True}).runs.values())[-1].load, name)
    assert getattr(read_recipe(written(), **{name: True}).runs["."].load, name)


@pytest.mark.parametrize(
    "change",
    [
        "training.arguments.hub_token=SECRET1",
        "training.arguments.hub_token=3",
        "sweep={training.arguments.hub_token: [SECRET1]}",
        "training.arguments.hub_model_id=hf_SECRET1SECRET1SECRET1",
        "model=https://me:SECRET1@host/model",
        "data.documents=[hf_SECRET1SECRET1SECRET1]",
    ],
)
def test_no_secret_is_taken_or_repeated(change, written):
    with pytest.raises(UserError, match="set the environment variable") as refused:
        read_recipe(written(), [change])
    assert "SECRET1" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"split": "train"}}, "split is for hf: datasets, and 'a.txt' is not one: leave it out"),
        (
            {"data": {"text_field": "text"}},
            "text_field is for rows of datasets, JSON Lines and Parquet, and 'a.txt' is",
        ),
        ({"data": {"documents": ["stdlib:email"], "text_field": "x"}}, "text_field is for rows of datasets"),
        ({"evaluation": EVALUATION | {"split": "test"}}, "split is for hf: datasets, and 'b.txt' is not one"),
        ({"evaluation": EVALUATION | {"text_field": "x"}}, "text_field is for rows of datasets"),
        ({"evaluation": EVALUATION | {"samples": 0}}, "samples is 0; expected at least 1"),
        ({"data": {"min_tokens": 0}}, "min_tokens is 0; expected at least 1"),
        ({"data": {"too_long": "trim"}}, "too_long is 'trim'; expected split, cut or drop"),
        (
            {"loss": {"longce": {"short_dtype": ["bfloat16"]}}},
            "r.yaml: loss.longce.short_dtype is ['bfloat16']; expected float16 or bfloat16",
        ),
        ({"loss": {"longce": {"gamma": [5]}}}, "gamma is [5]; expected a number"),
        ({"training": {"report_to": [3]}}, "r.yaml: training.report_to[0] is 3; expected text"),
        (
            {"lora": {"r": 4, "alpha": 8, "target_modules": [3]}},
            "r.yaml: lora.target_modules is [3]; expected all-linear, or a list of names",
        ),
    ],
)
def test_what_would_have_no_effect_or_has_another_type(changes, message, written):
    with pytest.raises(UserError) as refused:
        read_recipe(written(**changes))
    assert message in str(refused.value)


@pytest.mark.parametrize("key", ["subset", "split"])
def test_keys_of_datasets_for_conversations_in_files(key):
    with pytest.raises(UserError, match=f"{key} is for hf: datasets, and 'chat.jsonl' is not one: leave it out"):
        parse_recipe(GOOD | {"data": {"chat": ["chat.jsonl"], "length": 64, key: "x"}}, "r")
    for sources, given in ((["hf:a/b"], {key: "x"}), (["chat.jsonl", "hf:a/b"], {key: "x"})):
        assert getattr(parse_recipe(GOOD | {"data": {"chat": sources, "length": 64, **given}}, "r").data, key) == "x"


def test_no_such_recipe():
    with pytest.raises(UserError, match="no recipe 'prolong': pass a YAML file, or one of lecture-length-512k, "):
        read_recipe("prolong")
