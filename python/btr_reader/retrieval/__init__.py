"""Retrieval: the passages of a corpus that a reader is to read for a question.

retriever        what all retrievers share; bm25: lexical; vectors: dense and binary
text_encoder     texts to vectors with a local Hugging Face encoder
index            building an index directory and opening it; manifest, shards: its files
questions        questions of a file and the passages retrieved for them
"""

from .bm25 import Bm25Retriever
from .index import build_index, open_index
from .manifest import KINDS, Kind, Similarity
from .questions import fill_passages, recall, with_passages
from .retriever import Retriever
from .text_encoder import TextEncoder
from .vectors import BinaryRetriever, DenseRetriever, read_vectors

__all__ = [
    "KINDS",
    "BinaryRetriever",
    "Bm25Retriever",
    "DenseRetriever",
    "Kind",
    "Retriever",
    "Similarity",
    "TextEncoder",
    "build_index",
    "fill_passages",
    "open_index",
    "read_vectors",
    "recall",
    "with_passages",
]
