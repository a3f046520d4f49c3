"""The store of teacher outputs on disk: what was written is read, and anything else is refused."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.errors import UserError
from fairseq_plugins.files import seal, unseal
from fairseq_plugins.losses.soft_labels import TopKLogits
from fairseq_plugins.teachers.store import FORMAT, Store, all_blocks, record_type
from scripts.nmt.lib import store_outputs
from vision_reference.errors import UserError as SharedUserError
from vision_reference.soft_labels import writer as writing
from vision_reference.soft_labels.codec import encode

FILES = ["labels.bin", "manifest.json", "offsets.bin"]


def plan(lengths, block=4, **labels):
    data = {"lang_pair": "en-de", "split": "train", "sentences": len(lengths), "tokens": sum(lengths)}
    data |= {"sha256": {"source.bin": "b" * 64}, "vocabulary_size": 300, "vocabulary_sha256": {"source": "c" * 64}}
    teacher = {"weights_sha256": ["a" * 64], "precision": "fp32"}
    made = {"format": FORMAT, "teacher": teacher, "data": data, "block": block}
    return {**made, "labels": {"top_k": 2, "temperatures": [1.0, 2.0], **labels}, "paths": ["e.pt"], "versions": {}}


def begun(folder, made):
    lengths = made.pop("lengths", None) or [3, 0, 2]
    return store_outputs.begin(folder, made, offsets(lengths))


def offsets(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")


def random_records(count, made, seed=0):
    rng = np.random.default_rng(seed)
    records = np.empty(count, record_type(made))
    for name, top in (("indices", made["data"]["vocabulary_size"]), ("logits", -1.0), ("rest", 1.0)):
        records[name] = rng.random(records[name].shape) * top
    return records


def write_all(writer, records):
    for block in all_blocks(np.fromfile(writer.folder / "offsets.bin", "<i8"), writer.plan["block"]):
        if block.number not in writer.done:
            writer.write(block.number, {"labels.bin": records[block.start : block.stop].tobytes()})


def make(folder, lengths, records, made=None, block=4):
    with begun(folder, {**(made or plan(lengths, block)), "lengths": lengths}) as writer:
        write_all(writer, records)
        writer.finish()
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(call, *arguments, **keywords):
    """The one line that a user reads."""
    with pytest.raises((UserError, SharedUserError)) as error:
        call(*arguments, **keywords)
    (line,) = str(error.value).splitlines()
    return line


@pytest.fixture
def store(tmp_path):
    """Three sentences of 3, 0 and 2 words in two blocks."""
    return make(tmp_path / "en-de", [3, 0, 2], random_records(5, plan([3, 0, 2])), block=3)


def test_records_of_a_token_worked_out_by_hand():
    # probabilities 1/8, 1/2, 1/4, 1/8
    parts = encode(torch.tensor([[1.0, 4.0, 2.0, 1.0]]).log() + 5, top_k=2, temperatures=[1.0, 2.0])
    assert parts["indices"].tolist() == [[1, 2]]
    assert parts["logits"].tolist() == [[0, np.float16(-np.log(2))]]
    # those left out, relative to the largest: 1/4 + 1/4, and the same with square roots
    torch.testing.assert_close(parts["rest"], torch.tensor([[0.5, 1.0]]).log())
    assert record_type(plan([1])).itemsize == 2 * 2 + 2 * 2 + 2 * 4


def test_sentences_are_found_wherever_and_however_often_they_are_asked_for(store):
    records = random_records(5, plan([3, 0, 2]))
    counts, found = Store(store).fetch(np.array([2, 0, 1, 2]))
    assert counts.tolist() == [2, 3, 0, 2]
    assert found.tobytes() == records[[3, 4, 0, 1, 2, 3, 4]].tobytes()
    counts, found = Store(store).fetch(np.array([1]))
    assert (counts.tolist(), len(found)) == ([0], 0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any),
    vocabulary_size=st.sampled_from([7, 256, 257, 65_536, 65_537]),
    top_k=st.integers(1, 7),
    temperatures=st.lists(st.floats(0.1, 100), min_size=1, max_size=3, unique=True),
    block=st.integers(1, 20),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, lengths, vocabulary_size, top_k, temperatures, block, data):
    made = plan(lengths, block, top_k=top_k, temperatures=temperatures)
    made["data"]["vocabulary_size"] = vocabulary_size
    records = random_records(sum(lengths), made)
    size = {7: 1, 256: 1, 257: 2, 65_536: 2, 65_537: 4}[vocabulary_size]
    assert records.itemsize == top_k * (size + 2) + 4 * len(temperatures)
    store = Store(make(tmp_path_factory.mktemp("store") / "store", lengths, records, made))
    assert store.damage() is None
    assert (store.vocabulary_size, store.temperatures, store.sentences) == (vocabulary_size, temperatures, len(lengths))
    asked = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1))
    counts, found = store.fetch(np.array(asked))
    ends = np.cumsum(lengths)
    expected = [records[ends[i] - lengths[i] : ends[i]] for i in asked]
    assert counts.tolist() == [lengths[i] for i in asked]
    assert found.tobytes() == np.concatenate(expected).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_and_rest_are_the_teachers_probabilities_in_float64(dtype):
    z = (8 * torch.randn(50, 5000, generator=torch.Generator().manual_seed(1))).to(dtype)
    temperatures = [1.0, 2.0, 3.0, 64.0]
    parts = encode(z, 8, temperatures)
    exact = z.double() - z.double().max(dim=-1, keepdim=True).values
    kept = exact.gather(1, parts["indices"])
    left_out = exact.scatter(1, parts["indices"], -torch.inf)
    assert (left_out.max(dim=-1).values <= kept[:, -1]).all()
    torch.testing.assert_close(parts["logits"].double(), kept, rtol=2**-11, atol=1e-7)
    for column, temperature in enumerate(temperatures):
        expected = torch.logsumexp(left_out / temperature, -1)
        torch.testing.assert_close(parts["rest"][:, column].double(), expected, rtol=1e-6, atol=1e-6)
        stored = TopKLogits(parts["indices"], parts["logits"], parts["rest"][:, column], 5000, "uniform")
        p, each = stored.probabilities(temperature)
        exact_p = torch.softmax(exact / temperature, -1)
        torch.testing.assert_close(p.double(), exact_p.gather(1, parts["indices"]), rtol=0.02, atol=1e-6)
        tail = exact_p.scatter(1, parts["indices"], 0).sum(1)
        torch.testing.assert_close(4992 * each.double(), tail, rtol=0.02, atol=1e-12)


def test_a_tail_far_below_the_rounding_of_the_total_is_kept():
    z = torch.tensor([[0.0, -20.0, -40.0, -41.0, -42.0]])
    parts = encode(z, 2, [1.0])
    stored = TopKLogits(parts["indices"], parts["logits"], parts["rest"][:, 0], 5, "uniform")
    expected = torch.softmax(z.double(), 1)[0, 2:].mean()
    assert stored.probabilities(1.0)[1].item() == pytest.approx(expected.item(), rel=1e-3)


def test_logits_beyond_the_range_of_float16_stay_finite():
    parts = encode(torch.tensor([[0.0, -1e9, 3.0]]), 3, [1.0])
    assert parts["logits"].isfinite().all()
    assert parts["indices"].tolist() == [[2, 0, 1]]
    assert parts["rest"].tolist() == [[-torch.inf]]


def test_killed_at_any_moment_and_gone_on_with_ends_with_the_same_bytes(tmp_path, monkeypatch):
    lengths, made = [3, 2, 4, 1, 5], plan([3, 2, 4, 1, 5])
    records = random_records(15, made)
    whole = contents(make(tmp_path / "whole", lengths, records))
    assert sorted(whole) == FILES
    kills = 0
    for last in range(1, 60):
        child = os.fork()
        if child == 0:
            _killed_at_system_call(last)
            make(tmp_path / f"killed-{last}", lengths, records)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        kills += 1
        assert not (tmp_path / f"killed-{last}" / "manifest.json").exists() or Store(tmp_path / f"killed-{last}")
        with begun(tmp_path / f"killed-{last}", {**made, "lengths": lengths}) as writer:
            if not writer.whole:
                write_all(writer, records)
                writer.finish()
        assert contents(tmp_path / f"killed-{last}") == whole
    assert kills > 20


def _killed_at_system_call(last):
    """Lets this process die at its so manieth call that reaches the disk, half of a write done."""
    calls = 0

    def counted(real, fatal):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == last:
                fatal(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call

    def half_written(file, content):
        file.write(content[: len(content) // 2])

    for name in ("fsync", "replace", "posix_fallocate"):
        setattr(os, name, counted(getattr(os, name), lambda *_: None))
    writing.write_through = counted(writing.write_through, half_written)


def test_block_that_did_not_reach_the_disk_is_done_again(tmp_path):
    made = plan([3, 3], 3)
    records = random_records(6, made)
    with begun(tmp_path / "out", {**made, "lengths": [3, 3]}) as writer:
        write_all(writer, records)
    with (tmp_path / "out" / "labels.bin").open("r+b") as labels:
        labels.write(bytes(8))
    with (tmp_path / "out" / "journal-0.jsonl").open("ab") as journal:
        journal.write(b'00000000 {"block": 99}\n{"blo')
    with begun(tmp_path / "out", {**made, "lengths": [3, 3]}) as writer:
        assert list(writer.done) == [1]


def test_remains_of_a_finished_run_do_no_harm(store):
    for name in ("plan.json", "journal.jsonl", "lock", ".manifest.json.x.partial"):
        (store / name).touch()
    with begun(store, plan([3, 0, 2], 3)) as writer:
        assert writer.whole
    assert sorted(contents(store)) == FILES


def test_second_run_is_refused_while_the_first_lives_and_touches_nothing(tmp_path):
    made = {**plan([3, 3], 3), "lengths": [3, 3]}
    with begun(tmp_path / "out", dict(made)) as writer:
        write_all(writer, random_records(6, plan([3, 3])))
        before = contents(tmp_path / "out")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                begun(tmp_path / "out", dict(made))
            except SharedUserError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"is being stored by another run" in os.read(read, 1000)
        assert contents(tmp_path / "out") == before
    with begun(tmp_path / "out", dict(made)) as writer:
        assert len(writer.done) == 2


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_anywhere_is_refused(store, name):
    intact = (store / name).read_bytes()
    for position in {0, len(intact) // 2, len(intact) - 1, *range(0, len(intact), 97)}:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        (store / name).write_bytes(damaged)
        if name == "labels.bin":
            assert f"{store}: sentences " in Store(store).damage()
        else:
            assert str(store) in refusal(Store, store)
    (store / name).write_bytes(intact)
    assert Store(store).damage() is None


@pytest.mark.parametrize("name", FILES)
def test_truncated_or_missing_file_is_refused(store, name):
    intact = (store / name).read_bytes()
    for length in (0, 1, len(intact) - 1):
        (store / name).write_bytes(intact[:length])
        assert str(store) in refusal(Store, store)
    (store / name).write_bytes(intact + b"\0")
    assert str(store) in refusal(Store, store)
    (store / name).unlink()
    assert str(store) in refusal(Store, store)


def test_folder_without_a_store_says_how_to_make_one(tmp_path):
    assert "are missing: make them with scripts/nmt/store_teacher_outputs.py" in refusal(Store, tmp_path / "nowhere")
    with begun(tmp_path / "begun", plan([3, 0, 2])):
        assert "unfinished: run it again, it goes on" in refusal(Store, tmp_path / "begun")


HAND_MADE = {
    "no blocks": {"checksums": {"labels.bin": []}},
    "too many blocks": {"checksums": {"labels.bin": [1, 2, 3]}},
    "blocks of no size": {"block": 0},
    "blocks of negative size": {"block": -1},
    "size of blocks a text": {"block": "3"},
    "no checksums": {"checksums": None},
    "fewer sentences": {"data": {"sentences": 2}},
    "sentences a text": {"data": {"sentences": "3"}},
    "absurd number of words": {"data": {"tokens": 10**18}},
    "absurd vocabulary": {"data": {"vocabulary_size": 10**30}},
    "negative k": {"labels": {"top_k": -1}},
    "no k": {"labels": {"top_k": None}},
    "temperatures a text": {"labels": {"temperatures": "ab"}},
    "labels a list": {"labels": [1]},
    "data a text": {"data": "text"},
    "an expert too few": {"paths": []},
    "no language pair": {"data": {"lang_pair": None, "sha256": None, "sentences": None}},
    "another format": {"format": "lskd teacher outputs 3"},
    "the first format": {"format": 1},
}


@pytest.mark.parametrize("changes", HAND_MADE.values(), ids=HAND_MADE)
def test_hand_made_manifest_is_one_line(store, changes):
    manifest = unseal(store / "manifest.json", FORMAT)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(manifest[name], dict)
        manifest[name] = {**manifest[name], **value} if both else value
    (store / "manifest.json").write_bytes(seal(manifest))
    said = "store again, into another folder" if "format" in changes else "remove the folder and store again"
    assert refusal(Store, store).endswith(said)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"sha256": 1}', b"\xff"])
def test_file_that_is_no_manifest_or_plan_is_one_line(store, tmp_path, text):
    (store / "manifest.json").write_bytes(text)
    assert "manifest.json is damaged" in refusal(Store, store)
    with begun(tmp_path / "out", plan([3, 0, 2])):
        (tmp_path / "out" / "plan.json").write_bytes(text)
    assert "plan.json is damaged (" in refusal(begun, tmp_path / "out", plan([3, 0, 2]))


@pytest.mark.parametrize(
    ("section", "entry", "said"),
    [
        ("labels", {"top_k": 3}, "labels.top_k 2, not 3"),
        ("labels", {"temperatures": [1.0]}, "labels.temperatures [1.0, 2.0], not [1.0]"),
        ("teacher", {"weights_sha256": ["f" * 64]}, "teacher.weights_sha256 ['aaaaaaaaaaaa'], not ['ffffffffffff']"),
        ("data", {"sha256": {"source.bin": "f" * 64}}, "data.sha256.source.bin bbbbbbbbbbbb, not ffffffffffff"),
    ],
)
def test_what_is_stored_is_never_mixed_with_something_else(store, tmp_path, section, entry, said):
    wanted = plan([3, 0, 2], 3)
    with begun(tmp_path / "other", plan([3, 0, 2], 3)):
        pass
    wanted[section] |= entry
    for folder in (store, tmp_path / "other"):
        before = contents(folder)
        assert f"holds a store with {said}; give another --output" in refusal(begun, folder, dict(wanted))
        assert contents(folder) == before | {name: b"" for name in {"lock"} - before.keys() if folder != store}


def test_the_same_expert_elsewhere_is_the_same_store(store):
    with begun(store, {**plan([3, 0, 2], 3), "paths": ["moved.pt"], "versions": {"torch": "9"}}) as writer:
        assert writer.whole


def test_nowhere_to_store_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "labels.bin").write_text("of someone else")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").mkdir()
    assert "check --output" in refusal(begun, tmp_path / "file" / "out", plan([3, 0, 2]))
    assert "check --output" in refusal(begun, tmp_path / "begun", plan([3, 0, 2]))
    assert "holds other files (labels.bin)" in refusal(begun, tmp_path / "mine", plan([3, 0, 2]))
    assert os.listdir(tmp_path / "mine") == ["labels.bin"]


def test_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    made = plan([3, 0, 2], 3)
    with monkeypatch.context() as patched:
        patched.setattr("os.posix_fallocate", full)
        line = refusal(begun, tmp_path / "out", dict(made))
    assert "(No space left on device): make room and run the same command again, it goes on" in line
    records = random_records(5, made)
    with begun(tmp_path / "out", dict(made)) as writer:
        writer.write(0, {"labels.bin": records[:3].tobytes()})
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space left"):
                writer.write(1, {"labels.bin": records[3:].tobytes()})
    with begun(tmp_path / "out", dict(made)) as writer:
        assert 0 in writer.done
        write_all(writer, records)
        writer.finish()
    assert contents(tmp_path / "out") == contents(make(tmp_path / "straight", [3, 0, 2], records, made))
