"""A run's folder: one run at a time, nothing of another run's lost, and a record of what ran."""

import json
import os
import sys

import pytest

from vision_reference.errors import UserError
from vision_reference.runs.folder import begin_epochs, goes_back, open_run_folder

OLD = ["checkpoint.pth", "best.pth", "model_3.pth", "metrics.jsonl", "outcomes.npy"]


def fill(folder, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("found", OLD)
def test_results_of_another_run_are_not_replaced_unasked(found, tmp_path):
    fill(tmp_path / "run", [found, "thesis.txt"])
    by_itself = found == "checkpoint.pth" or not found.endswith(".pth")
    way = "--resume auto" if by_itself else f"--resume {tmp_path}/run/{found}"
    with (
        pytest.raises(UserError, match=f"{found}.*{way}.*--overwrite"),
        open_run_folder(tmp_path / "run", "", overwrite=False),
    ):
        pass
    with pytest.raises(UserError), open_run_folder(tmp_path / "run", "other/checkpoint.pth", overwrite=False):
        pass
    assert (tmp_path / "run" / found).read_text() == found


def test_files_that_no_run_wrote_are_in_nobodys_way(tmp_path):
    fill(tmp_path, ["thesis.txt", "weights.pth", "args.json", "log.txt"])
    with open_run_folder(tmp_path, "", overwrite=False):
        begin_epochs(tmp_path, {}, 0, None)
    assert (tmp_path / "thesis.txt").read_text() == "thesis.txt"
    assert (tmp_path / "weights.pth").read_text() == "weights.pth"


def test_overwriting_clears_the_other_runs_results_when_the_first_epoch_begins_and_nothing_else(tmp_path):
    fill(tmp_path, [*OLD, "thesis.txt"])
    with open_run_folder(tmp_path, "", overwrite=True):
        assert set(OLD) <= set(names_in(tmp_path))  # flags and data may still turn out to be wrong
        begin_epochs(tmp_path, {}, 0, None)
    assert names_in(tmp_path) == ["args.json", "environment.json", "log.txt", "thesis.txt"]


def test_going_on_keeps_its_own_results(tmp_path):
    fill(tmp_path, [*OLD, "model_4.pth"])
    for resume in ("auto", str(tmp_path / "checkpoint.pth")):
        with open_run_folder(tmp_path, resume, overwrite=False):
            begin_epochs(tmp_path, {}, 4, tmp_path / "checkpoint.pth")  # of the run that was stopped after saving this
    assert "model_4.pth" not in names_in(tmp_path)
    assert set(OLD) <= set(names_in(tmp_path))


def test_auto_goes_on_from_a_first_record_but_not_over_weights_without_a_checkpoint(tmp_path):
    fill(tmp_path / "stopped", ["metrics.jsonl"])
    with open_run_folder(tmp_path / "stopped", "auto", overwrite=False):
        pass
    fill(tmp_path / "odd", ["best.pth", "model_9.pth", "model_10.pth", "metrics.jsonl"])
    os.utime(tmp_path / "odd" / "best.pth", (1, 1))
    os.utime(tmp_path / "odd" / "model_9.pth", (1, 1))
    advice = rf"go on with it \(--resume {tmp_path}/odd/model_10\.pth\)"  # the last, not the last by name
    with pytest.raises(UserError, match=advice), open_run_folder(tmp_path / "odd", "auto", overwrite=False):
        pass


def test_two_runs_cannot_share_a_folder_and_a_killed_one_does_not_block_it(tmp_path):
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with open_run_folder(tmp_path, "", overwrite=False):
            os.write(ready[1], b"!")
            os.read(end[0], 1)
            os._exit(9)  # as if killed
    os.read(ready[0], 1)
    with pytest.raises(UserError, match="another run is writing"), open_run_folder(tmp_path, "", overwrite=True):
        pass
    os.write(end[1], b"!")
    os.waitpid(child, 0)
    with open_run_folder(tmp_path, "", overwrite=False):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    fill(tmp_path, [".metrics.jsonl.abc.partial", ".model_3.pth.x.partial", ".mine.partial"])
    with open_run_folder(tmp_path, "", overwrite=False):
        assert names_in(tmp_path) == [".mine.partial", "log.txt"]


def test_the_log_has_all_starts_and_how_they_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data-path", "my photos"])

    def start():
        with open_run_folder(tmp_path, "", overwrite=False):
            print("hello")
            raise UserError("no such thing")

    for _ in range(2):
        with pytest.raises(UserError):
            start()
    log = (tmp_path / "log.txt").read_text()
    assert log.count("train.py --data-path 'my photos'\nhello\n# ended by UserError: no such thing\n") == 2
    assert capsys.readouterr().out == "hello\nhello\n"


def test_the_command_line_and_the_environment_are_kept(tmp_path):
    begin_epochs(tmp_path, {"lr": 0.1, "given": ["lr"], "teacher": None}, 0, None)
    assert json.loads((tmp_path / "args.json").read_text()) == {"lr": 0.1, "given": ["lr"], "teacher": None}
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert {"code", "versions", "host", "time", "command", "cores", "processes", "gpus"} <= environment.keys()


@pytest.mark.parametrize(("records", "start", "back"), [(0, 0, False), (4, 4, False), (5, 4, False), (6, 4, True)])
def test_going_back_is_noticed_by_more_than_the_one_record_that_may_be_ahead(records, start, back, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"epoch": {epoch}}}\n' for epoch in range(records)))
    assert goes_back(tmp_path, start) is back
