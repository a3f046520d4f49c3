"""The store of teacher outputs on disk: what was written is read, and anything else is refused."""

import hashlib
import json
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.errors import UserError
from fairseq_plugins.teachers.store import Source, StoredOutputs, StoreWriter, is_stored, record_type, summarize


def source(**changes):
    made_of = {"lang_pair": "en-de", "split": "train", "teacher": ["a" * 64], "data": {"source.bin": "b" * 64}}
    made_of |= {"vocabulary": {"source": "c" * 64, "target": "d" * 64}, "vocabulary_size": 300, "top_k": 2}
    return Source(**{**made_of, "temperatures": [1.0, 2.0], "precision": "fp32", **changes})


def random_records(count, made_of, seed=0):
    rng = np.random.default_rng(seed)
    kind = record_type(made_of.vocabulary_size, made_of.top_k, len(made_of.temperatures))
    records = np.empty(count, kind)
    records["indices"] = rng.integers(made_of.vocabulary_size, size=(count, made_of.top_k))
    records["logits"] = -rng.random((count, made_of.top_k))
    records["log_sum_exp"] = rng.random((count, len(made_of.temperatures)))
    return records


def write_all(writer, records):
    for block in writer.missing():
        assert writer.claim(block)
        writer.write(block, records[writer.blocks[block].begin : writer.blocks[block].end])


def make(output, lengths, records, made_of=None, block_tokens=4):
    with StoreWriter(output, made_of or source(), np.array(lengths), block_tokens) as writer:
        write_all(writer, records)
        writer.finish()
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(call, *arguments, **keywords):
    """The one line that a user reads."""
    with pytest.raises(UserError) as error:
        call(*arguments, **keywords)
    (line,) = str(error.value).splitlines()
    return line


@pytest.fixture
def store(tmp_path):
    """Three sentences of 3, 0 and 2 words in two blocks."""
    return make(tmp_path / "en-de", [3, 0, 2], random_records(5, source()), block_tokens=3)


def test_records_of_a_token_worked_out_by_hand():
    # probabilities 1/8, 1/2, 1/4, 1/8
    logits = torch.tensor([[1.0, 4.0, 2.0, 1.0]]).log() + 5
    (record,) = summarize(logits, top_k=2, temperatures=[1.0, 2.0])
    assert record["indices"].tolist() == [1, 2]
    assert record["indices"].dtype == np.uint8
    assert record["logits"].tolist() == [0, np.float16(-np.log(2))]
    # relative to the largest: 1/4 + 1 + 1/2 + 1/4, and the same with square roots
    np.testing.assert_allclose(record["log_sum_exp"], np.log([2.0, 0.5 + 1 + 0.5**0.5 + 0.5]), rtol=1e-6)
    assert record.nbytes == 2 * 1 + 2 * 2 + 2 * 4


def test_sentences_are_found_wherever_and_however_often_they_are_asked_for(store):
    records = random_records(5, source())
    counts, found = StoredOutputs(store).fetch(np.array([2, 0, 1, 2]))
    assert counts.tolist() == [2, 3, 0, 2]
    assert found.tobytes() == records[[3, 4, 0, 1, 2, 3, 4]].tobytes()
    counts, found = StoredOutputs(store).fetch(np.array([1]))
    assert (counts.tolist(), len(found)) == ([0], 0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any),
    vocabulary_size=st.sampled_from([7, 256, 257, 65_536, 65_537]),
    top_k=st.integers(1, 7),
    temperatures=st.lists(st.floats(0.1, 100), min_size=1, max_size=3, unique=True),
    block_tokens=st.integers(1, 20),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, lengths, vocabulary_size, top_k, temperatures, block_tokens, data):
    made_of = source(vocabulary_size=vocabulary_size, top_k=top_k, temperatures=temperatures)
    records = random_records(sum(lengths), made_of)
    size = {7: 1, 256: 1, 257: 2, 65_536: 2, 65_537: 4}[vocabulary_size]
    assert records.itemsize == top_k * (size + 2) + 4 * len(temperatures)
    folder = make(tmp_path_factory.mktemp("store") / "store", lengths, records, made_of, block_tokens)
    stored = StoredOutputs(folder)
    assert stored.source == made_of
    asked = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1))
    counts, found = stored.fetch(np.array(asked))
    ends = np.cumsum(lengths)
    expected = [records[ends[i] - lengths[i] : ends[i]] for i in asked]
    assert counts.tolist() == [lengths[i] for i in asked]
    assert found.tobytes() == np.concatenate(expected).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_sum_exp_is_exact_and_logits_are_the_largest(dtype):
    logits = (8 * torch.randn(50, 5000, generator=torch.Generator().manual_seed(1))).to(dtype)
    temperatures = [1.0, 2.0, 3.0, 64.0]
    records = summarize(logits, 8, temperatures)
    exact = logits.double() - logits.double().max(dim=-1, keepdim=True).values
    for column, temperature in enumerate(temperatures):
        expected = torch.logsumexp(exact / temperature, -1)
        np.testing.assert_allclose(records["log_sum_exp"][:, column], expected.numpy(), rtol=1e-6, atol=1e-6)
    indices = torch.from_numpy(records["indices"].astype(np.int64))
    kept = exact.gather(1, indices)
    torch.testing.assert_close(torch.from_numpy(records["logits"]).double(), kept, rtol=2**-11, atol=1e-7)
    left_out = exact.scatter(1, indices, -torch.inf)
    assert (left_out.max(dim=-1).values <= kept[:, -1]).all()


def test_logits_beyond_the_range_of_float16_stay_finite():
    records = summarize(torch.tensor([[0.0, -1e9, 3.0]]), 3, [1.0])
    assert np.isfinite(records["logits"]).all()
    assert records["indices"].tolist() == [[2, 0, 1]]


def test_store_killed_in_the_middle_of_a_block_is_finished_by_the_next_run_to_the_same_bytes(tmp_path):
    lengths, records = [3, 2, 4, 1, 5], random_records(15, source())
    whole = contents(make(tmp_path / "whole", lengths, records))
    killed = tmp_path / "killed"
    child = os.fork()
    if child == 0:
        writer = StoreWriter(killed, source(), np.array(lengths), 4)
        first, second, *_ = writer.missing()
        writer.write(first, records[writer.blocks[first].begin : writer.blocks[first].end])
        assert writer.claim(second)
        with (killed.with_name("killed.partial") / "store" / "rows.bin").open("r+b") as rows:
            rows.seek(writer.blocks[second].begin * records.itemsize)
            rows.write(records[writer.blocks[second].begin :].tobytes()[:7])
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert "begun, but not finished" in refusal(StoredOutputs, killed)
    with StoreWriter(killed, source(), np.array(lengths), 4) as writer:
        assert len(writer.missing()) == len(writer.blocks) - 1
        write_all(writer, records)
        writer.finish()
    assert contents(killed) == whole
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["killed", "whole"]


def test_block_that_did_not_reach_the_disk_is_done_again(tmp_path):
    records = random_records(6, source())
    with StoreWriter(tmp_path / "out", source(), np.array([3, 3]), 3) as writer:
        writer.write(0, records[:3])
        with (tmp_path / "out.partial" / "store" / "rows.bin").open("r+b") as rows:
            rows.write(bytes(8))
        assert writer.missing() == [0, 1]


def test_remains_of_a_finished_run_do_no_harm(store, tmp_path, monkeypatch):
    records = random_records(5, source())
    with monkeypatch.context() as killed_before:
        killed_before.setattr("shutil.rmtree", lambda path: None)
        make(tmp_path / "again", [3, 0, 2], records, block_tokens=3)
    assert (tmp_path / "again.partial").exists()
    (tmp_path / "again").rename(tmp_path / "elsewhere")
    assert contents(make(tmp_path / "again", [3, 0, 2], records, block_tokens=3)) == contents(store)


def test_block_is_taken_by_one_living_process_only(tmp_path):
    ready, go_on = os.pipe(), os.pipe()
    with StoreWriter(tmp_path / "out", source(), np.array([3, 3]), 3) as writer:
        child = os.fork()
        if child == 0:
            writer.claim(0)
            os.write(ready[1], b".")
            os.read(go_on[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        assert not writer.claim(0)
        assert writer.claim(1)
        assert "is being stored by another process" in refusal_of_child(tmp_path / "out", lengths=[3, 4])
        os.write(go_on[1], b".")
        os.waitpid(child, 0)
        assert writer.claim(0)


def refusal_of_child(output, lengths):
    """What another process is told that would store there, too."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            StoreWriter(output, source(), np.array(lengths), 3)
        except UserError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


@pytest.mark.parametrize("name", ["manifest.json", "offsets.bin", "rows.bin"])
def test_flipped_bit_anywhere_is_refused(store, name):
    intact = (store / name).read_bytes()
    for position in {0, len(intact) // 2, len(intact) - 1, *range(0, len(intact), 97)}:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        (store / name).write_bytes(damaged)
        assert str(store) in refusal(StoredOutputs, store)
    (store / name).write_bytes(intact)
    StoredOutputs(store)


@pytest.mark.parametrize("name", ["manifest.json", "offsets.bin", "rows.bin"])
def test_truncated_or_missing_file_is_refused(store, name):
    intact = (store / name).read_bytes()
    for length in (0, 1, len(intact) - 1):
        (store / name).write_bytes(intact[:length])
        assert str(store) in refusal(StoredOutputs, store)
    (store / name).write_bytes(intact + b"\0")
    assert str(store) in refusal(StoredOutputs, store)
    (store / name).unlink()
    assert str(store) in refusal(StoredOutputs, store)


def test_folder_without_a_store_says_how_to_make_one(tmp_path):
    assert "scripts/nmt/store_teacher_outputs.py" in refusal(StoredOutputs, tmp_path / "nowhere")


def test_store_of_a_later_format_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text()) | {"format": 2}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (store / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}, indent=1) + "\n")
    assert "has format 2, this software reads 1" in refusal(StoredOutputs, store)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 3}, "top_k (2, now 3)"),
        ({"temperatures": [1.0]}, "temperatures (1.0, 2.0, now 1.0)"),
        ({"teacher": ["f" * 64]}, "teacher (aaaaaaaaaaaa, now ffffffffffff)"),
        ({"data": {"source.bin": "f" * 64}}, "data ("),
    ],
)
def test_what_is_there_is_never_mixed_with_something_else(store, tmp_path, changes, said):
    assert said in refusal(is_stored, store, source(**changes))
    with StoreWriter(tmp_path / "other", source(), np.array([1]), 4):
        pass
    assert said in refusal(StoreWriter, tmp_path / "other", source(**changes), np.array([1]), 4)


def test_the_same_expert_elsewhere_is_the_same_store(store):
    assert is_stored(store, source(teacher_paths=["moved/checkpoint.pt"]))
    assert not is_stored(store.with_name("new"), source())


def test_nothing_to_store_and_nowhere_to_store_it_are_one_line(tmp_path):
    assert "no sentence is short enough" in refusal(StoreWriter, tmp_path / "out", source(), np.array([0, 0]))
    (tmp_path / "file").touch()
    assert "check --output" in refusal(StoreWriter, tmp_path / "file" / "out", source(), np.array([1]))
