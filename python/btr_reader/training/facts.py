"""A task that small readers learn from nothing in minutes: looking facts up in several passages, in all task formats.

Every question asks for one fact; one of its passages states it, the others state other facts about the same or similar
things. Names and values are English words, and which goes with which is drawn anew for every question: the answer can
only be read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from ..tasks import TaskName


def _words(text: str) -> list[str]:
    return text.split()


_ADJECTIVES = _words(
    "red old green quiet small northern golden broken early silver cold bright hidden narrow famous empty"
)
_PLACES = _words(
    "harbour bridge castle garden mill museum market station library temple village island valley forest river"
)
_ATTRIBUTES = _words("owner colour age price builder guard keeper symbol patron name material founder")
_VALUES = _words(
    "amber basil cedar daisy eagle fennel ginger hazel iris jasper kelp lemon maple nutmeg olive pepper quartz raven "
    "saffron tulip umber violet walnut yarrow zinc apple barley clover dove elm falcon grape heron ivory jade larch "
    "mint nickel onyx plum reed sable thyme topaz wheat wren"
)


def fact_questions(task: TaskName, count: int, passages: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Questions in Atlas' format of the task, with their passages.

    passages: how many come with a question; one holds the answer. The same arguments give the same questions.
    """
    if passages < 1:
        raise ValueError(f"passages must be at least 1, got {passages}")
    for number in range(count):
        draw = random.Random(f"{task} {seed} {number}")
        yield {"id": f"{task}-{seed}-{number}", **_question(task, f"{task}-{seed}-{number}", passages, draw)}


def fact_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Text with all words of the task, prompts included, for a tokenizer."""
    # Only pieces that occur in two words are learnt: every word also with a comma behind it.
    fixed = _words("what is the of The question title context options answer true false maybe A B C D")
    yield ", ".join([*fixed, *_ADJECTIVES, *_PLACES, *_ATTRIBUTES, *_VALUES]) + ","
    for task in ("nq", "fever", "mmlu"):
        for question in fact_questions(task, count, 3, seed):
            options = question.get("options", {})
            yield question.get("question") or question["claim"]
            yield f"question: title: context: options: answer: true false maybe {' '.join(options.values())}"
            yield " ".join(f"({letter}) {letter} {letter}" for letter in "ABCD")
            for passage in question["passages"]:
                yield f"{passage['title']} {passage['text']}"


def _question(task: TaskName, identifier: str, passages: int, draw: random.Random) -> dict[str, Any]:
    places = draw.sample([f"{a} {p}" for a in _ADJECTIVES for p in _PLACES], passages)
    attribute = draw.choice(_ATTRIBUTES)
    values = draw.sample(_VALUES, passages + 4)
    asked, answer = places[0], values[0]
    records = [
        {"id": f"{identifier}-{i}", "title": place, "text": f"The {attribute} of the {place} is {value} ."}
        for i, (place, value) in enumerate(zip(places, values, strict=False))
    ]
    draw.shuffle(records)
    question = f"what is the {attribute} of the {asked}"
    if task == "fever":
        label = draw.choice(["SUPPORTS", "REFUTES"])
        claimed = answer if label == "SUPPORTS" else values[-1]
        return {"claim": f"the {attribute} of the {asked} is {claimed}", "label": label, "passages": records}
    if task == "mmlu":
        texts = [answer, *values[-3:]]
        draw.shuffle(texts)
        options = dict(zip("ABCD", texts, strict=True))
        correct = next(letter for letter, text in options.items() if text == answer)
        return {"question": question, "options": options, "answer": correct, "passages": records}
    if task == "triviaqa":
        return {"question": question, "target": answer, "passages": records}
    return {"question": question, "answers": [answer], "passages": records}
