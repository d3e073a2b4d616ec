"""`btr extractive`: stores and answers of the encoder-only reader."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from .encode import outcome


def encode(
    passages: Positional[Path],
    /,
    reader: Path,
    out: Path,
    kind: Literal["binary", "float32"] = "binary",
    keep: float = 1.0,
    same_id_first: bool = False,
    passage_length: int = 128,
    shard_passages: int = 1024,
    batch_size: int = 32,
    device: str = "cpu",
) -> None:
    """Encodes a corpus into a store for an extractive reader, with the bits masked that it was trained without.

    Interrupted, it leaves a usable store; the same command continues it.

    Args:
        passages: Corpus in Atlas' format: one JSON object a line with id, title, text and optionally section.
        reader: Directory of an extractive reader, one that was trained on bits for binary stores.
        out: Store directory.
        kind: Bits (BTR), or the float states of a DeFormer reader.
        keep: Share of a passage's tokens kept; similar ones are merged.
        same_id_first: Merge tokens with equal vocabulary ids first, others only if that is not enough.
        passage_length: Tokens that a passage is cut to, end token included.
        shard_passages: Passages in a shard: what an interruption loses at most.
        batch_size: Passages encoded at once.
        device: cpu, cuda, or cuda with a number.
    """
    from ..devices import parse_device
    from ..encoding import PassageEncoder, encode_corpus
    from ..extractive.reader import load_extractive_reader

    if same_id_first and keep == 1:
        raise ValueError("--same-id-first says what is merged first, but nothing is: pass --keep below 1")
    loaded = load_extractive_reader(reader).to(parse_device(device))
    if kind == "binary" and loaded.code is None:
        raise ValueError(f"{reader}: was not trained on bits; make a store of --kind float32, or train it on them")
    encoder = PassageEncoder(loaded, kind, keep, passage_length, same_id_first=same_id_first)
    added = encode_corpus(encoder, passages, out, shard_passages=shard_passages, batch_size=batch_size)
    print(outcome(out, added))


def answer(
    reader: Path,
    questions: Path,
    out: Path,
    store: Path | None = None,
    passages: int = 10,
    passage_length: int = 128,
    keep_joint: float = 1.0,
    similarity: Literal["hamming", "keys"] = "hamming",
    answer_length: int = 30,
    batch_size: int = 8,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Answers questions with spans of their passages, and writes Atlas' results format, which `btr eval` scores.

    Args:
        reader: Directory of an extractive reader.
        questions: Questions in Atlas' format of natural questions, with the texts of their passages.
        out: Results file to write, one JSON object a line.
        store: Store that `btr extractive encode` made with this reader; without one the undecomposed reader answers.
        passages: Passages read per question, at most.
        passage_length: Tokens that a passage is cut to, where there is no store, which has a length of its own.
        keep_joint: Share of passage tokens kept in each joint layer.
        similarity: What makes tokens similar there: the signs of their states, or the layer's keys.
        answer_length: Tokens that an answer can have.
        batch_size: Questions read at once.
        device: cpu, cuda, or cuda with a number.
        resume: Continue a results file that was interrupted, with the same options (they are in OUT.options.json).
        overwrite: Replace a results file that exists.
    """
    from tqdm import tqdm

    from ..answering import form_of
    from ..devices import parse_device
    from ..extractive.answering import answers_in_order
    from ..extractive.examples import SpanBatches, read_span_examples
    from ..extractive.forward import ExtractiveModel
    from ..extractive.reader import load_extractive_reader
    from ..shares import Compression
    from ..store import Store
    from .resuming import ResultsFile, check_not_read, check_resumption, finished_lines

    if min(passages, answer_length, batch_size) < 1:
        raise ValueError(
            f"passages, answer_length and batch_size must be at least 1, got {passages}, {answer_length}, {batch_size}"
        )
    given = {"reader": reader, "questions": questions, "store": store, "passages": passages}
    given |= {"passage_length": passage_length, "keep_joint": keep_joint, "similarity": similarity}
    given |= {"answer_length": answer_length}
    check_not_read(out, questions=questions)
    done = finished_lines(out, resume, overwrite, given)
    loaded = load_extractive_reader(reader).to(parse_device(device))
    opened = None if store is None else Store(store)
    loaded.check_passage_length(passage_length if opened is None else opened.settings.passage_length)
    model = ExtractiveModel(loaded, form_of(opened), Compression(joint=keep_joint, similarity=similarity))
    examples = read_span_examples(questions)
    check_resumption(
        out,
        [(str(row.get("id")), str(row.get("query"))) for row in done],
        [(example.id, example.question) for example in examples],
    )
    batches = SpanBatches(
        examples, loaded.tokenizer, batch_size=batch_size, passages=passages,
        passage_length=passage_length if opened is None else opened.settings.passage_length,
        query_length=loaded.query_length,
    )  # fmt: skip
    answers = answers_in_order(model, batches, answer_length, opened, len(done))
    shown = {"desc": f"answer ({model.form})", "unit": " questions", "total": len(examples), "initial": len(done)}
    with ResultsFile(out, done, given) as results_file:
        for example, found in tqdm(answers, **shown):
            results_file.write({
                "id": example.id, "query": example.question, "answers": example.answers, "generation": found,
                "passages": [{"id": passage.id} for passage in example.passages[:passages]],
            })  # fmt: skip
    print(f"{out}: {len(examples)} results")
