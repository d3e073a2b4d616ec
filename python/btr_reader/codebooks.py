"""Making a codebook: per vocabulary id, vectors that its tokens share across the corpus.

Three passes, each continued where a kill left it: the corpus is encoded into a store of plain bits inside the store
(`work/`); the ids are clustered in ranges that fit into memory, a codebook file each; the plain shards are written
again with the number of each token's nearest vector. Source: BTR (arXiv 2310.01329), offline compression across the
corpus. How many vectors an id gets, and the clustering (k-majority: k-means with Hamming distance and majority votes),
are our choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as serialise
from tqdm import tqdm

import btr_kernels

from .digests import file_digest
from .files import StoredFile, write_file
from .store import CodebookFiles, Store, StoreSettings, StoreWriter
from .store.codebook import read_part
from .store.layout import shard_layout

WORK_DIRECTORY = "work"
DEFAULT_MEMORY_BYTES = 2 * 2**30
# Vectors needed for the same distortion grow about as the number of an id's tokens to the power of 0.4 to 0.7.
_GROWTH = 0.6
_ROUNDS = 4
# Tokens clustered for each vector, at most: more move the majorities little.
_TOKENS_PER_VECTOR = 64
_LARGEST_COUNT = 2**16


def plain_settings(settings: StoreSettings) -> StoreSettings:
    """The settings of the store of plain bits that a store with a codebook is made from."""
    return replace(settings, codebook_bytes=0.0, original_ids=True)


def encode_with_codebook(
    plain: Store, writer: StoreWriter, settings: StoreSettings, memory_bytes: int, progress: bool
) -> int:
    """Makes the codebook of a complete plain store, where it is not there yet, and fills the writer's store from both.

    Returns the number of passages written. memory_bytes: what clustering may take. Raises `ValueError` where the bytes
    asked for are too few, saying how many are needed.
    """
    if writer.codebook is None:
        writer.set_codebook(_build(plain, writer.directory, settings, memory_bytes, progress))
    added = 0
    with tqdm(desc="index", unit=" passages", total=len(plain), initial=writer.done, disable=not progress) as bar:
        # Both stores have the same passages in their shards.
        for number in range(writer.shards, len(plain.manifest.shards)):
            ids = plain.shard(number).passage_ids()
            writer.add_shard([plain.passage(passage_id) for passage_id in ids])
            added += len(ids)
            bar.update(len(ids))
    writer.finish()
    return added


def allocate_vectors(counts: np.ndarray, budget: int) -> np.ndarray:
    """How many vectors each id gets: in proportion to tokens ** 0.6, at most one a token, `budget` of them in all.

    counts: int64 `(V,)`, tokens of each id. Returns int64 `(V,)`, 0 where there are no tokens. Raises `ValueError`
    where the budget is less than one vector for every id that occurs.
    """
    present = int((counts > 0).sum())
    if budget < present:
        raise ValueError(f"budget must be at least {present} vectors, one for every token id that occurs, got {budget}")
    most = np.minimum(counts, _LARGEST_COUNT)

    def of_scale(scale: float) -> np.ndarray:
        return np.minimum(np.maximum(np.floor(scale * counts.astype(np.float64) ** _GROWTH), 1), most).astype(np.int64)

    low, high = 0.0, float(max(1, most.max(initial=0)))
    if of_scale(high).sum() <= budget:
        return of_scale(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if of_scale(middle).sum() <= budget else (low, middle)
    return of_scale(low)


def cluster(bits: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-majority: `count` vectors uint8 `(<= count, w)` for the tokens uint8 `(n, w)` of one id.

    Tokens that differ no more than `count` ways are their own vectors. Else vectors begin as tokens drawn at random; in
    each round every token goes to its nearest vector and every vector becomes the majority of its tokens. One that no
    token went to becomes the token that is farthest from its own.
    """
    if len(bits) <= count:
        return np.unique(bits, axis=0)
    tokens = torch.from_numpy(bits)
    chosen = np.sort(np.random.default_rng(seed).choice(len(bits), count, replace=False))
    vectors = tokens[torch.from_numpy(chosen)]
    for _ in range(_ROUNDS):
        distances, nearest = btr_kernels.hamming_topk(tokens, vectors, 1)
        plan = btr_kernels.MergePlan(nearest.view(1, -1).int(), torch.tensor([count], dtype=torch.int32), count)
        majority, sizes = btr_kernels.merge_bits(tokens[None], plan)
        vectors, empty = majority[0], (sizes[0] == 0).nonzero().flatten()
        if len(empty):
            vectors[empty] = tokens[distances.flatten().argsort(descending=True, stable=True)[: len(empty)]]
    return vectors.numpy()


def _build(plain: Store, out: Path, settings: StoreSettings, memory_bytes: int, progress: bool) -> CodebookFiles:
    counts = np.zeros(settings.vocabulary, dtype=np.int64)
    for ids, _ in _tokens(plain):
        counts += np.bincount(ids, minlength=len(counts))
    vectors, index_bytes = _plan(plain, settings, counts)
    # Of the bytes, a quarter for the tokens of a range, as many for their copy in order, the rest for clustering them.
    room = max(1, memory_bytes // 4 // settings.row_width)
    sampled = np.minimum(np.minimum(counts, vectors * _TOKENS_PER_VECTOR), room)
    files = _finished(out, settings)
    first = sum(ids for ids, _ in files)
    with tqdm(
        desc="codebook", unit=" ids", total=len(counts), initial=first, disable=not progress, unit_scale=True
    ) as bar:
        while first < len(counts):
            last = max(first + 1, int(np.searchsorted(np.cumsum(sampled[first:]), room, side="right")) + first)
            found = [np.empty((0, settings.row_width), np.uint8)] * (last - first)
            rows, ids = _sample(plain, first, last, counts, sampled)
            starts = np.searchsorted(ids, np.arange(first, last + 1))
            for token_id in np.unique(ids):
                group = rows[starts[token_id - first] : starts[token_id - first + 1]]
                found[token_id - first] = cluster(group, int(vectors[token_id]), int(token_id))
            content = {"counts": np.array([len(v) for v in found], np.int32), "vectors": np.concatenate(found)}
            entry = write_file(out, f"codebook-{len(files):05d}.safetensors", serialise(content))
            files.append((last - first, entry))
            bar.update(last - first)
            first = last
    return CodebookFiles(index_bytes, tuple(entry for _, entry in files))


def _plan(plain: Store, settings: StoreSettings, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of vectors of each id that the bytes asked for allow, and the bytes of an index."""
    tokens = plain.manifest.total("original_tokens")
    fixed = sum(
        tensor.bytes
        for shard in plain.manifest.shards
        for tensor in shard_layout(settings, shard, index_bytes=1).values()
        if tensor.component != "index"
    )
    # The number of vectors of each id; the index of passages; headers and manifest, about.
    fixed += 4 * len(counts) + 16 * len(plain) + 1024 * (len(plain.manifest.shards) + 1)
    for index_bytes in (1, 2):
        left = settings.codebook_bytes * tokens - fixed - index_bytes * counts.sum()
        try:
            vectors = allocate_vectors(counts, int(left // settings.row_width))
        except ValueError:
            least = (fixed + index_bytes * counts.sum() + settings.row_width * (counts > 0).sum()) / tokens
            raise ValueError(
                f"codebook_bytes: {settings.codebook_bytes:g} bytes per token read are too few: one vector for every "
                f"token id, the indexes and all else take {least:.2f}"
            ) from None
        if vectors.max(initial=0) <= 256:
            break
    return vectors, index_bytes


def _finished(out: Path, settings: StoreSettings) -> list[tuple[int, StoredFile]]:
    """The codebook files that an interrupted run left: how many ids each has, and its entry for the manifest."""
    files: list[tuple[int, StoredFile]] = []
    while (path := out / f"codebook-{len(files):05d}.safetensors").is_file():
        counts, _ = read_part(path, settings.row_width)
        files.append((len(counts), StoredFile(path.name, path.stat().st_size, file_digest(path))))
    return files


def _tokens(plain: Store) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vocabulary ids int64 `(m,)` and bits uint8 `(m, w)` of the kept tokens, shard by shard."""
    for number in range(len(plain.manifest.shards)):
        shard = plain.shard(number)
        yield shard.ids_of_rows().astype(np.int64), shard.rows


def _sample(
    plain: Store, first: int, last: int, counts: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bits and ids of the tokens with ids from `first` to before `last`, ordered by id; of an id with more tokens than
    are wanted, about as many drawn at random."""
    all_rows, all_ids = [], []
    for number, (ids, rows) in enumerate(_tokens(plain)):
        chosen = np.flatnonzero((ids >= first) & (ids < last))
        share = wanted[ids[chosen]] / counts[ids[chosen]]
        chosen = chosen[np.random.default_rng((number, first)).random(len(chosen)) < share]
        all_rows.append(rows[chosen])
        all_ids.append(ids[chosen])
    ids = np.concatenate(all_ids)
    order = np.argsort(ids, kind="stable")
    return np.concatenate(all_rows)[order], ids[order]
