"""Atlas readers (fusion-in-decoder on T5 v1.1) over binary passage tokens.

Where things are:

    passages, tasks, corpus, jsonl    input formats; metrics, evaluation: scores
    tokenizer, settings, model        vocabulary, shapes and cut, weights; reader: all three in a directory
    attention, states, encoder        the encoder in all its forms; decoder: greedy answers; engine: both together
    linears, graphs, devices          what they run on: libraries of the projections, captured decoder steps
    shares, compression, cosine       merging of similar tokens: how many, and how
    encoding, offline_merging, store  the offline part and what it writes; answering: questions over a store
    retrieval                         passages for questions: BM25, dense and binary indexes
    token_statistics, codebooks       what masked bits and codebooks are made of
    recoding, storage_comparison      the ways to compress a store side by side
    atlas_checkpoint                  original checkpoints
    training                          teacher, DeFormer and BTR students
    benchmark                         end-to-end throughput
    cli, commands                     the command `btr`

The names below are imported on first use, so that `btr --help` does not wait for torch.

>>> import btr_reader  # doctest: +SKIP
>>> reader = btr_reader.load_reader("reader/")  # doctest: +SKIP
>>> store = btr_reader.Store("store/")  # doctest: +SKIP
>>> engine = btr_reader.ReaderEngine(reader, "btr", btr_reader.PRESETS["paper"])  # doctest: +SKIP
>>> query = reader.tokenizer.encode("question: who wrote hamlet answer: <extra_id_0>")  # doctest: +SKIP
>>> ids = engine.generate(btr_reader.pad_queries([query]), engine.fetch(store, [["p1", "p2"]]), 32)  # doctest: +SKIP
>>> reader.tokenizer.decode(ids[0])  # doctest: +SKIP
'william shakespeare'
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "BinaryRetriever": "retrieval",
    "Bm25Retriever": "retrieval",
    "Compression": "shares",
    "DenseRetriever": "retrieval",
    "PRESETS": "shares",
    "PassageEncoder": "encoding",
    "Reader": "reader",
    "ReaderEngine": "engine",
    "ReaderSettings": "settings",
    "ReaderTokenizer": "tokenizer",
    "Store": "store",
    "TextEncoder": "retrieval",
    "TokenStatistics": "token_statistics",
    "Trainer": "training.loop",
    "TrainingSettings": "training.settings",
    "build_index": "retrieval",
    "calibrate": "token_statistics",
    "calibrate_residual_scale": "encoding",
    "compare_storage": "storage_comparison",
    "convert_atlas": "atlas_checkpoint",
    "encode_corpus": "encoding",
    "evaluate_file": "evaluation",
    "load_reader": "reader",
    "open_index": "retrieval",
    "pad_passages": "batches",
    "pad_queries": "batches",
    "random_reader": "reader",
    "read_examples": "training.examples",
    "read_passages": "passages",
    "read_questions": "tasks",
    "run_benchmark": "benchmark.run",
    "t5_config": "settings",
    "with_passages": "retrieval",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
