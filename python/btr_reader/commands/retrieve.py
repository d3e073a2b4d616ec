"""`btr retrieve`: questions with the passages retrieved for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

if TYPE_CHECKING:
    from ..retrieval import Retriever


@dataclass
class RetrievalOptions:
    """Where passages are retrieved from; shared by `btr retrieve`, `btr answer` and `btr eval`."""

    index: Path | None = None
    """Index that btr index made."""
    corpus: Path | None = None
    """Corpus to index by its words (BM25) in memory, in place of an index."""
    retriever_model: Path | None = None
    """Directory of the encoder that a dense or binary index was made with."""
    retrieve: Literal["missing", "always", "more"] = "missing"
    """Retrieve for questions without passages, in place of those that questions bring, or as many more as are read."""
    rerank: int = 1000
    """Passages of a binary index that are ranked by the question's float vector; 0 ranks by Hamming distance."""
    faiss: str | None = None
    """Search a dense or binary index approximately, with a faiss index built in memory: HNSW32, or BHNSW32 for bits."""

    def open(self) -> Retriever | None:
        """The retriever asked for; None where there is neither an index nor a corpus."""
        if self.index is not None and self.corpus is not None:
            raise ValueError("pass --index or --corpus, not both")
        if self.index is None and (self.retriever_model is not None or self.faiss is not None):
            raise ValueError("--retriever-model and --faiss go with a dense or binary --index")
        if self.index is None and self.corpus is None:
            if self.retrieve != "missing":
                raise ValueError(f"--retrieve {self.retrieve} needs --index or --corpus to retrieve from")
            return None

        from ..passages import read_passages
        from ..retrieval import Bm25Retriever, open_index

        if self.index is None:
            return Bm25Retriever(list(read_passages(self.corpus)))
        return open_index(self.index, encoder=self.retriever_model, rerank=self.rerank, faiss=self.faiss)


DEFAULT_RETRIEVAL = RetrievalOptions()
_RETRIEVE_ALWAYS = RetrievalOptions(retrieve="always")


def retrieve(
    questions: Path,
    out: Path,
    passages: int = 40,
    question_vectors: Path | None = None,
    retrieval: OmitArgPrefixes[RetrievalOptions] = _RETRIEVE_ALWAYS,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes questions with the passages retrieved for them, in Atlas' format, to be read by btr answer.

    Where questions bring passages of their own that are replaced, it reports how often one of them was found (recall).

    Args:
        questions: Questions in Atlas' format of any task.
        out: Questions file to write.
        passages: Passages per question.
        question_vectors: File of the questions' vectors (.npy or .safetensors) in their order, in place of an encoder.
        retrieval: Options of retrieval.
        resume: Continue a file that was interrupted, with the same options (they are in OUT.options.json).
        overwrite: Replace a file that exists.
    """
    from tqdm import tqdm

    from ..jsonl import read_jsonl
    from ..retrieval import fill_passages, read_vectors, recall
    from ..tasks import passage_records, search_text
    from .resuming import ResultsFile, check_not_read, check_resumption, finished_lines

    given = {"questions": questions, "passages": passages, "question_vectors": question_vectors, **asdict(retrieval)}
    if passages < 1:
        raise ValueError(f"passages must be at least 1, got {passages}")
    check_not_read(out, questions=questions)
    done = finished_lines(out, resume, overwrite, given)
    asked = list(read_jsonl(questions))
    if not asked:
        raise ValueError(f"{questions}: the file has no questions")
    check_resumption(
        out,
        [(str(row.get("id")), search_text(row, str(out))) for row in done],
        [(str(row.get("id")), search_text(row, where)) for where, row in asked],
    )
    retriever = retrieval.open()
    if retriever is None:
        raise ValueError("pass --index or --corpus to retrieve from")
    vectors = None if question_vectors is None else read_vectors(question_vectors)
    filled = fill_passages(questions, retriever, passages, retrieval.retrieve, vectors=vectors, start=len(done))
    found = [[passage["id"] for passage in row["passages"]] for row in done]
    with ResultsFile(out, done, given) as results_file:
        for row in tqdm(filled, desc="retrieve", unit=" questions", total=len(asked), initial=len(done)):
            found.append([passage["id"] for passage in row["passages"]])
            results_file.write(row)
    print(f"{out}: {len(found)} questions")
    empty = sum(not ids for ids in found)
    if empty:
        print(f"warning: nothing was found for {empty} questions")
    if retrieval.retrieve == "always":
        given = [[p["id"] for p in passage_records(row, where) or []] for where, row in asked]
        shares = recall(given, found, [k for k in (1, 5, 10, 20, 40, 100) if k <= passages])
        if shares:
            print("one of its own passages is found, of all questions that bring any:")
            print("  ".join(f"recall@{k} {100 * share:.1f}%" for k, share in shares.items()))
