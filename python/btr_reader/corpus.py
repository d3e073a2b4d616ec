"""Real English text that every Python installation has: the reference topics of `pydoc`, as an Atlas corpus.

A fresh machine has no corpus. The language reference that ships with Python (`pydoc_data.topics`, about 0.5 to 0.7 MB
of prose, tables and code) is one that needs no download: it is the default text of the benchmark and of the examples.
"""

from __future__ import annotations

import pydoc_data.topics
import re
from pathlib import Path
from typing import Any

from .jsonl import write_jsonl

# Atlas' Wikipedia passages are 100 words long.
PASSAGE_WORDS = 100
# Passages listed with every question: the one that holds the answer and those that follow it in the corpus.
PASSAGES_PER_QUESTION = 5

_UNDERLINE = re.compile(r"^[*=\-^~\"]{3,}$")
_QUOTED = re.compile(r'"([^"\n]{2,30})"')
_SENTENCE_END = re.compile(r"(?<=[.:])\s+")


def topic_passages(words: int = PASSAGE_WORDS) -> list[dict[str, str]]:
    """The reference topics cut into passages of at most `words` words: `[{"id", "title", "section", "text"}]`.

    `title` is the topic's heading, `section` the heading of the part that the passage is from.
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    passages = []
    for name, topic in sorted(pydoc_data.topics.topics.items()):
        title = name
        for depth, (heading, body) in enumerate(_sections(topic)):
            if depth == 0 and heading:
                title = heading
            section = "" if heading == title else heading
            tokens = body.split()
            for start in range(0, len(tokens), words):
                identifier = f"{name}-{len(passages)}"
                text = " ".join(tokens[start : start + words])
                passages.append({"id": identifier, "title": title, "section": section, "text": text})
    return passages


def _sections(topic: str) -> list[tuple[str, str]]:
    """Splits a topic at its underlined headings: `[(heading, body)]`; the text before the first has heading ''."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in topic.split("\n"):
        if _UNDERLINE.match(line.strip()) and sections[-1][1] and sections[-1][1][-1].strip():
            heading = sections[-1][1].pop().strip()
            sections.append((heading, []))
        else:
            sections[-1][1].append(line)
    return [(heading, "\n".join(lines)) for heading, lines in sections if "".join(lines).strip()]


def cloze_questions(passages: list[dict[str, str]], limit: int = 500) -> list[dict[str, Any]]:
    """Fill-in questions over the passages, in Atlas' question format with passages.

    A sentence that quotes a term ("else") becomes the question with the term blanked out; the term is the answer. At
    most one question a passage, at most `limit` in all, evenly spread over the corpus.
    """
    found = []
    for index, passage in enumerate(passages):
        for sentence in _SENTENCE_END.split(passage["text"]):
            quoted = _QUOTED.search(sentence)
            if quoted and 6 <= len(sentence.split()) <= 40:
                found.append((index, sentence, quoted))
                break
    step = max(1, -(-len(found) // limit))
    questions = []
    for index, sentence, quoted in found[::step]:
        blanked = sentence[: quoted.start()] + '"____"' + sentence[quoted.end() :]
        questions.append(
            {
                "id": f"q-{passages[index]['id']}",
                "question": f"which term fills the blank: {blanked}",
                "answers": [quoted.group(1)],
                "passages": passages[index : index + PASSAGES_PER_QUESTION],
            }
        )
    return questions


def make_corpus(out: str | Path, questions: int = 500) -> tuple[int, int]:
    """Writes `passages.jsonl` and `questions.jsonl` into the directory `out`; returns how many of each."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    passages = topic_passages()
    return (
        write_jsonl(out / "passages.jsonl", passages),
        write_jsonl(out / "questions.jsonl", cloze_questions(passages, questions)),
    )
