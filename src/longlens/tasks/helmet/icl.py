"""Builds HELMET's many-shot ICL: assign a text the number of its class, which hundreds of examples show.

Tasks: ``helmet_trec_coarse``, ``helmet_trec_fine``, ``helmet_banking77``, ``helmet_clinic150`` and ``helmet_nlu``.
Paper: HELMET, arXiv 2410.02694. Prompt, balancing and metric: ``load_icl`` in data.py of princeton-nlp/HELMET at
4526dfb, MIT; settings: configs/icl.yaml, scripts/generate_configs.py. Data: files of the user, with the fields of the
Hub's datasets; BANKING77 and NLU are CC BY 4.0, CLINC150 is CC BY 3.0, TREC has no stated license. Classes are
integers, drawn again for each sample, so that only the examples show their meaning. Examples come in rounds: each round
has one of every class, in random order; all texts of a class are used before one is repeated. Metric: ``exact_match``
of the text after ``label:``. Known differences:

- Unless ``shots`` is set, there are as many examples as fit into the length, with at least one of each class; HELMET
  has fixed numbers, fitted with Llama 2's tokenizer (`SHOTS`).
- Random numbers are those of longlens, and so is NLU's test set, a tenth of its one file.
- A reply ends at the first line end, see `longlens.tasks.helmet.rag`; both score only that line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from random import Random
from typing import NamedTuple

from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task, check_least, draws
from longlens.tasks.data import DataFile, FolderTask
from longlens.tasks.fitting import UNBOUNDED, Draft, Plan, TokenCounter
from longlens.tasks.helmet.base import by_length, split_prefix
from longlens.tasks.synthetic import distractors, starts_of

INSTRUCTION = (  # data.py, load_icl, its blank before the line end included
    'Use the provided mapping from the text to label to assign a label to the text. Only output "label: {label}" and '
    "nothing else. \n\n"
)
PREFIX = "\nlabel:"
# generate_configs.py, icl_*: "name_postfix"
SHOTS = {
    "helmet_trec_coarse": by_length(200, 400, 800, 1600, 3300, 6600),
    "helmet_trec_fine": by_length(200, 400, 800, 1600, 3200, 6400),
    "helmet_banking77": by_length(180, 360, 720, 1450, 2900, 5900),
    "helmet_clinic150": by_length(220, 440, 880, 1750, 3525, 7050),
    "helmet_nlu": by_length(250, 510, 1020, 2040, 4080, 8296),
}
"""HELMET's number of examples by nominal length: ``get_task("helmet_nlu", shots=SHOTS["helmet_nlu"][131072])``."""


class LabeledText(NamedTuple):
    """A text and its class."""

    text: str
    label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledSet:
    """A dataset of texts with classes.

    Attributes:
        folder: Directory of its files in the user's directory.
        hub: Its name on the Hub.
        field: Field of a row that contains the class.
        labels: Number of classes, some of which may have no text.
        test: The split from which questions are taken; if empty, a tenth of the only split.
    """

    folder: str
    hub: str
    field: str
    labels: int
    test: str

    def file(self, split: str) -> DataFile:
        """The file of a split."""
        return DataFile(
            names=(f"{self.folder}/{split}.jsonl", f"{self.folder}/{split}.parquet"),
            source=f"the Hub dataset {self.hub}, split {split}",
            schema=f"rows with a text and {self.field}, an integer from 0 to {self.labels - 1}",
        )


# data.py, load_icl
TREC_COARSE = LabeledSet(folder="trec", hub="CogComp/trec", field="coarse_label", labels=6, test="test")
TREC_FINE = LabeledSet(folder="trec", hub="CogComp/trec", field="fine_label", labels=50, test="test")
BANKING77 = LabeledSet(folder="banking77", hub="PolyAI/banking77", field="label", labels=77, test="test")
CLINIC150 = LabeledSet(folder="clinc_oos", hub="clinc_oos, subset plus", field="intent", labels=151, test="validation")
NLU = LabeledSet(
    folder="nlu_evaluation_data", hub="xingkunliuxtracta/nlu_evaluation_data", field="label", labels=68, test=""
)


class LabeledSplit(NamedTuple):
    """Texts from which examples are drawn, the questions in order, and the description of the files."""

    train: Mapping[int, Sequence[str]]
    test: Sequence[LabeledText]
    described: dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class ManyShot(FolderTask):
    """Classification of texts from examples.

    Attributes:
        labeled: The data.
        shots: Number of examples, whatever their tokens, as in HELMET; by default as many as fit into the length.
    """

    name: str
    labeled: LabeledSet
    shots: int | None = None

    suite = "helmet"
    category = "icl"
    metric = "exact_match"
    max_new_tokens = 20  # icl.yaml: generation_max_length
    default_samples = 500  # icl.yaml: max_test_samples: 500
    stop = ("\n",)  # icl.yaml: stop_new_line: true
    template = "none"  # icl.yaml: use_chat_template: false
    overlong = "context-only"  # model_utils.py, tokenize: the context loses its end

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, shots=1)

    @property
    def fills(self) -> bool:  # type: ignore[override]
        """True unless the number of examples is set."""
        return self.shots is None

    @property
    def unit_tokens(self) -> int:
        """Maximum size of an example: that of the longest one."""
        return max(len(one.text.encode()) for one in self._train) + len(f"\n\n{PREFIX} {self.labeled.labels}")

    def split(self, seed: int) -> LabeledSplit:
        """The data. The seed determines the order of the test set, and for NLU also its content.

        Raises:
            UserError: A file is missing, or has another schema.
        """
        if seed not in self._splits:
            self._splits[seed] = self._draw_split(draws(self.name, seed, 0, "split"))
        return self._splits[seed]

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random examples and random numbers for the classes."""
        split = self.split(seed)
        file = split.described.get(self.labeled.test, split.described["train"])["file"]
        self.check_index(index, len(split.test), file, "texts to ask")
        return _Examples(self, split, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the number after ``label:`` is the class."""
        # eval.py, run_test: without a chat template the answer prefix is put before the output
        parsed = metrics.parse_output(PREFIX.strip() + prediction, PREFIX.strip())
        return {"exact_match": metrics.exact_match(parsed, sample.answers)}

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The files of the examples and, if there is one, of the test split."""
        return tuple(self.labeled.file(split) for split in ("train", self.labeled.test) if split)

    @cached_property
    def _splits(self) -> dict[int, LabeledSplit]:
        return {}

    @cached_property
    def _train_file(self) -> tuple[list[LabeledText], dict[str, str]]:
        return self._examples("train")

    @property
    def _train(self) -> list[LabeledText]:
        return self._train_file[0]

    @cached_property
    def _test_file(self) -> tuple[list[LabeledText], dict[str, str]]:
        return self._examples(self.labeled.test)

    def _examples(self, split: str) -> tuple[list[LabeledText], dict[str, str]]:
        file = self.labeled.file(split)
        rows, described = file.rows(self.name, self.data_dir)
        examples = []
        for number, row in enumerate(rows, start=1):
            place = f"{described['file']}, row {number}"
            label = file.get(row, self.labeled.field, int, place)
            if not 0 <= label < self.labeled.labels:
                raise file.wrong(place, f"{self.labeled.field} is {label}")
            examples.append(LabeledText(file.get(row, "text", str, place), label))
        return examples, described

    def _draw_split(self, rng: Random) -> LabeledSplit:
        train, described = self._train_file
        if self.labeled.test:
            test, test_described = self._test_file
            files = {"train": described, self.labeled.test: test_described}
        else:
            mixed = rng.sample(train, len(train))
            cut = -(-len(mixed) // 10)  # train_test_split(test_size=0.1): the test set is rounded up
            test, train, files = mixed[:cut], mixed[cut:], {"train": described}
        if len(test) > self.default_samples:  # load_icl balances the test set only if it has to omit some texts
            order = list(islice(chain.from_iterable(rounds(by_label(test), rng)), len(test)))
        else:
            order = rng.sample(test, len(test))
        return LabeledSplit(by_label(train), order, files)


TASKS: dict[str, Callable[..., Task]] = {
    "helmet_trec_coarse": partial(ManyShot, labeled=TREC_COARSE),
    "helmet_trec_fine": partial(ManyShot, labeled=TREC_FINE),
    "helmet_banking77": partial(ManyShot, labeled=BANKING77),
    "helmet_clinic150": partial(ManyShot, labeled=CLINIC150),
    "helmet_nlu": partial(ManyShot, labeled=NLU),
}


def by_label(examples: Sequence[LabeledText]) -> dict[int, list[str]]:
    """Texts by class, without classes that have none."""
    grouped: dict[int, list[str]] = {}
    for text, label in sorted(examples, key=lambda one: one.label):
        grouped.setdefault(label, []).append(text)
    return grouped


def rounds(texts: Mapping[int, Sequence[str]], rng: Random) -> Iterator[list[LabeledText]]:
    """Endless rounds of one example per class, in random order; texts of a class repeat only after all were used."""
    left: dict[int, list[str]] = {label: [] for label in texts}
    while True:
        one_each = []
        for label, own in texts.items():
            if not left[label]:
                left[label] = rng.sample(own, len(own))
            one_each.append(LabeledText(left[label].pop(), label))
        rng.shuffle(one_each)
        yield one_each


class _Examples(Plan):
    def __init__(self, task: ManyShot, split: LabeledSplit, key: tuple[str, int, int]) -> None:
        self._split, self._key = split, key
        self._asked = split.test[key[2]]
        self._numbers = list(range(task.labeled.labels))
        draws(*key, "labels").shuffle(self._numbers)
        self._source = chain.from_iterable(rounds(split.train, draws(*key, "examples")))
        self._drawn: list[LabeledText] = []
        self.minimum = len(split.train) if task.shots is None else task.shots
        self.maximum = UNBOUNDED if task.shots is None else task.shots

    def _draw(self, examples: int) -> list[LabeledText]:
        self._drawn += islice(self._source, max(0, examples - len(self._drawn)))
        return self._drawn[:examples]

    def _shown(self, example: LabeledText) -> str:
        return f"{example.text}{PREFIX} {self._numbers[example.label]}"

    def unit(self, index: int) -> str:
        return f"\n\n{self._shown(self._draw(index + 1)[index])}"

    def draft(self, units: int) -> Draft:
        examples = self._draw(units)
        shown = [self._shown(one) for one in examples]
        context = "\n\n".join(shown)
        answer = str(self._numbers[self._asked.label])
        ends = [
            len(INSTRUCTION) + start + len(text)
            for start, text, one in zip(starts_of(shown, "\n\n"), shown, examples, strict=True)
            if one.label == self._asked.label
        ]
        prompt, prefix = split_prefix(f"{INSTRUCTION}{context}\n\n{self._asked.text}", PREFIX)
        numbers = [str(self._numbers[one.label]) for one in examples]
        return Draft(
            prompt=prompt,
            answer_prefix=prefix,
            answers=[answer],
            answer_spans=[(end - len(answer), end) for end in ends],
            context_span=(len(INSTRUCTION), len(INSTRUCTION) + len(context)),
            metadata={
                "shots": units,
                "data": self._split.described,
            }
            | distractors(numbers, [answer], draws(*self._key, "distractors"), map(str, self._numbers)),
        )
