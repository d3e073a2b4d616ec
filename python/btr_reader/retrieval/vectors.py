"""Dense and binary retrieval: by the inner product of vectors, or by the Hamming distance of their signs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import btr_kernels

from ..files import map_tensors
from ..linears import float_product
from ..passages import Passage
from .retriever import Ranking, Retriever, best, ranking
from .text_encoder import TextEncoder

# Passages that the signs propose for one question; those found are the best of them by the float query. BPR's number.
RERANKED = 1000


class VectorRetriever(Retriever):
    """What dense and binary retrieval share: vectors of the questions, and an approximate search in their place.

    encoder: makes the vectors of questions that come as texts. normalize: questions are scaled to length 1.
    """

    def __init__(self, passages: Sequence[Passage], channels: int, encoder: TextEncoder | None, normalize: bool):
        super().__init__(passages)
        if encoder is not None and encoder.channels != channels:
            raise ValueError(f"encoder has {encoder.channels} channels, but the index {channels}")
        self._channels = channels
        self._encoder = encoder
        self._normalize = normalize

    def _vectors(self, questions: Sequence[str] | np.ndarray) -> Tensor:
        if not isinstance(questions, np.ndarray):
            if self._encoder is None:
                raise ValueError(
                    "a dense or binary index finds passages by vectors: pass the encoder that it was made with "
                    "(--retriever-model), or the questions' vectors (btr retrieve --question-vectors)"
                )
            questions = self._encoder.encode(list(questions))
        if questions.ndim != 2 or questions.shape[1] != self._channels:
            raise ValueError(f"questions: expected vectors (m, {self._channels}), got {questions.shape}")
        return torch.from_numpy(normalized(questions) if self._normalize else questions.astype(np.float32))


class DenseRetriever(VectorRetriever):
    """Every passage by the inner product of its vector with the question's.

    vectors: float32 `(n_i, d)` of the passages in order, in one or more parts (they may be mapped from disk: a batch of
    questions reads each once). faiss: a factory string such as `HNSW32` of `faiss.index_factory`: an approximate index
    is built over them in memory instead, which needs faiss-cpu.

    >>> corpus = [Passage("1", "", "x"), Passage("2", "", "y")]
    >>> DenseRetriever(corpus, [np.eye(2, dtype=np.float32)]).rank(np.array([[0.2, 0.9]], np.float32), 1)[0][0][0]
    1
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        vectors: Sequence[np.ndarray],
        *,
        encoder: TextEncoder | None = None,
        normalize: bool = True,
        faiss: str | None = None,
    ):
        super().__init__(passages, vectors[0].shape[1], encoder, normalize)
        _check_rows(passages, vectors)
        self._parts = [torch.from_numpy(part) for part in vectors]
        self._faiss = None if faiss is None else _faiss_index(faiss, vectors, self._channels, binary=False)

    @torch.inference_mode()
    def rank(self, questions: Sequence[str] | np.ndarray, k: int) -> list[Ranking]:
        vectors = self._vectors(questions)
        if self._faiss is not None:
            return [_sorted(*found) for found in zip(*self._faiss.search(vectors.numpy(), k), strict=True)]
        found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in vectors]
        start = 0
        for part in self._parts:
            for scores, (positions, values) in zip(float_product(vectors, part), found, strict=True):
                highest = best(scores, k)
                positions.append(highest + start)
                values.append(scores[highest])
            start += len(part)
        return [_top(torch.cat(positions), torch.cat(values), k) for positions, values in found]


class BinaryRetriever(VectorRetriever):
    """Passages as signs of their vectors: 1 bit a channel, 32 times smaller than floats.

    bits: uint8 `(n, ceil(channels / 8))` in the bit order of `btr_kernels`, pad bits zero. The `rerank` passages
    nearest by Hamming distance are ranked by the inner product of the question's float vector with their signs, as in
    BPR (Yamada et al., 2021, arXiv 2106.00882); 0 ranks by the Hamming distance alone. The score is the inner product
    with the signs, of the float vector or of the question's own signs. faiss: a factory string such as `BHNSW32` of
    `faiss.index_binary_factory`, for an approximate search in memory.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        bits: Tensor,
        channels: int,
        *,
        encoder: TextEncoder | None = None,
        normalize: bool = True,
        rerank: int = RERANKED,
        faiss: str | None = None,
    ):
        super().__init__(passages, channels, encoder, normalize)
        if rerank < 0:
            raise ValueError(f"rerank must be at least 0, got {rerank}")
        if bits.dtype != torch.uint8 or bits.shape != (len(passages), -(-channels // 8)):
            raise ValueError(
                f"bits must be uint8 ({len(passages)}, {-(-channels // 8)}), got {bits.dtype} {tuple(bits.shape)}"
            )
        self._bits = bits
        self._rerank = rerank
        self._faiss = None if faiss is None else _faiss_index(faiss, [bits.numpy()], 8 * bits.shape[1], binary=True)

    def rank(self, questions: Sequence[str] | np.ndarray, k: int) -> list[Ranking]:
        vectors = self._vectors(questions)
        wanted = min(max(k, self._rerank), len(self.passages))
        codes = btr_kernels.pack_bits(vectors)
        if self._faiss is None:
            distances, positions = btr_kernels.hamming_topk(codes, self._bits, wanted)
        else:
            distances, positions = map(torch.from_numpy, self._faiss.search(codes.numpy(), wanted))
        rankings = []
        for vector, near, places in zip(vectors, distances, positions, strict=True):
            near, places = near[places >= 0], places[places >= 0]
            scores = (self._channels - 2 * near).float()
            if self._rerank:
                scores = btr_kernels.unpack_matmul(self._bits[places], vector[None])[:, 0]
            rankings.append(_top(places, scores, k))
        return rankings


def _top(positions: Tensor, scores: Tensor, k: int) -> Ranking:
    order = positions.argsort()
    positions, scores = positions[order], scores[order]
    highest = best(scores, k)
    return ranking(positions[highest], scores[highest])


def _sorted(scores: np.ndarray, positions: np.ndarray) -> Ranking:
    found = positions >= 0  # an approximate search can find fewer than k
    return _top(torch.from_numpy(positions[found]), torch.from_numpy(scores[found]), int(found.sum()))


def _faiss_index(factory: str, parts: Sequence[np.ndarray], channels: int, binary: bool) -> Any:
    import faiss

    try:
        if binary:
            index = faiss.index_binary_factory(channels, factory)
        else:
            index = faiss.index_factory(channels, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(np.concatenate(parts))
        for part in parts:
            index.add(part)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"faiss: no index {factory!r} of these vectors: {reason}") from None
    return index


def _check_rows(passages: Sequence[Passage], parts: Sequence[np.ndarray]) -> None:
    rows = sum(map(len, parts))
    if rows != len(passages):
        raise ValueError(f"vectors: expected one for each of the {len(passages)} passages, got {rows}")


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(n, d)` scaled to length 1, float32; a zero vector stays."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def read_vectors(path: str | Path) -> np.ndarray:
    """Vectors `(n, d)` of a file, mapped from disk: `.npy`, or `.safetensors` with a single tensor.

    float32 or float16, one row a passage or question, in the order of its file. Nothing is unpickled; another file is a
    `ValueError` naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors = map_tensors(path)
        if len(tensors) != 1:
            raise ValueError(f"{path}: expected a single tensor, got {len(tensors)}")
        (vectors,) = tensors.values()
    else:
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path}: not a .npy file of vectors: {error}") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
        got = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "an archive"
        raise ValueError(f"{path}: expected float32 or float16 vectors (n, d), got {got}")
    if 0 in vectors.shape:
        raise ValueError(f"{path}: has no vectors, its shape is {vectors.shape}")
    return vectors
