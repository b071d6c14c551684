"""A model that several processes share gives the scores of one process that has it alone."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

import longlens
from longlens.runs.processes import _shared_store
from longlens.settings.options import Loading
from tests.cli.conftest import run, work  # noqa: F401  # fixtures
from tests.tiny import byte_tokenizer, tiny_model
from tests.torchrun import processes, torchrun

FAMILIES = ["llama", "qwen3-tied", "gemma3", "mixtral"]
draw = np.random.default_rng(0)
TEXTS = ["".join(draw.choice(list("abc d\u00e9."), size=size)) for size in (150, 31, 90, 8, 120, 1, 60)]
SETTINGS = ["--context", "24,16", "--stride", "8", "--batch-tokens", "200", "--dtype", "float32"]
COMMANDS = """
# Each command in turn; what each printed goes to a file.
import contextlib, io, json, os, sys
from longlens.cli import main
ended = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    ended.append([code, out.getvalue(), err.getvalue()])
open(f"ended-{os.environ['RANK']}.json", "w").write(json.dumps(ended))
"""
KILLED = """
# A process is killed at its so many-th batch.
import os, signal
import longlens.runs.parts
longlens.runs.parts.PART_SECONDS = 0.0
from longlens.scoring.tensor_parallel import TeamScorer
score, left = TeamScorer._score, int(os.environ["LEFT"])
def dying(self, batch):
    global left
    left -= 1
    if os.environ["RANK"] == os.environ["KILLED"] and not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(self, batch)
TeamScorer._score = dying
from longlens.cli import main
raise SystemExit(main())
"""


# transformers looks for the accelerator that torch was built for, and fails where there is none.
needs_devices = pytest.mark.skipif(
    torch.accelerator.current_accelerator() is not None and not torch.accelerator.is_available(),
    reason="torch is built for a device that is not here: make test installs the CPU build",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and documents of unequal lengths with a run of each model in one process."""
    folder = tmp_path_factory.mktemp("teams")
    (folder / "docs.jsonl").write_text(
        "".join(json.dumps({"id": f"d{number}", "text": text}) + "\n" for number, text in enumerate(TEXTS))
    )
    (folder / "commands.py").write_text(COMMANDS)
    (folder / "killed.py").write_text(KILLED)
    for family in FAMILIES:
        # Two heads of keys: what two processes can share. Weights of half the size, which amplify rounding less.
        model = tiny_model(family, num_key_value_heads=2, num_attention_heads=4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        model.save_pretrained(folder / family)
        byte_tokenizer().save_pretrained(folder / family)
        score_alone(folder, family, folder / f"{family}-alone")
    return folder


def score_alone(folder, family, out):
    """With a model that one process has."""
    scorer = longlens.load_scorer(str(folder / family), dtype="float32", batch_tokens=200)
    documents = [longlens.Document(id=f"d{number}", text=text) for number, text in enumerate(TEXTS)]
    return longlens.score(documents, scorer, context=[24, 16], stride=8, out=out)


def check_same(folder, out, family):
    there, alone = longlens.open_scores(folder / out), longlens.open_scores(folder / f"{family}-alone")
    assert sorted(scores.id for scores in there) == sorted(scores.id for scores in alone)
    assert there.manifest["settings"] == alone.manifest["settings"]
    names = {"name": family, "source": there.manifest["model"]["source"]}
    assert there.manifest["model"] == alone.manifest["model"] | names
    expected = {scores.id: scores for scores in alone}
    for found in there:
        # Sums of two halves are rounded otherwise.
        np.testing.assert_allclose(found.long_logprobs, expected[found.id].long_logprobs, atol=2e-5)
        for context in (24, 16):
            one, other = (scores.at(context=context).short_logprobs for scores in (found, expected[found.id]))
            np.testing.assert_allclose(one, other, atol=2e-5)


def commands(folder, number, *calls):
    """Runs each call in turn as processes of one torchrun; ends with what each process printed."""
    ended = torchrun(number, "commands.py", json.dumps(calls), cwd=folder, LONGLENS_PLAIN="1")
    assert ended.code == 0, ended.err
    return [json.loads((folder / f"ended-{rank}.json").read_text()) for rank in range(number)]


@needs_devices
def test_two_processes_share_a_model(folder):
    calls = [
        ["score", "docs.jsonl", "--model", family, *SETTINGS, "--tensor-parallel", "2", "-o", family + "-two"]
        for family in FAMILIES
    ]
    # A run that one process goes on with, and two.
    calls += [
        ["score", "docs.jsonl", "--model", "llama", "--samples", "2", *SETTINGS, "--tensor-parallel", "2", "-o", "on"]
    ]
    printed = commands(folder, 2, *calls)
    for family, (code, out, err) in zip([*FAMILIES, "on"], printed[0], strict=True):
        assert code == 0, err
        assert out == ""
        assert f"next: longlens perplexity {family}{'' if family == 'on' else '-two'}" in err
    assert [(code, out, err) for code, out, err in printed[1]] == [(0, "", "")] * len(calls)
    for family in FAMILIES:
        check_same(folder, f"{family}-two", family)


@needs_devices
def test_teams_share_documents(folder):
    """Four processes are two teams of two; and it goes on where two processes had begun."""
    call = ["score", "docs.jsonl", "--model", "llama", *SETTINGS, "--tensor-parallel", "2", "-o", "on"]
    printed = commands(folder, 4, call)
    assert [one[0][0] for one in printed] == [0, 0, 0, 0], printed
    assert ["next: " in one[0][2] for one in printed] == [True, False, False, False]  # the first one says it
    check_same(folder, "on", "llama")
    ranks = {path.name.split("-")[1] for path in (folder / "on" / "long").glob("part-*.parquet")}
    assert ranks == {"00000", "00001"}


@needs_devices
def test_an_error_is_said_once_and_ends_all_processes(folder):
    call = ["score", "docs.jsonl", "--model", "llama", *SETTINGS, "--tensor-parallel", "2", "-o", "llama-alone/long"]
    ended = torchrun(2, "-m", "longlens", *call, cwd=folder)
    assert ended.code == 1
    assert len(ended.errors) == 1
    assert "is not empty and contains no run" in ended.errors[0]


@needs_devices
@pytest.mark.parametrize("killed", [0, 1])
def test_where_a_process_is_killed_the_other_one_ends(folder, killed):
    """By itself: here nothing ends it, as torchrun would. What was scored is kept."""
    out = f"killed-{killed}"
    call = ["score", "docs.jsonl", "--model", "llama", *SETTINGS, "--tensor-parallel", "2", "-o", out]
    begun = time.monotonic()
    ended = processes(2, "killed.py", *call, cwd=folder, has_agent=True, KILLED=str(killed), LEFT="5")
    assert time.monotonic() - begun < 100
    assert ended[killed].code == -signal.SIGKILL
    assert ended[1 - killed].code == 2
    (line,) = ended[1 - killed].errors
    assert line.startswith("error: no connection to the processes that share the model (")
    assert line.endswith("one of them has ended; run the same command again, it resumes from what is stored")
    assert "Traceback" not in ended[1 - killed].err
    assert longlens.open_scores(folder / out).ids
    alone = score_alone(folder, "llama", folder / out)
    assert len(alone) == len(TEXTS)
    check_same(folder, out, "llama")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model", "llama"],
            "--tensor-parallel is 2, which requires 2 processes of torchrun or a multiple, but there is 1:",
        ),
        (["--model", "llama", "--tensor-parallel", "0"], "--tensor-parallel is 0; expected at least 1"),
    ],
)
def test_without_torchrun(run, work, options, said):  # noqa: F811
    assert said in run("score", "a.txt", "--tensor-parallel", "2", "-o", "out", *options).error


@pytest.fixture
def led(monkeypatch):
    """As the first of two processes that torchrun started, which is refused before it waits for the other one."""
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **said}.items():
        monkeypatch.setenv(name, value)
    yield
    _shared_store.cache_clear()


def test_models_that_cannot_be_shared_are_refused_before_they_are_loaded(run, work, led, models):  # noqa: F811
    from longlens.models import UnloadedModel

    def refused(*options, processes=2):
        os.environ["WORLD_SIZE"] = str(processes)
        return run("score", "a.txt", "--tensor-parallel", processes, "-o", "out", *options).error

    tiny_model("gpt2").save_pretrained(work / "gpt2")
    byte_tokenizer().save_pretrained(work / "gpt2")
    assert "2: transformers has no tensor-parallel plan for GPT2Config: remove --tensor-parallel, or use" in refused(
        "--model", "gpt2"
    )
    assert "it has 4 num_attention_heads: use a divisor of it" in refused("--model", "llama", processes=3)
    assert "it is a .gguf file, which is read whole" in refused("--model", "smollm2")
    assert "--device would have no effect with --tensor-parallel" in refused("--model", "llama", "--device", "cpu")
    assert "--device-map would have no effect with --tensor-parallel" in refused(
        "--model", "llama", "--device-map", "auto"
    )
    with pytest.raises(longlens.UserError, match="`tensor_parallel` of transformers is for longlens score"):
        longlens.load_scorer("llama", tensor_parallel=2)
    assert UnloadedModel("llama", Loading()).team.size == 1


def test_longppl_names_the_way_in_two_steps(run, work, led):  # noqa: F811
    for model, evaluator in (("llama", "other"), ("http://127.0.0.1:9/v1#m", "llama")):
        error = run(
            "longppl", "a.txt", "--model", model, "--evaluator", evaluator, "--tensor-parallel", "2", "-o", "o"
        ).error
        assert "--tensor-parallel of transformers works only in longlens score" in error
