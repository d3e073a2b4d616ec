"""Index directories: what they find, resumed, damaged, hostile."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr_reader.digests import file_digest
from btr_reader.files import locked
from btr_reader.jsonl import write_jsonl
from btr_reader.passages import read_passages
from btr_reader.retrieval import Bm25Retriever, DenseRetriever, TextEncoder, build_index, open_index
from btr_reader.retrieval import index as index_module

from .retrieval_helpers import edit_json, tiny_encoder

KINDS = ("bm25", "dense", "binary")
QUESTIONS = ["what is a list", "how does the with statement end", "yield"]
STOPS = [(kind, stop) for kind in KINDS for stop in ("shard 0", "shard 2")] + [("bm25", "bm25")]


@pytest.fixture(scope="module")
def build(corpus, encoder_directory):
    """build(directory, kind, **options): an index of the corpus."""

    def run(directory, kind, **options):
        encoder = None if kind == "bm25" else TextEncoder(encoder_directory, 32)
        return build_index(corpus, directory, kind, encoder=encoder, progress=False, **options)

    return run


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(index_module, "SHARD_PASSAGES", 16)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory, build):
    """An index of each kind, in three shards."""
    directory = tmp_path_factory.mktemp("indexes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "SHARD_PASSAGES", 16)
        for kind in KINDS:
            assert build(directory / kind, kind) == 40
    return directory


def opened(directory, encoder_directory, kind, **options):
    return open_index(directory, encoder=None if kind == "bm25" else encoder_directory, **options)


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_what_its_retriever_in_memory_finds(indexes, kind, corpus, encoder_directory):
    passages = list(read_passages(corpus))
    found = opened(indexes / kind, encoder_directory, kind, rerank=40).retrieve(QUESTIONS, 7)
    assert len(list((indexes / kind).glob("shard-*"))) == 3
    if kind == "bm25":
        assert found == Bm25Retriever(passages, progress=False).retrieve(QUESTIONS, 7)
        return
    encoder = TextEncoder(encoder_directory, 32)
    vectors = encoder.encode([f"{p.title} {p.text}".strip() for p in passages])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if kind == "binary":
        vectors = np.where(vectors >= 0, np.float32(1), np.float32(-1))
    expected = DenseRetriever(passages, [vectors], encoder=encoder).retrieve(QUESTIONS, 7)
    for ours, theirs in zip(found, expected, strict=True):
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-4)
        assert {row["text"] for row in ours} <= {p.text for p in passages}


@pytest.mark.parametrize(("kind", "stop_at"), STOPS)
def test_an_interrupted_build_continues_to_the_same_bytes(indexes, build, kind, stop_at, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        if stop_at == "bm25":
            patch.setattr(Bm25Retriever, "save", stopped)
        else:
            write = index_module.write_shard
            last = int(stop_at[-1])
            patch.setattr(
                index_module, "write_shard",
                lambda directory, number, *rest: stopped() if number == last else write(directory, number, *rest),
            )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "i", kind)
    with pytest.raises(ValueError, match="incomplete: run the same btr index again"):
        open_index(tmp_path / "i")
    assert build(tmp_path / "i", kind) == 40
    assert contents(tmp_path / "i") == contents(indexes / kind)
    assert build(tmp_path / "i", kind) == 40


def stopped(*_):
    raise KeyboardInterrupt


def test_a_full_disk_leaves_what_was_complete(build, tmp_path, monkeypatch):
    def full(self, directory):
        directory.mkdir()
        (directory / "data.csc.index.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Bm25Retriever, "save", full)
        with pytest.raises(OSError, match=r"cannot write .*bm25: No space left on device; the passages are kept"):
            build(tmp_path / "i", "bm25")
    assert not (tmp_path / "i" / "bm25").exists()
    assert build(tmp_path / "i", "bm25") == 40
    assert open_index(tmp_path / "i").retrieve(["list"], 1)


def test_another_index_is_not_continued(indexes, build, corpus, encoder_directory, tmp_path):
    with pytest.raises(ValueError, match="begun with other settings: kind is 'bm25', asked for 'dense'"):
        build(indexes / "bm25", "dense")
    with pytest.raises(ValueError, match="similarity is 'cosine', asked for 'dot'"):
        build(indexes / "dense", "dense", similarity="dot")
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"id": "1", "text": "x list"}])
    with pytest.raises(ValueError, match="corpus is '"):
        build_index(other, indexes / "bm25", progress=False)
    with pytest.raises(ValueError, match="not empty and not an index"):
        build(tmp_path, "bm25")
    with pytest.raises(ValueError, match="is a file"):
        build(other, "bm25")
    for options, message in (
        ({"kind": "dense"}, "needs either an encoder or vectors"),
        ({"kind": "dense", "stemmer": "english"}, "a dense index takes no stemmer"),
        ({"kind": "sparse"}, "kind must be one of bm25, dense, binary"),
        ({"vectors": other}, "takes neither an encoder nor vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            build_index(corpus, tmp_path / "x", progress=False, **options)
    changed = tiny_encoder(tmp_path / "changed", ["list"], seed=5)
    with pytest.raises(ValueError, match="made with another encoder"):
        open_index(indexes / "dense", encoder=changed)
    with pytest.raises(ValueError, match="takes neither an encoder nor faiss"):
        open_index(indexes / "bm25", encoder=encoder_directory)
    with pytest.raises(FileNotFoundError, match="not an index"):
        open_index(tmp_path / "nowhere")


def test_a_stemmed_index(corpus, tmp_path):
    pytest.importorskip("Stemmer")
    build_index(corpus, tmp_path / "i", stemmer="english", progress=False)
    in_memory = Bm25Retriever(list(read_passages(corpus)), stemmer="english", progress=False)
    asked = ["lists and statements", "listing a stated thing", "zzzz"]
    assert open_index(tmp_path / "i").retrieve(asked, 9) == in_memory.retrieve(asked, 9)
    with pytest.raises(ValueError, match="stemmer is 'english', asked for 'none'"):
        build_index(corpus, tmp_path / "i", progress=False)


def test_two_processes_do_not_write_one_index(build, tmp_path):
    with locked(tmp_path / "i", "index"), pytest.raises(ValueError, match="another process is writing"):
        build(tmp_path / "i", "bm25")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_index_of_given_vectors(corpus, encoder_directory, dtype, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((40, 20)).astype(dtype)
    np.save(tmp_path / "v.npy", vectors)
    build_index(corpus, tmp_path / "i", "dense", vectors=tmp_path / "v.npy", similarity="dot", progress=False)
    question = np.ones((1, 20), np.float32)
    (found,) = open_index(tmp_path / "i").rank(question, 40)
    assert [i for i, _ in found] == np.argsort(-(vectors.astype(np.float32) @ question[0]), kind="stable").tolist()
    with pytest.raises(ValueError, match="made of given vectors"):
        open_index(tmp_path / "i", encoder=encoder_directory)
    np.save(tmp_path / "short.npy", vectors[:39])
    with pytest.raises(ValueError, match="39 vectors for the 40 passages"):
        build_index(corpus, tmp_path / "j", "dense", vectors=tmp_path / "short.npy", progress=False)
    vectors[33, 3] = np.nan
    np.save(tmp_path / "nan.npy", vectors)
    with pytest.raises(ValueError, match="the vector of passage .* is not finite"):
        build_index(corpus, tmp_path / "k", "binary", vectors=tmp_path / "nan.npy", progress=False)


@pytest.fixture
def copied(indexes, tmp_path):
    """copied(kind) -> a copy of an index, to be damaged."""
    return lambda kind: shutil.copytree(indexes / kind, tmp_path / f"copy-{kind}")


def republish(directory):
    """What a hostile author does: the manifest fits the files."""

    def change(record):
        for entry in (*record["shards"], *record["bm25"]):
            entry["bytes"] = (directory / entry["file"]).stat().st_size
            entry["sha256"] = file_digest(directory / entry["file"])

    edit_json(directory / "manifest.json", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="btr-store"), "not the manifest of a btr-index"),
        (lambda m: m.update(version=2), "index format version 2, this program reads 1"),
        (lambda m: m.update(complete=1), "complete must be a bool"),
        (lambda m: m.update(shards={}), "shards must be a list"),
        (lambda m: m["shards"][0].update(file="../secret.safetensors"), "expected 'shard-00000.safetensors'"),
        (lambda m: m["shards"][0].update(passages=-1), "passages of a Shard is -1"),
        (lambda m: m["shards"][0].update(passages=2**62), "offsets must be int64"),
        (lambda m: m["shards"][0].pop("sha256"), "a Shard must have"),
        (lambda m: m["bm25"][0].update(file="/etc/passwd"), "file"),
        (lambda m: m["bm25"].pop(), "bm25 must list"),
        (lambda m: m["settings"].update(kind="dense"), "with 0 channels"),
        (lambda m: m["settings"].update(kind="sparse"), "kind 'sparse'"),
        (lambda m: m["settings"].update(stemmer="klingon"), "stemmer 'klingon'"),
        (lambda m: m["settings"].update(channels=True), "channels of a IndexSettings is True"),
    ],
)
def test_a_damaged_manifest_is_named(copied, change, message):
    directory = copied("bm25")
    edit_json(directory / "manifest.json", change)
    with pytest.raises(ValueError, match=message):
        open_index(directory)


def test_checksums_are_checked_when_the_index_is_built_again(copied, build):
    directory = copied("dense")
    path = directory / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="shard-00001.safetensors: damaged file: its SHA-256"):
        build(directory, "dense")
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="shard-00001.safetensors: damaged file: .* bytes, expected"):
        open_index(directory)


def test_nothing_is_unpickled(copied):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    directory = copied("bm25")
    array = np.empty(3, dtype=object)
    array[:] = [Trap()] * 3
    np.save(directory / "bm25" / "data.csc.index.npy", array, allow_pickle=True)
    republish(directory)
    with pytest.raises(ValueError, match="damaged index"):
        open_index(directory)


def replaced(name, change):
    def run(directory):
        path = directory / "bm25" / name
        if name.endswith(".json"):
            edit_json(path, change)
        else:
            np.save(path, change(np.load(path)))

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("indices.csc.index.npy", lambda a: a + 40), "passage numbers must be in 0..39"),
        (replaced("indices.csc.index.npy", lambda a: a - 40), "passage numbers must be in 0..39"),
        (replaced("indices.csc.index.npy", lambda a: a[:-1]), "unexpected shapes"),
        (replaced("data.csc.index.npy", lambda a: a.astype(np.float64)), "unexpected types"),
        (replaced("indptr.csc.index.npy", lambda a: a[::-1]), "offsets of words must rise"),
        (replaced("indptr.csc.index.npy", lambda a: a[:-1]), "unexpected shapes"),
        (replaced("vocab.index.json", lambda v: v.update(list=10**9)), "word ids must be"),
        (replaced("vocab.index.json", lambda v: v.update(list="x")), "damaged index"),
        (replaced("params.index.json", lambda p: p.update(num_docs=10**12)), "expected 40"),
        (replaced("params.index.json", lambda p: p.update(dtype="object")), "unexpected parameters"),
        (replaced("params.index.json", lambda p: p.update(method="bm25+")), "damaged index"),
        (replaced("params.index.json", lambda p: p.update(surprise=1)), "damaged index"),
    ],
)
def test_hostile_bm25_files_are_refused(copied, change, message):
    directory = copied("bm25")
    change(directory)
    republish(directory)
    with pytest.raises(ValueError, match=message):
        open_index(directory)


def test_pad_bits_and_texts_of_a_shard_are_checked(copied, encoder_directory):
    from safetensors.numpy import load_file, save_file

    directory = copied("binary")
    path = directory / "shard-00002.safetensors"
    tensors = load_file(path)
    tensors["bits"] = tensors["bits"] | 0x80
    save_file(tensors, path)
    republish(directory)
    with pytest.raises(ValueError, match="pad bits must be 0"):
        open_index(directory)
    tensors["bits"] &= 0x0F
    tensors["text"] = tensors["text"] | 0x80
    save_file(tensors, path)
    republish(directory)
    with pytest.raises(ValueError, match="shard-00002.safetensors: damaged file: passage .* is not UTF-8"):
        open_index(directory, encoder=encoder_directory).retrieve(["list"], 40)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_changed_bytes_are_an_error_or_harmless(indexes, kind, encoder_directory, tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("mutated") / kind
    shutil.copytree(indexes / kind, directory)
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in (".lock", "manifest.json"))
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(content), 2000) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    republish(directory)
    try:
        found = open_index(directory).retrieve(
            ["what is a list"] if kind == "bm25" else np.ones((1, 20), np.float32), 5
        )
    except ValueError as error:
        assert str(directory) in str(error)
    else:
        assert len(found) == 1
    shutil.rmtree(directory.parent)
