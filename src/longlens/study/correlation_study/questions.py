"""Creates questions on long texts, several per text, with right and wrong answers to choose from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from longlens.errors import UserError, shown_value
from longlens.settings.recipe import Integer, Name, Settings
from longlens.tasks import get_task
from longlens.tasks.base import Sample, Task, draws
from longlens.tasks.longeval import BASE_PREFIX, QUESTION
from longlens.tasks.ruler.variables import VariableTracking
from longlens.tasks.synthetic import NUM_DISTRACTORS, distinct, distractors, draw_number

if TYPE_CHECKING:
    from longlens.scoring.transformers import ContinuationScorer

CHANCE = 1 / (1 + NUM_DISTRACTORS)
_NEEDLE = re.compile(r"One of the special magic numbers for (\S+) is: (\d+)\.")
_LINE = re.compile(r"^line (\S+): REGISTER_CONTENT is <(\d+)>$", re.MULTILINE)
Count = Annotated[Integer, Field(ge=1)]


class TaskSettings(Settings):
    """A task at one length.

    Attributes:
        task: ``longeval_lines``, ``json_kv``, ``niah_multikey_1``, or another task with a single right answer.
        lines: Number of lines of ``longeval_lines``.
        length: Length of the other tasks, in tokens of each model's own tokenizer, as RULER counts them.
        texts: Number of different texts; the questions are distributed over them.
    """

    task: Name
    lines: Count | None = None
    length: Count | None = None
    texts: Count | None = None

    def make(self) -> Task:
        """The task."""
        if self.task == "longeval_lines":
            return get_task(self.task, lines=self.lines, answer_prefix=BASE_PREFIX)
        return get_task(self.task)


class Question(NamedTuple):
    """A question.

    Attributes:
        text: The text before the answer.
        target: The right answer, as the continuation of the text.
        choices: The answers to choose from, the right one first.
    """

    text: str
    target: str
    choices: tuple[str, ...]


def make_questions(settings: TaskSettings, *, count: int, seed: int, tokenizer: Any) -> list[list[Question]]:
    """Creates questions, grouped by text; the questions of one text have a common beginning.

    The first question of a text is that of the task's sample. The others ask for other lines (LongEval) or keys
    (json_kv, niah_multikey_1) of the same text, without replacement.

    Args:
        settings: Settings of the task.
        count: Total number of questions.
        seed: Seed of the samples.
        tokenizer: Tokenizer that counts tokens.

    Raises:
        UserError: The task has one question per text, and there are fewer texts than questions; or it has no single
            right answer, or no wrong answers.
    """
    task, texts = settings.make(), settings.texts or count
    if count % texts:
        raise UserError(f"{count} questions cannot be divided evenly among `texts={texts}`: use a divisor")
    found = []
    for number, sample in enumerate(task.build(length=settings.length, samples=texts, seed=seed, tokenizer=tokenizer)):
        rng = draws(task.name, seed, number, "questions")
        found.append(_questions(task, sample, count // texts, rng))
    return found


def _questions(task: Task, sample: Sample, count: int, rng: Random) -> list[Question]:
    before, answer = sample.prompt + sample.answer_prefix, sample.answers[0]
    if isinstance(task, VariableTracking):
        _check_single(task.name, count)
        return [_question(before, str(task.target(sample)), _other_names(sample.answers, rng))]
    if task.name == "longeval_lines":
        pairs, asked = _LINE.findall(sample.prompt), sample.metadata["asked"]
        draw = _number
    elif task.name == "json_kv":
        pairs = list(json.loads(sample.prompt[: sample.prompt.index("}") + 1]).items())
        asked = sample.prompt.rsplit("Key: ", 1)[1]
        draw = _uuid
    elif task.name == "niah_multikey_1":
        pairs = _NEEDLE.findall(sample.prompt)
        asked = next(key for key, value in pairs if value == answer)
        draw = draw_number
    else:
        _check_single(task.name, count)
        wrong = sample.metadata.get("distractors", ())
        target = task.target(sample)
        if target is None or len(wrong) < NUM_DISTRACTORS:
            raise UserError(f"{task.name} has no single right answer, or fewer than {NUM_DISTRACTORS} wrong ones")
        return [_question(before, target, [target.replace(answer, other) for other in wrong])]
    values, target = dict(pairs), str(task.target(sample))
    # The keys of json_kv's examples are listed after the object, with their values.
    shown = sample.prompt[sample.prompt.index("}") :] if task.name == "json_kv" else ""
    others = [key for key, _ in pairs if key != asked and key not in shown]
    if len(others) < count - 1:
        raise UserError(f"{task.name}: a text has {len(pairs)} values, and {count} questions are wanted: more `texts`")
    questions = []
    for key in [asked, *rng.sample(others, count - 1)]:
        value = values[key]
        made = distractors([v for v in values.values() if v != value], [value], rng, distinct(draw, rng))
        text = _ask(before, asked, key)
        own = target.replace(answer, value)
        questions.append(_question(text, own, [own.replace(value, other) for other in made["distractors"]]))
    return questions


def _ask(before: str, asked: str, key: str) -> str:
    """Returns the prompt with a different key in the question, which occurs once or twice after the text."""
    starts = (QUESTION.partition("{line}")[0], "\nWhat is the special magic ", "Key: ")
    place = max(before.rfind(start) for start in starts)
    return before[:place] + before[place:].replace(asked, key)


def _check_single(name: str, count: int) -> None:
    if count > 1:
        raise UserError(f"{name} asks one question of a text: leave `texts` out")


def _question(before: str, target: str, wrong: Sequence[str]) -> Question:
    """Creates a question. Blanks at the end of the prompt are moved to the answers, because a token may contain both.

    Choices of UUIDs end with their first group, in which all of them differ.
    """
    text = before.rstrip(" ")
    blanks = before[len(text) :]
    choices = tuple(blanks + choice.split("-")[0] for choice in (target, *wrong))
    if len(set(choices)) < len(choices):
        raise UserError(f"choices are alike: {shown_value(choices)}; use another seed")
    return Question(text, blanks + target, choices)


def _number(rng: Random) -> str:
    return str(rng.randint(1, 50000))


def _uuid(rng: Random) -> str:
    from longlens.tasks.synthetic import draw_uuid

    return draw_uuid(rng)


def _other_names(names: Sequence[str], rng: Random) -> list[str]:
    """Returns wrong answers to ``vt``: the list of names, with one name replaced by a new one."""
    drawn = distinct(lambda rng: "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=len(names[0]))), rng, set(names))
    lists = []
    for number in range(NUM_DISTRACTORS):
        place = number % len(names)
        lists.append(" " + " ".join([*names[:place], next(drawn), *names[place + 1 :]]))
    return lists


def ask(scorer: ContinuationScorer, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Scores a model's answers to questions with a common beginning.

    Returns:
        For each question ``exact``, whether greedy decoding generates the right answer; ``choices``, log-probabilities
        in nats, the right one first; ``target``, that of the whole right answer; and ``num_tokens`` before the answer.

    Raises:
        UserError: A token spans the boundary of prompt and answer.
    """
    from longlens.scoring.transformers import common_tokens

    prompts = [_encode(scorer.tokenizer, question.text) for question in questions]
    shared = common_tokens(prompts)
    rows, texts = [], [dict.fromkeys((question.target, *question.choices)) for question in questions]
    for question, ids, some in zip(questions, prompts, texts, strict=True):
        rows.append((ids[shared:], [_tail(scorer.tokenizer, question.text, ids, text) for text in some]))
    answers = scorer.branches(prompts[0][:shared], rows)
    found = []
    for question, ids, some, said in zip(questions, prompts, texts, answers, strict=True):
        by_text = dict(zip(some, said, strict=True))
        target, choices = by_text[question.target], [by_text[choice] for choice in question.choices]
        found.append(
            {
                "exact": target.is_greedy,
                "choices": [round(choice.logprob, 5) for choice in choices],
                "target": round(target.logprob, 5),
                "num_tokens": len(ids),
            }
        )
    return found


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _tail(tokenizer: Any, before: str, ids: Sequence[int], text: str) -> list[int]:
    whole = _encode(tokenizer, before + text)
    if whole[: len(ids)] != list(ids) or len(whole) == len(ids):
        raise UserError(
            f"{shown_value(text)} merges with the end of the prompt {shown_value(before[-20:])} into a token"
        )
    return whole[len(ids) :]


def accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns ``exact`` and ``choice``, from 0 to 1; a choice is right if it is the most likely one, without ties."""
    right = [all(row["choices"][0] > other for other in row["choices"][1:]) for row in rows]
    return {"exact": sum(row["exact"] for row in rows) / len(rows), "choice": sum(right) / len(rows)}
