"""lm-evaluation-harness's own tasks, on rows written for these tests in the schemas of the hub's data sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from scipy.stats import binomtest

from longlens.bench.engine import EngineSettings, prompt_tokens
from longlens.bench.lm_eval import tasks as adapter
from longlens.bench.lm_eval.backends import open_engine
from longlens.bench.run import run_bench
from longlens.bench.selection import HARNESS, select_tasks
from longlens.bench.table import results_table
from longlens.errors import UserError
from longlens.runs.identity import canonical_sha256
from tests.bench.conftest import CHAT
from tests.bench.fakes import bench_settings, rows
from tests.tiny import byte_tokenizer

TASKS = Path(lm_eval.__file__).parent / "tasks"
LETTERS = "ABCD"


def arc_row(number, text="", choices=4):
    texts = [f"{place} {number}" for place in ("mill", "harbour", "well", "tower")[:choices]]
    return {
        "id": f"q{number}",
        "question": f"{text}Where does keeper {number} wait?",
        "choices": {"text": texts, "label": list(LETTERS[:choices])},
        "answerKey": LETTERS[number % choices],
    }


def gsm_row(number, text=""):
    return {"question": f"{text}What is {number} and 1?", "answer": f"It is one more. #### {number + 1}"}


def write_set(folder, name, configs):
    """A data set as the hub's: files of rows, and a README that says which is which."""
    place = folder / name
    place.mkdir(parents=True)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, found in splits.items():
            lines += [f"  - split: {split}", f"    path: {config}-{split}.jsonl"]
            (place / f"{config}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (place / "README.md").write_text("\n".join([*lines, "---", "# rows"]))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    arc = {split: [arc_row(number) for number in range(4)] for split in ("train", "validation", "test")}
    write_set(folder, "allenai/ai2_arc", {"ARC-Challenge": arc, "ARC-Easy": arc})
    gsm = {"train": [gsm_row(n) for n in range(10, 16)], "test": [gsm_row(n) for n in range(3)]}
    write_set(folder, "openai/gsm8k", {"main": gsm})
    return folder


@pytest.fixture(autouse=True)
def small(tmp_path_factory, monkeypatch):
    """A folder for what `datasets` caches, and an index of two folders of tasks, since the whole one takes seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    index_only(monkeypatch, "arc", "gsm8k")


def index_only(monkeypatch, *folders):
    def manager(metadata):
        return TaskManager(
            include_path=[str(TASKS / name) for name in folders], include_defaults=False, metadata=metadata
        )

    monkeypatch.setattr(adapter, "TaskManager", manager)


class Counting:
    """The real engine, which writes down what it is asked, and fails after so many answers where told so."""

    def __init__(self, fails_after=None):
        self.asked, self.fails_after = [], fails_after

    def __call__(self, settings, texts):
        made = open_engine(settings, texts)
        ask = made.ask

        def counting(kind, asked, take):
            def taken(key, *answer):
                if self.fails_after is not None and len(self.asked) >= self.fails_after:
                    raise RuntimeError("out of memory")
                self.asked.append((kind, *asked[key]))
                take(key, *answer)

            ask(kind, asked, taken)

        made.ask = counting
        return made


def bench(model, folder, hub, *tasks, engine=None, engine_settings=None, **changes):
    settings = {"few_shot": 1, "settings": {"data_dir": str(hub)}} | changes
    made = EngineSettings(**{"model": model, "batch_size": 4} | (engine_settings or {}))
    return run_bench(made, bench_settings(tasks=tasks, **settings), folder, open_engine=engine or Counting())


def known(folder):
    return {row["key"]: row["answer"] for row in rows(folder, "harness") if row["kind"] == "answer"}


def test_all_names_are_those_of_the_pinned_version():
    names = TaskManager().all_tasks
    assert [name for task in HARNESS.values() for name in task.task.split(",") if name not in names] == []


def test_any_name_of_the_harness_may_be_given():
    (found,) = select_tasks(["lm_eval:arc_easy"]).harness
    assert (found.name, found.task, found.few_shot) == ("lm_eval:arc_easy", "arc_easy", None)
    with pytest.raises(UserError, match=r"no task or suite 'lm_eval:'"):
        select_tasks(["lm_eval:"])


def folder_names(folder):
    """The configurations that tasks of a folder name."""
    found = [
        re.search(r'^"?dataset_name"?: *"?(\w+)', path.read_text(), re.MULTILINE) for path in folder.glob("*.yaml")
    ]
    return sorted({name[1] for name in found if name})


def splits(*found):
    return {name: list(found) for name in ("train", "validation", "test")}


MMLU = {"question": "Which is it?", "subject": "x", "choices": ["mill", "well", "tower", "yard"], "answer": 2}
PROBLEM = {"question": "Where is the keeper?", "options": ["mill", "well", "tower", "yard"], "answer": "B"}
COMMON = {
    "id": "a",
    "question": "Where does a keeper wait?",
    "question_concept": "keeper",
    "choices": {"label": list("ABCDE"), "text": ["mill", "well", "tower", "yard", "sea"]},
    "answerKey": "A",
}
TRUTH = {"choices": ["Nothing happens.", "You fall ill.", "You grow."], "labels": [1, 0, 0]}
HELLA = {
    "ind": 1,
    "activity_label": "Sweeping",
    "ctx_a": "A keeper takes a broom.",
    "ctx_b": "he",
    "ctx": "A keeper takes a broom. he",
    "endings": ["sweeps the yard.", "eats it.", "sings [title] on.", "sleeps."],
    "source_id": "a",
    "split": "val",
    "split_type": "indomain",
    "label": "0",
}
WINO = {
    "sentence": "Ada gave Ben the key because _ had to leave.",
    "option1": "Ada",
    "option2": "Ben",
    "answer": "1",
}
# Task -> its folder in lm-evaluation-harness, its data set, and its rows in the hub's schema: configuration -> split.
SETS = {
    "mmlu": ("mmlu/default", "cais/mmlu", lambda names: {name: {"test": [MMLU], "dev": [MMLU]} for name in names}),
    "arc_challenge": ("arc", "allenai/ai2_arc", lambda _: {"ARC-Challenge": splits(arc_row(1), arc_row(2))}),
    "race": (
        "race",
        "EleutherAI/race",
        lambda _: {"high": {"test": [{"article": "Long.", "problems": str([PROBLEM])}]}},
    ),
    "bbh": (
        "bbh/cot_fewshot",
        "SaylorTwift/bbh",
        lambda names: {name: {"test": [{"input": f"Is it {name}?", "target": "Yes"}]} for name in names},
    ),
    "truthfulqa": (
        "truthfulqa",
        "truthfulqa/truthful_qa",
        lambda _: {
            "multiple_choice": {
                "validation": [{"question": "What if one eats seeds?", "mc1_targets": TRUTH, "mc2_targets": TRUTH}]
            }
        },
    ),
    "commonsense_qa": (
        "commonsense_qa",
        "tau/commonsense_qa",
        lambda _: {"default": splits(COMMON, {**COMMON, "question": "Where is it wet?"})},
    ),
    "hellaswag": (
        "hellaswag",
        "Rowan/hellaswag",
        lambda _: {"default": splits(HELLA, {**HELLA, "ctx_a": "A dog runs."})},
    ),
    "winogrande": (
        "winogrande",
        "allenai/winogrande",
        lambda _: {"winogrande_xl": splits(WINO, {**WINO, "sentence": "Ada saw Ben as _ left."})},
    ),
    "gsm8k": ("gsm8k", "openai/gsm8k", lambda _: {"main": {"train": [gsm_row(1)], "test": [gsm_row(2)]}}),
    "babilong": (
        "babilong",
        "RMT-team/babilong-1k-samples",
        lambda _: {
            "1k": {
                f"qa{n}": [{"input": f"Ada went to the mill {n}.", "question": "Where is Ada?", "target": "mill"}]
                for n in range(1, 6)
            }
        },
    ),
}


@pytest.mark.parametrize("name", HARNESS)
def test_each_task_that_we_name_runs_on_rows_in_the_schema_of_the_hub(name, model, tmp_path, monkeypatch):
    folder, dataset, configs = SETS[name]
    index_only(monkeypatch, folder)
    write_set(tmp_path, dataset, configs(folder_names(TASKS / folder)))
    engine, task = Counting(), HARNESS[name]
    found = bench(
        model,
        tmp_path / "run",
        tmp_path,
        name,
        engine=engine,
        few_shot=0 if name == "bbh" else task.few_shot and 1,  # its examples are 3,000 tokens here
        lengths=[1024] if task.by_length else [],
        engine_settings={"batch_size": 32},
    )["harness"]
    (result,) = found.values()
    assert result["results"][task.task][FILTERED.get(name, task.metric)]["score"] >= 0
    assert len(result["num_samples"]) == {"mmlu": 57, "bbh": 27, "babilong": 5}.get(name, 1)
    assert len(engine.asked) >= len(result["num_samples"])
    if name == "babilong":  # of the folder, not of the hub
        assert all(any(f"the mill {n}." in asked[1] for asked in engine.asked) for n in range(1, 6))


FILTERED = {"bbh": "exact_match (get-answer)", "gsm8k": "exact_match (strict-match)"}


def test_choices_are_scored_as_by_hand(model, tmp_path, hub):
    engine = Counting()
    result = bench(model, tmp_path / "run", hub, "arc_challenge", engine=engine)["harness"]["arc_challenge"]
    # One example from the train split, in the words of the harness's YAML.
    contexts = sorted({asked[1] for asked in engine.asked})
    assert len(contexts) == 4
    answers = known(tmp_path / "run")
    right, right_by_length = 0, 0
    for number in range(4):
        row = arc_row(number)
        (context,) = [text for text in contexts if text.endswith(f"\n\nQuestion: {row['question']}\nAnswer:")]
        assert context.startswith("Question: Where does keeper")
        found = [
            answers[canonical_sha256(["loglikelihood", context, f" {text}"])][0] for text in row["choices"]["text"]
        ]
        by_length = [value / len(text) for value, text in zip(found, row["choices"]["text"], strict=True)]
        gold = LETTERS.index(row["answerKey"])
        right += found.index(max(found)) == gold
        right_by_length += by_length.index(max(by_length)) == gold
    scores = result["results"]["arc_challenge"]
    assert scores["acc"]["score"] == pytest.approx(25 * right)
    assert scores["acc_norm"]["score"] == pytest.approx(25 * right_by_length)
    assert (result["few_shot"], result["num_samples"]) == (
        {"arc_challenge": 1},
        {"arc_challenge": {"original": 4, "effective": 4}},
    )
    assert (result["metric"], result["num_cut"], result["length"]) == ("acc_norm", 0, None)


def test_an_interval_of_right_and_wrong_answers_is_wilsons(model, tmp_path, hub):
    results = bench(model, tmp_path / "run", hub, "arc_challenge")
    found = results["harness"]["arc_challenge"]["results"]["arc_challenge"]["acc"]
    wilson = binomtest(round(found["score"] / 25), 4).proportion_ci(method="wilson")
    assert found["interval"] == pytest.approx([100 * wilson.low, 100 * wilson.high])
    (row,) = [row for row in results_table({"run": results}).rows if row[2] == "acc"]
    assert row[:2] == ["arc_challenge", ""]
    assert row[3].startswith(f"{found['score']:.1f} [")


def test_texts_are_greedy_and_scored(model, tmp_path, hub):
    engine = Counting()
    results = bench(model, tmp_path / "run", hub, "gsm8k", engine=engine, samples=2)
    assert [asked[0] for asked in engine.asked] == ["generate_until"] * 2
    _, context, options = engine.asked[0]
    assert context.count("#### ") == 1  # one example
    assert (options["do_sample"], options["repetition_penalty"]) == (False, 1.0)
    assert "Question:" in options["until"]
    scores = results["harness"]["gsm8k"]["results"]["gsm8k"]
    assert set(scores) == {"exact_match (strict-match)", "exact_match (flexible-extract)"}
    json.dumps(results, allow_nan=False)
    again = Counting()
    assert bench(model, tmp_path / "run", hub, "gsm8k", engine=again, samples=2) == results
    assert again.asked == []


def test_nothing_is_asked_twice_after_a_crash(model, tmp_path, hub):
    failing, after, nobody = Counting(fails_after=5), Counting(), Counting()
    with pytest.raises(UserError, match="the model could not answer: out of memory: the same command resumes"):
        bench(model, tmp_path / "run", hub, "arc_challenge", engine=failing)
    assert len(known(tmp_path / "run")) == 5
    results = bench(model, tmp_path / "run", hub, "arc_challenge", engine=after)
    asked = [tuple(one[1:]) for one in failing.asked + after.asked]
    assert len(asked) == len(set(asked)) == 16
    assert len(failing.asked) == 5
    undisturbed = bench(model, tmp_path / "other", hub, "arc_challenge")
    assert results["harness"] == undisturbed["harness"]
    bench(model, tmp_path / "run", hub, "arc_challenge", engine=nobody)
    assert nobody.asked == []


def test_more_samples_and_our_own_tasks_may_be_added(model, tmp_path, hub):
    engine = Counting()
    first = bench(model, tmp_path / "run", hub, "arc_challenge", engine=engine, samples=1)
    assert first["harness"]["arc_challenge"]["results"]["arc_challenge"]["acc"]["interval"] is None
    json.dumps(first, allow_nan=False)
    both = bench(model, tmp_path / "run", hub, "longeval_lines", "arc_challenge", samples=3, lengths=[800])
    assert both["harness"]["arc_challenge"]["num_samples"]["arc_challenge"]["effective"] == 3
    assert both["tasks"]["longeval_lines-800-42"]["num_samples"] == 3
    assert len(known(tmp_path / "run")) == 12


def test_a_tag_is_all_of_its_tasks(model, tmp_path, hub):
    results = bench(model, tmp_path / "run", hub, "lm_eval:ai2_arc", samples=2)["harness"]["lm_eval:ai2_arc"]
    assert set(results["results"]) == {"arc_easy", "arc_challenge"}


def long_hub(folder, number=1):
    arc = {split: [arc_row(n, "Much is said. " * 40 * (n == number)) for n in range(3)] for split in ("train", "test")}
    write_set(folder, "allenai/ai2_arc", {"ARC-Challenge": arc | {"validation": arc["test"]}})
    gsm = {"train": [gsm_row(9)], "test": [gsm_row(n, "Much is said. " * 40 * (n == number)) for n in range(3)]}
    write_set(folder, "openai/gsm8k", {"main": gsm})
    return folder


LIMIT = {"max_length": 400}


@pytest.mark.parametrize("task", ["arc_challenge", "gsm8k"])
def test_a_prompt_too_long_is_an_error(model, tmp_path, task):
    engine = Counting()
    message = rf"a prompt of {task} has \d+ tokens, but only \d+ are available: set `overlong` to middle or left"
    with pytest.raises(UserError, match=message):
        bench(model, tmp_path / "run", long_hub(tmp_path), task, engine=engine, engine_settings=LIMIT, few_shot=0)
    assert engine.asked == []


@pytest.mark.parametrize("policy", ["middle", "left"])
@pytest.mark.parametrize(("task", "prompts"), [("arc_challenge", 4), ("gsm8k", 1)])
def test_prompts_are_shortened_only_where_that_is_asked_for(model, tmp_path, log, task, prompts, policy):
    engine = Counting()
    results = bench(
        model,
        tmp_path / "run",
        long_hub(tmp_path),
        task,
        engine=engine,
        engine_settings=LIMIT,
        few_shot=0,
        overlong=policy,
    )
    assert results["harness"][task]["num_cut"] == prompts
    assert log == [f"{task}: {prompts} prompts were too long and were truncated"]
    question = "Much is said. " * 40 + ("Where does keeper 1 wait?" if task == "arc_challenge" else "What is 1 and 1?")
    whole = f"Question: {question}\nAnswer:"
    cut = [asked for asked in engine.asked if "Much is said" in asked[1]]
    assert len(cut) == prompts
    for _, prompt, other in cut:
        more = len(other.encode()) if isinstance(other, str) else 256
        kept = LIMIT["max_length"] - more - 1  # BOS
        half = kept // 2
        assert prompt == (whole[len(whole) - kept :] if policy == "left" else whole[:half] + whole[len(whole) - half :])
    untouched = [asked[1] for asked in engine.asked if "Much is said" not in asked[1]]
    assert all(prompt.startswith("Question: W") and prompt.endswith("\nAnswer:") for prompt in untouched)


def test_chat_models_get_their_template_when_asked_for(chat_model, tmp_path, hub):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    for template, is_chat in (("auto", False), ("chat", True)):
        engine = Counting()
        bench(chat_model, tmp_path / template, hub, "gsm8k", engine=engine, samples=1, template=template)
        (_, prompt, _), *_ = engine.asked
        text = getattr(prompt, "prompt", prompt)
        assert ("[assistant]" in text) == is_chat
        assert prompt_tokens(tokenizer, text).count(256) <= 2
        if is_chat:
            assert text.count("[user]") == 2  # the example, and the question


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("lm_eval:nosuch", {}, "lm-evaluation-harness has no task 'nosuch': see lm_eval ls tasks"),
        ("gsm8k", {"settings": {"data_dir": "nowhere"}}, "'nowhere' has no folder openai/gsm8k: it needs a copy of"),
        (
            "gsm8k",
            {"lengths": [1024]},
            "gsm8k has prompts of one length, which `lengths` does not change: leave it out",
        ),
        (
            "lm_eval:arc_easy",
            {"lengths": [1024]},
            "lm_eval:arc_easy has prompts of one length, which `lengths` does not",
        ),
        (
            "babilong",
            {"lengths": [1024, 3000]},
            "babilong has no data of length 3000: pass `lengths` with some of 1024,",
        ),
    ],
)
def test_what_cannot_be_run_is_one_line(model, tmp_path, hub, task, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        bench(model, tmp_path / "run", hub, task, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "folder", "settings", "message"),
    [
        # Its task imports a module that transformers no longer has.
        (
            "scrolls_quality",
            "scrolls",
            {},
            r"0\.4\.13 cannot run it: .*transformers\.data\.metrics.*: check the columns",
        ),
        # It gives datasets features in a form that they do not take.
        (
            "infinitebench_passkey",
            "infinitebench",
            None,
            r"0\.4\.13 cannot run it: .*: check the columns of the folders",
        ),
    ],
)
def test_a_task_that_the_installed_packages_cannot_run_is_not_blamed_on_the_network(
    name, folder, settings, message, model, tmp_path, monkeypatch
):
    index_only(monkeypatch, folder)
    write_set(tmp_path, "xinrongzhang2022/InfiniteBench", {"default": {"passkey": [{"id": 1}]}})
    given = {"data_dir": str(tmp_path)} if settings is None else settings
    with pytest.raises(UserError, match=message) as caught:
        bench(model, tmp_path / "run", tmp_path, f"lm_eval:{name}", settings=given)
    assert "network" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_network_keeps_back_is_said(model, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UserError, match=r"gsm8k: cannot get its data \(Couldn't reach .*\): check the network, or pass"
    ):
        bench(model, tmp_path / "run", tmp_path, "gsm8k", settings={})


def test_a_finished_task_is_not_run_again_and_git_is_not_asked(model, hub, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    results = bench(model, tmp_path / "run", hub, "gsm8k", samples=2)
    assert "fatal" not in capfd.readouterr().err

    def never(*args):
        pytest.fail("the model was loaded")

    assert bench(model, tmp_path / "run", hub, "gsm8k", samples=2, engine=never) == results
    again = Counting()
    bench(model, tmp_path / "run", hub, "gsm8k", samples=3, engine=again)
    assert len(again.asked) == 1


def test_data_of_another_schema_is_one_line(model, tmp_path):
    write_set(tmp_path, "openai/gsm8k", {"other": {"test": [gsm_row(1)]}})
    with pytest.raises(
        UserError, match=r"lm-evaluation-harness 0\.4\.13 cannot run it: .*main.*: check the columns"
    ) as caught:
        bench(model, tmp_path / "run", tmp_path, "gsm8k")
    assert "\n" not in str(caught.value)
    wrong = tmp_path / "wrong"
    write_set(wrong, "openai/gsm8k", {"main": {"train": [{"a": "b"}], "test": [{"a": "b"}]}})
    for text in (None, '{"question": '):
        if text is not None:
            (wrong / "openai" / "gsm8k" / "main-test.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"cannot run it: .*: check the columns of the folders in") as caught:
            bench(model, tmp_path / "again", wrong, "gsm8k", few_shot=0)
        assert "\n" not in str(caught.value)


def test_rows_are_those_of_the_folder_as_it_is_now(model, tmp_path):
    """`datasets` would give those of any folder of that name, or of before a change."""
    prompts = []
    for folder, number in (("a", 3), ("b", 4), ("a", 5)):
        if not (tmp_path / folder).exists():
            write_set(tmp_path / folder, "openai/gsm8k", {"main": {"train": [], "test": []}})
        for split in ("train", "test"):
            (tmp_path / folder / "openai" / "gsm8k" / f"main-{split}.jsonl").write_text(json.dumps(gsm_row(number)))
        engine = Counting()
        bench(model, tmp_path / f"run{number}", tmp_path / folder, "gsm8k", engine=engine, few_shot=0)
        prompts += [asked[1] for asked in engine.asked]
    assert prompts == [f"Question: What is {number} and 1?\nAnswer:" for number in (3, 4, 5)]


def test_too_few_examples_are_one_line(model, tmp_path, hub):
    with pytest.raises(UserError, match=r"cannot run it: .*: check the columns of the folders in"):
        bench(model, tmp_path / "run", hub, "gsm8k", few_shot=50, samples=1)
