"""What a judge is asked where HELMET asks one: prompts of our own.

They ask for what scripts/eval_gpt4_longqa.py and scripts/eval_gpt4_summ.py of princeton-nlp/HELMET at 4526dfb ask
for, on the same scales and under the same keys of a JSON object, in other words and with other examples; scores by them
are not HELMET's. Its own prompts may take their place, see `longlens.tasks.helmet.judging`.
"""

from __future__ import annotations

ANSWER = """You grade an answer to a question about a story. You do not have the story. You have answers that are known
to be right: compare with them.

Give two marks.

fluency, 0 or 1:
1 - readable and grammatical, and says its thing once. A word or a phrase is enough.
0 - garbled, broken off before it answers, or says the same over again (in other words too), however right it is.

correctness, 0 to 3:
0 - agrees with none of the right answers.
1 - agrees with one of them in part: of two things asked for, one is right and the other is wrong or missing.
2 - says what one of them says, and also something that has nothing to do with the question.
3 - says what one of them says, and all else in it is to the point. It may be longer, or in other words.

Examples, for the question "Where does Tomas hide the letter, and from whom?" and the right answers
['in the clock, from his aunt']:
"He puts it in the clock, where his aunt will not look." {"fluency": 1, "correctness": 3}
"In the clock, from the mayor." {"fluency": 1, "correctness": 1}
"The clock, from his aunt. The clock, from his aunt. The clock, from his aunt." {"fluency": 0, "correctness": 3}

Give your reasons first, in a few sentences. Then end with one JSON object such as {"fluency": 1, "correctness": 2}.

Question: {question}
Right answers: {correct_answers}
Answer: {parsed_output}
"""

FLUENCY = """You check how a text reads. Whether it is true does not matter here.

fluency, 0 or 1:
1 - connected and grammatical, and does not repeat itself. If only its last sentence breaks off, it is still 1.
0 - garbled or without connection, or says the same over again (in other words too), or is empty or a mere beginning.

Examples:
"The mill burns down. Ada leaves the valley and finds work at the harbour, where she meets her bro" {"fluency": 1}
"The mill burns down. A fire takes the mill. The mill is lost in a fire. Flames destroy the mill." {"fluency": 0}
"Summary: the mill mill of of of" {"fluency": 0}

Answer with one JSON object such as {"fluency": 1}.

Text:
<text>
{text}
</text>
"""


def _recall(of: str, counts: str, example: str) -> str:
    return f"""You check what a summary of {of} leaves out. You get key points by number, and then the summary.

A key point counts if {counts}. It does not count if the
summary leaves it out, only hints at it, or says otherwise. Go by the summary alone, not by what you may know from
elsewhere.

recall: how many key points count.

Example. Key points:
{example}

Take the key points one by one, with a short reason for each. Then end with one JSON object such as
{{"supported_key_points": [2, 4], "recall": 2}}, whose recall is the length of the list.

Key points:
{{keypoints}}

<summary>
{{summary}}
</summary>
"""


def _precision(of: str, details: str, more: str, example: str) -> str:
    return f"""You check a summary of {of} against one that an expert wrote. Take it sentence by sentence.

A sentence is supported if what it mainly says is in the expert's summary. Details that the expert leaves out, such as
{details}, do no harm. A sentence is not supported if a main thing that it
says is missing there, or if the expert says otherwise.{more}

sentence_count: how many sentences the summary has, one that breaks off at its end among them.
precision: how many of them are supported.

Example. Expert's summary: {example}

Take the sentences one by one, with a short reason for each. Then end with one JSON object such as
{{"precision": 2, "sentence_count": 3}}.

<expert_summary>
{{expert_summary}}
</expert_summary>

<summary>
{{summary}}
</summary>
"""


_BOOK_RECALL = """1. Ada inherits a mill from her uncle.
2. The mill burns down in its first winter, and Ada sells the land to a neighbour.
3. Ada finds out that her brother set the fire, and forgives him.
Summary: "Ada comes into her uncle's mill, but loses it in a fire before spring. She leaves the valley."
1 is there. Most of 2 is there. 3 is not. {"supported_key_points": [1, 2], "recall": 2}"""
_CASE_RECALL = """1. Tenants of a city sued its housing office over lead in the water.
2. They asked the court to order new pipes.
3. The parties settled in May 2011.
Summary: "Tenants sued the housing office of their city because there was lead in their water. In May 2011 the parties
settled, which a judge approved."
1 and 3 are there. 2 is not: it does not say what they asked for. {"supported_key_points": [1, 3], "recall": 2}"""
_BOOK_PRECISION = """"Ada inherits her uncle's mill, which burns down in the first winter. Years later she learns that
her brother did it, and forgives him."
Summary: "In the spring of 1911 Ada Lund inherits a mill. It is sold to pay a debt. The story is about forgiveness."
1 is supported, whatever the year. 2 is not, the mill burns down. 3 is not, it comments on the story.
{"precision": 1, "sentence_count": 3}"""
_CASE_PRECISION = """"Tenants sued the city's housing office over lead in the water. They asked for new pipes. The
parties settled in 2011, and the office replaced the pipes."
Summary: "Four tenants, among them Bo Rask, sued the housing office because of lead. A jury found for the office. The"
1 is supported, though the expert has no names. 2 is not, they settled. 3 breaks off and says nothing.
{"precision": 1, "sentence_count": 3}"""

PROMPTS: dict[str, str] = {
    "narrativeqa": ANSWER,
    "infbench_sum_fluency": FLUENCY,
    "infbench_sum_recall": _recall(
        "a novel", "the summary says it; of one that says several things, most are enough", _BOOK_RECALL
    ),
    "infbench_sum_precision": _precision(
        "a novel",
        "dates, names or places",
        " Nor is it if it discusses the story or comments on it where the expert does not.",
        _BOOK_PRECISION,
    ),
    "multi_lexsum_fluency": FLUENCY,
    "multi_lexsum_recall": _recall("a lawsuit", "the summary says all of it, in whatever words", _CASE_RECALL),
    "multi_lexsum_precision": _precision(
        "a lawsuit", "dates, names, or what laws and earlier cases are called", "", _CASE_PRECISION
    ),
}
"""By the name that a file of the user's has."""
