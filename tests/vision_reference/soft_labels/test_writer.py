"""A store of soft labels in the making: kills, second runs, full disks; and manifests that nobody's software wrote."""

import os
import signal

import numpy as np
import pytest

from vision_reference.errors import UserError
from vision_reference.files import seal, unseal
from vision_reference.soft_labels import writer as writing
from vision_reference.soft_labels.store import FORMAT, Store, all_blocks, extents, record_types
from vision_reference.soft_labels.writer import Writer

FILES = ["labels.bin", "manifest.json", "views.bin"]


def plan(**labels):
    data = {"images": 5, "classes": 4, "class_names": list("abcd"), "sha256": "d" * 64, "covers": "files"}
    made = {"format": FORMAT, "teacher": {"arch": "resnet18", "weights_sha256": "e" * 64, "precision": "fp32"}}
    made |= {"data": data, "pixels": {"loader": "torchvision"}, "views": {"count": 2, "seed": 1}, "versions": {}}
    return {**made, "labels": {"top_k": 2, "temperatures": [1.0], **labels}, "block": 2}


def records(block, made):
    rng = np.random.default_rng(block.number)
    return {
        name: np.frombuffer(rng.bytes(kind.itemsize * (block.stop - block.start)), kind)
        for name, kind in record_types(made).items()
    }


def begun(folder, made=None, number=0):
    made = made or plan()
    return Writer(folder, made, extents(made), number=number)


def write_all(writer, numbers=slice(None)):
    for block in all_blocks(writer.plan)[numbers]:
        if block.number not in writer.done:
            contents = {name: part.tobytes() for name, part in records(block, writer.plan).items()}
            writer.write(block.number, contents, errors=[block.number])


def finish(writer):
    assert [entry["errors"] for entry in writer.entries()] == [[number] for number in range(6)]
    writer.finish(errors={"stored": [0.6] * 4})


def make(folder):
    with begun(folder) as writer:
        if not writer.whole:
            write_all(writer)
            finish(writer)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    (line,) = str(error.value).splitlines()
    return line


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "store")


def test_killed_at_any_moment_and_gone_on_with_ends_with_the_same_bytes(store, tmp_path):
    whole = contents(store)
    assert sorted(whole) == FILES
    assert Store(store).damage(Store(store).blocks) is None
    assert Store(store).errors == {"stored": [0.6] * 4}
    kills = 0
    for last in range(1, 70, 2):
        folder = tmp_path / f"killed-{last}"
        child = os.fork()
        if child == 0:
            killed_at_system_call(last)
            make(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        kills += 1
        assert contents(make(folder)) == whole
    assert kills > 15


def killed_at_system_call(last):
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

    for name in ("fsync", "replace", "posix_fallocate"):
        setattr(os, name, counted(getattr(os, name), lambda *_: None))
    half_written = lambda file, content: file.write(content[: len(content) // 2])  # noqa: E731
    writing.write_through = counted(writing.write_through, half_written)


def test_processes_share_a_store_and_what_they_did_is_kept(store, tmp_path):
    with begun(tmp_path / "shared") as first, begun(tmp_path / "shared", number=1) as second:
        write_all(first, slice(0, None, 2))
        write_all(second, slice(1, 4, 2))
    with (tmp_path / "shared" / "journal-1.jsonl").open("ab") as journal:
        journal.write(b'00000000 {"block": 99}\n{"blo')
    with (tmp_path / "shared" / "views.bin").open("r+b") as views:
        views.write(bytes(9))  # block 0 did not reach the disk
    with begun(tmp_path / "shared") as writer:
        assert sorted(writer.done) == [1, 2, 3, 4]
        assert sorted(path.name for path in (tmp_path / "shared").glob("journal-*")) == ["journal-0.jsonl"]
        write_all(writer)
        finish(writer)
    assert contents(tmp_path / "shared") == contents(store)


@pytest.mark.parametrize("number", [0, 1])
def test_second_run_is_refused_while_a_process_of_the_first_lives_and_touches_nothing(tmp_path, number):
    with begun(tmp_path / "out") as first, begun(tmp_path / "out", number=1) as second:
        write_all(first)
        (second if number == 0 else first).close()
        before = contents(tmp_path / "out")
        assert "is being stored by another run: wait for it" in refusal(begun, tmp_path / "out")
        assert contents(tmp_path / "out") == before
    with begun(tmp_path / "out") as writer:
        assert len(writer.done) == 6


def test_full_disk_is_the_systems_error_and_the_next_run_goes_on(store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("posix_fallocate", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                make(tmp_path / "out")
    assert contents(make(tmp_path / "out")) == contents(store)


def test_files_of_others_are_never_touched(tmp_path):
    (tmp_path / "labels.bin").write_text("of a store whose manifest is lost")
    assert "holds other files (labels.bin)" in refusal(begun, tmp_path)
    assert contents(tmp_path) == {"labels.bin": b"of a store whose manifest is lost"}


@pytest.mark.parametrize(
    ("section", "entry", "said"),
    [
        ("labels", {"top_k": 3}, "labels.top_k 2, not 3"),
        ("teacher", {"weights_sha256": "f" * 64}, "teacher.weights_sha256 eeeeeeeeeeee, not ffffffffffff"),
        ("data", {"class_names": list("abdc")}, "data.class_names ['a', 'b', 'c', 'd'], not ['a', 'b', 'd', 'c']"),
    ],
)
def test_what_is_stored_is_never_mixed_with_something_else(store, section, entry, said):
    wanted = plan()
    wanted[section] |= entry
    assert f"holds a store with {said}; give another --output-dir" in refusal(begun, store, wanted)


def test_store_of_an_earlier_version_without_class_names_opens_and_counts_as_whole(store):
    manifest = unseal(store / "manifest.json", FORMAT)
    del manifest["data"]["class_names"]
    (store / "manifest.json").write_bytes(seal(manifest))
    assert Store(store).class_names is None
    with begun(store) as writer:
        assert writer.whole


HAND_MADE = {
    "no blocks": {"checksums": {"labels.bin": [], "views.bin": []}},
    "a file without checksums": {"checksums": {"labels.bin": None}},
    "no checksums": {"checksums": None},
    "blocks of no size": {"block": 0},
    "blocks of negative size": {"block": -1},
    "size of blocks a text": {"block": "3"},
    "fewer images": {"data": {"images": 4}},
    "absurd number of images": {"data": {"images": 10**18}},
    "images a text": {"data": {"images": "5"}},
    "absurd number of classes": {"data": {"classes": 10**12}, "labels": {"top_k": None}},
    "fewer classes than k": {"data": {"classes": 1}},
    "negative k": {"labels": {"top_k": -1}},
    "temperatures a number": {"labels": {"temperatures": 1}},
    "labels a list": {"labels": [1]},
    "views a text": {"views": "text"},
    "no teacher": {"teacher": None},
    "pixels a number": {"pixels": 1},
    "errors a text": {"errors": "text"},
    "another format": {"format": "lskd soft labels 2"},
}


@pytest.mark.parametrize("changes", HAND_MADE.values(), ids=HAND_MADE)
def test_hand_made_manifest_is_one_line(store, changes):
    manifest = unseal(store / "manifest.json", FORMAT)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(manifest[name], dict)
        manifest[name] = {**manifest[name], **value} if both else value
    (store / "manifest.json").write_bytes(seal(manifest))
    said = f"{store}: manifest.json has format" if "format" in changes else f"{store} is damaged: "
    assert refusal(Store, store).startswith(said)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"sha256": 1}', b"\xff"])
def test_file_that_is_no_manifest_or_plan_is_one_line(store, tmp_path, text):
    (store / "manifest.json").write_bytes(text)
    assert f"{store}: manifest.json is damaged (" in refusal(Store, store)
    with begun(tmp_path / "out"):
        (tmp_path / "out" / "plan.json").write_bytes(text)
    assert "plan.json is damaged (" in refusal(begun, tmp_path / "out")


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_anywhere_is_found(store, name):
    intact = (store / name).read_bytes()
    for position in range(0, len(intact), 7):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        (store / name).write_bytes(damaged)
        line = refusal(Store, store) if name == "manifest.json" else Store(store).damage(Store(store).blocks)
        assert str(store) in line
