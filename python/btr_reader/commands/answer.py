"""`btr answer`: questions over a store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from ..shares import Compression, preset_with
from .retrieve import DEFAULT_RETRIEVAL, RetrievalOptions


@dataclass
class ReadingOptions:
    """How questions are read; shared by `btr answer` and `btr eval`."""

    form: Literal["auto", "atlas", "deformer", "btr"] = "auto"
    """Form of the reader; auto takes the one that the store is for, atlas without a store."""
    passages: int = 40
    """Passages read per question, at most."""
    max_new_tokens: int = 32
    """Tokens generated, at most."""
    preset: Literal["none", "paper", "aggressive"] = "none"
    """Shares of passage tokens kept in the joint layers and for the decoder."""
    keep_joint: float | None = None
    """Share of passage tokens kept in each joint layer, instead of the preset's."""
    keep_decoder: float | None = None
    """Share of those left that the decoder attends to, instead of the preset's."""
    similarity: Literal["hamming", "keys"] = "hamming"
    """What tokens are merged by while reading: signs of the states, or keys of the attention."""
    linears: Literal["float", "int8"] = "float"
    """Projections of floats; int8 is faster on a CPU and less exact."""
    device: str = "cpu"
    """cpu, cuda, or cuda with a number."""
    text_length: int = 200
    """Tokens of query and passage together, where atlas reads texts that come with the questions."""
    permutations: Literal["none", "cyclic", "all"] = "none"
    """Orders in which the options of a multiple-choice question are asked."""
    batch_size: int = 1
    """Questions read at once."""
    skip_missing: bool = False
    """Leave out passages that are not in the store, and count them, instead of stopping."""
    resume: bool = False
    """Continue a results file that was interrupted, with the same options (they are in OUT.options.json)."""
    overwrite: bool = False
    """Replace a results file that exists."""

    @property
    def compression(self) -> Compression:
        """The preset with the shares that were given by themselves."""
        return preset_with(self.preset, joint=self.keep_joint, decoder=self.keep_decoder, similarity=self.similarity)


DEFAULT_READING = ReadingOptions()
# Options that say how results are come by, and not what they are.
_HOW = ("device", "batch_size", "resume", "overwrite")


def answer(
    reader: Path,
    questions: Path,
    out: Path,
    store: Path | None = None,
    task: Literal["nq", "triviaqa", "webq", "fever", "mmlu"] = "nq",
    options: OmitArgPrefixes[ReadingOptions] = DEFAULT_READING,
    retrieval: OmitArgPrefixes[RetrievalOptions] = DEFAULT_RETRIEVAL,
) -> None:
    """Answers questions over passages that they list or that are retrieved for them, and writes Atlas' results format.

    Args:
        reader: Reader directory.
        questions: Questions in Atlas' format of the task. Their field passages lists ids in the store, or objects with
            an id; without a store (atlas) these need their text. For questions without it passages are retrieved.
        out: Results file to write, one JSON object a line.
        store: Store that btr encode made with this reader.
        task: Format of the questions.
        options: Options of reading.
        retrieval: Options of retrieval.
    """
    import itertools

    from tqdm import tqdm

    from ..answering import Answerer, check_store, form_of, given_passages
    from ..devices import parse_device
    from ..engine import ReaderEngine
    from ..reader import load_reader
    from ..store import Store
    from ..tasks import read_questions
    from .resuming import ResultsFile, check_not_read, check_resumption, finished_lines

    if options.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {options.batch_size}")
    if options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {options.max_new_tokens}")
    given = {"reader": reader, "questions": questions, "store": store, "task": task}
    given |= {name: value for name, value in asdict(options).items() if name not in _HOW} | asdict(retrieval)
    check_not_read(out, questions=questions)
    done = finished_lines(out, options.resume, options.overwrite, given)
    loaded = load_reader(reader).to(parse_device(options.device))
    opened = None if store is None else Store(store)
    if opened is not None:
        check_store(opened, loaded)
    form = form_of(opened) if options.form == "auto" else options.form
    engine = ReaderEngine(loaded, form, options.compression, linears=options.linears)
    answerer = Answerer(
        engine, opened, options.max_new_tokens, options.passages, options.text_length, options.skip_missing
    )
    asked = list(read_questions(questions, task, loaded.tokenizer, options.permutations))
    check_resumption(
        out,
        [(str(row.get("id")), str(row.get("query"))) for row in done],
        [(question.id, question.query) for question in asked],
    )
    remaining = itertools.islice(asked, len(done), None)
    retriever = retrieval.open()
    if retriever is None:
        for question in asked:
            given_passages(question)
    else:
        from ..retrieval import with_passages

        remaining = with_passages(remaining, retriever, options.passages, retrieval.retrieve)
    results = answerer.answer(remaining, options.batch_size)
    with ResultsFile(out, done, given) as results_file:
        for result in tqdm(results, desc=f"answer ({form})", unit=" questions", total=len(asked), initial=len(done)):
            results_file.write(result)
    print(f"{out}: {len(asked)} results")
    if answerer.missing_passages:
        print(f"warning: {answerer.missing_passages} passages are not in the store and were left out")
    if answerer.unanswered:
        print(f"warning: {answerer.unanswered} questions had no passage left and got an empty answer")
