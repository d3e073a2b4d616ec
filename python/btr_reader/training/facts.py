"""A task that small readers learn from nothing in minutes: looking facts up in several passages, in all task formats.

Every question asks for one fact, which one of its passages states. The others are what BM25 finds beside it: facts
about the same thing, about things of a similar name, or of the same kind. Names and values are English words. Facts
come in worlds that do not contradict themselves, and every world draws which value goes with what anew: the answer can
only be read.

In MMLU's format the options of a letter are all of one kind, so that the letter follows from the value that is found:
small readers do not learn which letter stands in front of an option (benchmarks/notes/facts.md).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..passages import Passage
from ..tasks import TaskName

# Facts of a world: enough that every question has distractors about the same thing, its name and its attribute.
WORLD = 200


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
# The values in kinds: animals, plants, stones and colours, food.
_KINDS = [
    _words("dove eagle falcon heron raven sable wren"),
    _words("cedar clover daisy elm hazel iris larch maple reed tulip violet walnut"),
    _words("amber ivory jade jasper nickel onyx quartz topaz umber zinc"),
    _words(
        "apple barley basil fennel ginger grape kelp lemon mint nutmeg olive pepper plum saffron thyme wheat yarrow"
    ),
]


@dataclass(frozen=True)
class _Fact:
    identifier: str
    attribute: str
    place: str
    value: str

    @property
    def asked(self) -> str:
        return f"the {self.attribute} of the {self.place}"

    @property
    def passage(self) -> Passage:
        return Passage(self.identifier, self.place, f"The {self.attribute} of the {self.place} is {self.value} .")


def fact_questions(
    task: TaskName, count: int, passages: int, seed: int = 0, drawn: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Questions in Atlas' format of the task, with their passages.

    passages: how many come with a question, 1 to half of `WORLD`. One holds the answer, but for a third of FEVER's
    claims, on which the passages say nothing. drawn: the share of the other passages that are drawn from their world
    instead of being found by BM25, which is easier and where readers begin to learn. The same arguments give the same
    questions.

    >>> question = next(fact_questions("nq", 1, 3))
    >>> question["question"], question["answers"]  # doctest: +SKIP
    ('what is the age of the cold mill', ['dove'])
    """
    if not 1 <= passages <= WORLD // 2:
        raise ValueError(f"passages must be in 1..{WORLD // 2}, got {passages}")
    if not 0 <= drawn <= 1:
        raise ValueError(f"drawn must be in 0..1, got {drawn}")
    for start in range(0, count, WORLD):
        yield from _world(task, min(WORLD, count - start), passages, drawn, f"{task}-{seed}-{start // WORLD}")


def fact_corpus(questions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The passages of questions, each once."""
    return list({passage["id"]: passage for question in questions for passage in question["passages"]}.values())


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


def _world(task: TaskName, count: int, passages: int, drawn: float, name: str) -> Iterator[dict[str, Any]]:
    from ..retrieval.bm25 import Bm25Retriever

    draw = random.Random(name)
    stated = draw.sample([(a, f"{b} {c}") for a in _ATTRIBUTES for b in _ADJECTIVES for c in _PLACES], WORLD)
    facts = [_Fact(f"{name}-{i}", *what, draw.choice(_VALUES)) for i, what in enumerate(stated)]
    ranked = Bm25Retriever([fact.passage for fact in facts], progress=False).rank(
        [fact.asked for fact in facts[:count]], passages + 1
    )
    for fact, ranking in zip(facts, ranked, strict=False):
        found = [facts[position] for position, _ in ranking if facts[position] is not fact and draw.random() >= drawn]
        rest = draw.sample([other for other in facts if other is not fact and other not in found], passages)
        yield {"id": fact.identifier, **_question(task, fact, [*found, *rest][:passages], draw)}


def _question(task: TaskName, fact: _Fact, others: list[_Fact], draw: random.Random) -> dict[str, Any]:
    """others: as many distractors as there are passages, the best first."""
    read = [fact, *others[:-1]]
    # Values that the passages hold, so that they have to be read, and not only searched for a value.
    wrong = [value for value in dict.fromkeys(other.value for other in others) if value != fact.value]
    wrong += draw.sample([value for value in _VALUES if value != fact.value and value not in wrong], 3)
    asked: dict[str, Any] = {"question": f"what is {fact.asked}", "answers": [fact.value]}
    if task == "fever":
        label = draw.choice(["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"])
        value = wrong[0] if label == "REFUTES" else fact.value
        if label == "NOT ENOUGH INFO":
            read = others
        asked = {"claim": f"{fact.asked} is {value}", "label": label}
    elif task == "mmlu":
        texts = [fact.value, *wrong, *draw.sample(_VALUES, len(_VALUES))]
        options = {letter: next(t for t in texts if t in kind) for letter, kind in zip("ABCD", _KINDS, strict=True)}
        asked = {"question": asked["question"], "options": options}
        asked["answer"] = next(letter for letter, text in options.items() if text == fact.value)
    elif task == "triviaqa":
        asked = {"question": asked["question"], "target": fact.value}
    read = draw.sample(read, len(read))
    records = [{"id": other.identifier, "title": other.place, "text": other.passage.text} for other in read]
    return {**asked, "passages": records}
