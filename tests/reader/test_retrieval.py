"""Retrievers against plain definitions, the text encoder, and passages for questions."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer, T5Config, T5ForConditionalGeneration

from btr_kernels import pack_bits
from btr_reader.jsonl import write_jsonl
from btr_reader.retrieval import (
    BinaryRetriever,
    Bm25Retriever,
    DenseRetriever,
    TextEncoder,
    fill_passages,
    read_vectors,
    recall,
    with_passages,
)
from btr_reader.tasks import read_questions

from .retrieval_helpers import WORDS, tiny_encoder, worded

texts = st.lists(st.sampled_from([*WORDS, "the", "a"]), max_size=8).map(" ".join)


def stable_order(scores) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def bm25_scores(corpus: list[str], question: str) -> list[float]:
    """Lucene's BM25, from the formula."""

    def terms(text):
        return [word for word in re.findall(r"\w\w+", text.lower()) if word not in ("the", "with")]

    documents = [Counter(terms(text)) for text in corpus]
    mean = sum(d.total() for d in documents) / len(documents)
    scores = [0.0] * len(corpus)
    for word in terms(question):
        containing = sum(word in d for d in documents)
        idf = math.log(1 + (len(corpus) - containing + 0.5) / (containing + 0.5))
        for i, d in enumerate(documents):
            if d[word]:
                scores[i] += idf * d[word] / (d[word] + 1.5 * (1 - 0.75 + 0.75 * d.total() / mean))
    return scores


@given(st.lists(texts, min_size=1, max_size=12), texts, st.integers(1, 15))
def test_bm25_is_its_formula(corpus, question, k):
    corpus = [*corpus, "list"]
    expected = bm25_scores(corpus, question)
    retriever = Bm25Retriever(worded(*corpus), progress=False)
    (found,) = retriever.rank([question], k)
    assert [score for _, score in found] == pytest.approx(sorted(filter(None, expected), reverse=True)[:k], rel=1e-5)
    assert all(score == pytest.approx(expected[position], rel=1e-5) for position, score in found)
    assert all(a[1] > b[1] or a[0] < b[0] for a, b in itertools.pairwise(found))


def test_bm25_ties_are_in_the_order_of_the_corpus():
    corpus = worded(*["yield list"] * 30, "other words", *["yield list"] * 30)
    (found,) = Bm25Retriever(corpus, progress=False).rank(["yield"], 35)
    assert [position for position, _ in found] == [*range(30), *range(31, 36)]


def test_bm25_reads_titles_and_refuses_a_corpus_without_words(passages):
    retriever = Bm25Retriever(passages, progress=False)
    (found,) = retriever.retrieve([passages[7].title + " " + passages[7].text], 3)
    assert found[0] == {
        "id": passages[7].id, "title": passages[7].title, "text": passages[7].text, "score": found[0]["score"]
    }  # fmt: skip
    assert retriever.retrieve(["zzzz", "?"], 3) == [[], []]
    assert len(retriever.retrieve(["the statement of a list"], 1000)[0]) <= len(passages)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.retrieve(["list"], 0)
    with pytest.raises(TypeError, match="got vectors"):
        retriever.retrieve(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(ValueError, match="no word in them"):
        Bm25Retriever(worded("?", "..."), progress=False)
    with pytest.raises(ValueError, match="at least one"):
        Bm25Retriever([])


def test_stemmed_words_are_one():
    pytest.importorskip("Stemmer")
    corpus = worded("tuples yielded", "lists", "zebra")
    assert Bm25Retriever(corpus, progress=False).rank(["a tuple yields"], 3) == [[]]
    stemmed = Bm25Retriever(corpus, stemmer="english", progress=False)
    ((position, _),) = stemmed.rank(["a tuple yields unknown"], 3)[0]
    assert position == 0
    assert stemmed.rank(["unknown"], 3) == [[]]
    with pytest.raises(ValueError, match="stemmer must be one of none, english, got 'klingon'"):
        Bm25Retriever(corpus, stemmer="klingon", progress=False)


def small_vectors(rows: int, channels: int, seed: int) -> np.ndarray:
    """Small integers: their products are exact, and many are equal."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, channels)).astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 45), st.integers(0, 2**16), st.integers(1, 4))
def test_dense_is_the_inner_product(rows, channels, k, seed, parts):
    vectors, questions = small_vectors(rows, channels, seed), small_vectors(3, channels, seed + 1)
    split = [part for part in np.array_split(vectors, parts) if len(part)]
    found = DenseRetriever(worded(*["x"] * rows), split, normalize=False).rank(questions, k)
    for question, ranked in zip(questions, found, strict=True):
        scores = vectors @ question
        expected = stable_order(scores)[:k]
        assert ranked == [(i, scores[i]) for i in expected]


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 45), st.integers(0, 2**16))
def test_binary_by_hamming_distance_and_by_the_float_question(rows, channels, k, seed):
    signs = np.where(small_vectors(rows, channels, seed) >= 0, 1.0, -1.0).astype(np.float32)
    questions = small_vectors(3, channels, seed + 1)
    bits, corpus = pack_bits(torch.from_numpy(signs)), worded(*["x"] * rows)
    near = BinaryRetriever(corpus, bits, channels, rerank=0, normalize=False).rank(questions, k)
    exact = BinaryRetriever(corpus, bits, channels, rerank=rows, normalize=False).rank(questions, k)
    wanted = max(1, rows // 2)
    some = BinaryRetriever(corpus, bits, channels, rerank=wanted, normalize=False).rank(questions, min(k, wanted))
    for row, question in enumerate(questions):
        agreement = signs @ np.where(question >= 0, 1.0, -1.0)
        assert near[row] == [(i, agreement[i]) for i in stable_order(agreement)[:k]]
        scores = signs @ question
        assert exact[row] == [(i, scores[i]) for i in stable_order(scores)[:k]]
        proposed = sorted(stable_order(agreement)[:wanted])
        best = sorted(proposed, key=lambda i: (-scores[i], i))[:k]
        assert some[row] == [(i, scores[i]) for i in best]


def test_cosine_scales_questions():
    retriever = DenseRetriever(worded("x"), [np.array([[0.6, 0.8]], np.float32)])
    ((_, score),) = retriever.rank(np.array([[6.0, 8.0]], np.float32), 1)[0]
    assert score == pytest.approx(1.0)
    assert retriever.rank(np.zeros((1, 2), np.float32), 1) == [[(0, 0.0)]]


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors, questions = (rng.standard_normal((n, 16)).astype(np.float32) for n in (300, 5))
    corpus, bits = worded(*["x"] * 300), pack_bits(torch.from_numpy(vectors))
    exact = DenseRetriever(corpus, [vectors[:100], vectors[100:]]).rank(questions, 7)
    for factory in ("Flat", "HNSW32", "IVF4,Flat"):
        found = DenseRetriever(corpus, [vectors[:100], vectors[100:]], faiss=factory).rank(questions, 7)
        scores = [dict(row) for row in exact]
        for row, expected in zip(found, scores, strict=True):
            assert len(row) <= 7
            assert all(score == pytest.approx(expected[i], rel=1e-4) for i, score in row if i in expected)
            assert factory != "Flat" or {i for i, _ in row} == expected.keys()
    binary = BinaryRetriever(corpus, bits, 16, rerank=300).rank(questions, 7)
    assert BinaryRetriever(corpus, bits, 16, rerank=300, faiss="BFlat").rank(questions, 7) == binary
    with pytest.raises(ValueError, match="faiss: no index 'Nothing'"):
        DenseRetriever(corpus, [vectors], faiss="Nothing")


def test_wrong_vectors_are_named():
    corpus, vectors = worded("x", "y"), np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match="one for each of the 2 passages, got 3"):
        DenseRetriever(corpus, [vectors, vectors[:1]])
    with pytest.raises(ValueError, match=r"expected vectors \(m, 8\), got \(1, 7\)"):
        DenseRetriever(corpus, [vectors]).rank(np.zeros((1, 7), np.float32), 1)
    with pytest.raises(ValueError, match="--retriever-model"):
        DenseRetriever(corpus, [vectors]).rank(["text"], 1)
    with pytest.raises(ValueError, match=r"bits must be uint8 \(2, 1\)"):
        BinaryRetriever(corpus, torch.zeros(2, 2, dtype=torch.uint8), 8)
    with pytest.raises(ValueError, match="rerank must be at least 0"):
        BinaryRetriever(corpus, torch.zeros(2, 1, dtype=torch.uint8), 8, rerank=-1)


def test_vector_files(tmp_path):
    from safetensors.numpy import save_file

    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "v.npy", vectors)
    save_file({"v": vectors.astype(np.float16)}, tmp_path / "v.safetensors")
    assert np.array_equal(read_vectors(tmp_path / "v.npy"), vectors)
    assert np.array_equal(read_vectors(tmp_path / "v.safetensors"), vectors)
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z", v=vectors)
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    np.save(tmp_path / "wide.npy", vectors.astype(np.float64))
    np.save(tmp_path / "flat.npy", vectors[0])
    np.save(tmp_path / "none.npy", vectors[:0])
    save_file({"a": vectors, "b": vectors}, tmp_path / "two.safetensors")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:-4])
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, message in {
        "pickled.npy": "not a .npy file", "z.npy": "got an archive", "wide.npy": "got float64", "flat.npy": r"\(2,\)",
        "none.npy": "has no vectors", "two.safetensors": "a single tensor, got 2", "cut.npy": "not a .npy file",
        "empty.npy": "not a .npy file",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{re.escape(name)}: .*{message}"):
            read_vectors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nowhere.npy: no such file"):
        read_vectors(tmp_path / "nowhere.npy")


def test_the_encoder_is_the_mean_of_the_last_states(tmp_path):
    directory = tiny_encoder(tmp_path / "e", [" ".join(WORDS)])
    encoder = TextEncoder(directory, max_length=6)
    given = ["list", "tuple dict loop yield class import raise", "while unknown", "list", ""]
    vectors = encoder.encode(given, batch_size=2)
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        for text, vector in zip(given, vectors, strict=True):
            ids = tokenizer(text, truncation=True, max_length=6, return_tensors="pt")
            expected = model(**ids).last_hidden_state[0].mean(0).numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert vectors.shape == (5, encoder.channels)
    assert TextEncoder(directory, 6).fingerprint() == encoder.fingerprint()
    assert TextEncoder(directory, 7).fingerprint() != encoder.fingerprint()
    assert TextEncoder(directory, 1000).max_length == 64
    other = tiny_encoder(tmp_path / "f", [" ".join(WORDS)], seed=1)
    assert TextEncoder(other, 6).fingerprint() != encoder.fingerprint()


def test_what_is_no_encoder_is_named(tmp_path):
    directory = tiny_encoder(tmp_path / "e", WORDS)
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        TextEncoder(directory, 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        TextEncoder(directory).encode(["x"], batch_size=0)
    (directory / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ValueError, match="expected mean pooling, got pooling_mode_cls_token"):
        TextEncoder(directory)
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        TextEncoder(tmp_path / "nowhere")
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(ValueError, match="no encoder can be loaded"):
        TextEncoder(directory)
    (directory / "pytorch_model.bin").write_bytes(content)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no weights in safetensors"):
        TextEncoder(directory)
    tiny = T5Config(d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1, vocab_size=30)
    T5ForConditionalGeneration(tiny).save_pretrained(directory)
    with pytest.raises(ValueError, match="expected an encoder, got an encoder-decoder"):
        TextEncoder(directory)


@pytest.fixture
def lexical():
    return Bm25Retriever(worded("list of things", "tuple of things", "dict of things"), progress=False)


def test_when_passages_are_retrieved(lexical, tmp_path):
    path = tmp_path / "q.jsonl"
    write_jsonl(
        path,
        [
            {"id": "a", "question": "what is a list", "extra": 1},
            {"id": "b", "question": "which tuple", "passages": ["p2"]},
            {"id": "c", "question": "zzzz", "passages": []},
            {"id": "d", "question": "things of a dict", "passages": ["p2", "p0"]},
        ],
    )
    expected = {
        "missing": [["p0"], ["p2"], [], ["p2", "p0"]],
        "always": [["p0"], ["p1"], [], ["p2", "p0"]],
        "more": [["p0"], ["p2", "p1"], [], ["p2", "p0"]],
    }
    questions = list(read_questions(path, "nq"))
    for when, wanted in expected.items():
        found = list(with_passages(questions, lexical, 2, when))
        assert [[p["id"] for p in question.passages] for question in found] == wanted
        assert [(q.id, q.query, q.metadata) for q in found] == [(q.id, q.query, q.metadata) for q in questions]
        rows = list(fill_passages(path, lexical, 2, when))
        assert [[p["id"] for p in row["passages"] or []] for row in rows] == wanted
        assert rows[0]["extra"] == 1
        assert list(fill_passages(path, lexical, 2, when, start=3)) == rows[3:]
    (filled, *_) = fill_passages(path, lexical, 1)
    assert filled["passages"][0].keys() == {"id", "title", "text", "score"}
    with pytest.raises(ValueError, match="when must be one of missing, always, more"):
        next(with_passages(questions, lexical, 2, "often"))
    with pytest.raises(ValueError, match="4 questions, but 3 vectors"):
        next(fill_passages(path, lexical, 2, vectors=np.zeros((3, 2), np.float32)))


def test_vectors_of_questions_stay_with_their_questions(tmp_path, monkeypatch):
    monkeypatch.setattr("btr_reader.retrieval.questions.QUESTIONS_AT_ONCE", 2)
    retriever = DenseRetriever(worded(*"abcde"), [np.eye(5, dtype=np.float32)])
    path = tmp_path / "q.jsonl"
    rows = [{"id": i, "question": "x"} | ({"passages": ["p0"]} if i == 2 else {}) for i in range(5)]
    write_jsonl(path, rows)
    vectors = np.eye(5, dtype=np.float32)[::-1].copy()
    filled = fill_passages(path, retriever, 1, "missing", vectors=vectors)
    assert [row["passages"][0]["id"] for row in filled] == ["p4", "p3", "p0", "p1", "p0"]


def test_all_orders_of_a_choice_read_the_same(lexical, tokenizer, tmp_path):
    path = tmp_path / "q.jsonl"
    options = {"A": "a list", "B": "a tuple", "C": "no", "D": "yes"}
    write_jsonl(path, [{"id": "m", "question": "things", "options": options, "answer": "B"}])
    asked = list(with_passages(read_questions(path, "mmlu", tokenizer, "cyclic"), lexical, 3))
    assert len(asked) == 4
    assert all(question.passages == asked[0].passages for question in asked)
    assert [p["id"] for p in asked[0].passages] == ["p0", "p1", "p2"]
    write_jsonl(path, [{"claim": "a dict is a thing", "label": "SUPPORTS"}])
    (claim,) = with_passages(read_questions(path, "fever"), lexical, 1)
    assert claim.passages[0]["id"] == "p2"


def test_recall():
    assert recall([["a"], ["b", "c"], []], [["x", "a"], ["c"], ["x"]], [1, 2]) == {1: 0.5, 2: 1.0}
    assert recall([[]], [["a"]], [1]) == {}


def test_import_needs_neither_bm25s_nor_faiss():
    code = (
        "import sys; sys.modules['bm25s'] = sys.modules['faiss'] = None\n"
        "import numpy as np, btr_reader\n"
        "from btr_reader.passages import Passage\n"
        "found = btr_reader.DenseRetriever([Passage('1', '', 'x')], [np.ones((1, 2), 'f4')]).rank(np.ones((1, 2)), 1)\n"
        "assert len(found[0]) == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
