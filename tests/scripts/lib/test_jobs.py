"""Runs side by side: what is skipped, what goes on, how failures are told. Shell programs stand for trainings."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib import jobs

# Logs as fairseq does with --log-format json.
EPOCH = """echo '2026 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "7.5"}'; """


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def shell(program: str, *arguments: object) -> list[object]:
    return ["bash", "-c", program, "run", *arguments]


def test_runs_end_with_their_log_times_and_command_recorded(tmp_path, run_script):
    command = shell(EPOCH + "echo said; echo complained >&2", "--max-epoch", 2)
    done = run_script("lib/jobs.py", "--jobs", 2, "--", tmp_path / "a", *command, "---", tmp_path / "b", *command)
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        log = (tmp_path / name / "train.log").read_text()
        assert "said\n" in log
        assert "complained\n" in log
        assert record(tmp_path / name)["finished"] is True
        assert record(tmp_path / name)["command"] == list(map(str, command))
        assert 0 < record(tmp_path / name)["seconds"] < 60
        assert f"{name}: trained in " in done.stdout


def test_runs_share_time_only_up_to_the_number_of_jobs(tmp_path, run_script):
    alone = shell(f"test ! -e {tmp_path}/busy && touch {tmp_path}/busy && sleep 0.2 && rm {tmp_path}/busy")
    runs = [tmp_path / "a", *alone, "---", tmp_path / "b", *alone, "---", tmp_path / "c", *alone]
    assert run_script("lib/jobs.py", "--jobs", 1, "--", *runs).returncode == 0


def test_a_finished_run_is_not_repeated(tmp_path, run_script):
    command = shell(f"echo x >> {tmp_path}/count")
    for _ in range(2):
        done = run_script("lib/jobs.py", "--", tmp_path / "a", *command)
        assert done.returncode == 0
    assert "a: finished before, skipped" in done.stdout
    assert (tmp_path / "count").read_text() == "x\n"


def test_a_failed_run_is_told_in_one_line_and_goes_on_next_time(tmp_path, run_script):
    command = shell(f"echo x >> {tmp_path}/count; echo the reason >&2; test -e {tmp_path}/cured")
    done = run_script("lib/jobs.py", "--", tmp_path / "a", *command)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line == f"jobs.py: a failed (exit status 1): the reason; see {tmp_path}/a/train.log"
    before = record(tmp_path / "a")
    assert before["finished"] is False
    (tmp_path / "cured").touch()
    assert run_script("lib/jobs.py", "--", tmp_path / "a", *command).returncode == 0
    assert record(tmp_path / "a")["finished"] is True
    assert record(tmp_path / "a")["seconds"] > before["seconds"]
    assert (tmp_path / "count").read_text() == "x\nx\n"
    assert (tmp_path / "a" / "train.log").read_text() == "the reason\nthe reason\n"


def test_a_folder_of_other_settings_is_refused(tmp_path, run_script, refused):
    run_script("lib/jobs.py", "--", tmp_path / "a", *shell("true", "--lr", "1", "--cpu"))
    line = refused("lib/jobs.py", "--", tmp_path / "a", *shell("true", "--lr", "2"))
    assert "a was trained with other settings (then: --lr 1 --cpu; now: --lr 2); choose another folder" in line


def test_more_epochs_let_a_finished_run_go_on_and_fewer_do_not(tmp_path, run_script):
    command = f"echo x >> {tmp_path}/count"
    counts = []
    for epochs in (2, 2, 3, 1):
        assert run_script("lib/jobs.py", "--", tmp_path / "a", *shell(command, "--max-epoch", epochs)).returncode == 0
        counts.append(len((tmp_path / "count").read_text().splitlines()))
    assert counts == [1, 1, 2, 2]


def test_fewer_epochs_than_an_interrupted_attempt_wanted_are_not_taken_for_all(tmp_path, run_script):
    command = f"echo x >> {tmp_path}/count; test -e {tmp_path}/cured"
    counts = []
    for epochs in (4, 3, 4):  # the first attempt fails
        run_script("lib/jobs.py", "--", tmp_path / "a", *shell(command, "--max-epoch", epochs))
        counts.append(len((tmp_path / "count").read_text().splitlines()))
        (tmp_path / "cured").touch()
    assert counts == [1, 2, 3]


def test_a_run_goes_on_from_another_clone(tmp_path, run_script):
    for clone, epochs in (("a", 1), ("b", 2)):
        command = shell("true", "--user-dir", f"{clone}/fairseq_plugins", "--max-epoch", epochs)
        assert run_script("lib/jobs.py", "--", tmp_path / "run", *command).returncode == 0
    assert record(tmp_path / "run")["command"][-3] == "b/fairseq_plugins"


def test_a_folder_in_use_is_refused(tmp_path, refused):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused("lib/jobs.py", "--", tmp_path / "a", *shell("true"))
    assert line.endswith("a is being trained by another process; wait for it or end it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_takes_its_trainings_with_it_and_keeps_the_time(tmp_path, scripts_folder, number):
    command = ["bash", "-c", "echo $$ > pid; exec sleep 100"]
    process = subprocess.Popen(
        [sys.executable, str(scripts_folder / "lib" / "jobs.py"), "--", "a", *command],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # where the tests themselves run in the background, SIGINT is ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.1)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert "Traceback" not in complaint
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert record(tmp_path / "a")["finished"] is False
    assert record(tmp_path / "a")["seconds"] > 0


def test_mistakes_are_one_line(tmp_path, run_script, refused):
    assert "every run needs a folder and a command" in refused("lib/jobs.py", "--", tmp_path / "a")
    assert "--jobs 0 is below 1" in refused("lib/jobs.py", "--jobs", 0, "--", tmp_path / "a", "true")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{")
    assert "run.json is damaged; remove the folder" in refused("lib/jobs.py", "--", tmp_path / "a", "true")
    done = run_script("lib/jobs.py", "--", tmp_path / "b", "no-such-program")
    assert done.returncode == 2
    assert "command 'no-such-program' not found; set up with scripts/setup.sh first" in done.stderr


def test_progress_is_read_from_fairseqs_log(tmp_path):
    run = jobs.Run(tmp_path, ["x", "--max-epoch", "4"])
    log = tmp_path / "train.log"
    log.write_text('2026 | INFO | train_inner | {"epoch": 2, "update": 1.25, "loss": "3.5"}\n2026 | INFO | train_in')
    jobs.follow(run)
    assert (run.epochs_done, run.loss, run.max_epoch) == (1.25, "3.5", 4)
    with log.open("a") as more:  # the rest of the half-written line, then the end of the epoch
        more.write(
            'ner | {"epoch": 2, "update": 1.5, "loss": "3.0"}\n2026 | INFO | train | {"epoch": 2, "train_loss": "2"}\n'
        )
    jobs.follow(run)
    assert (run.epochs_done, run.loss) == (2, "2")
    assert run.share_done == 0.5


def test_progress_goes_by_updates_where_they_end_a_training_first(tmp_path):
    run = jobs.Run(tmp_path, ["x", "--max-epoch", "10", "--max-update", "800"])
    log = tmp_path / "train.log"
    log.write_text('2026 | INFO | train_inner | {"epoch": 2, "update": 1.5, "loss": "3.5", "num_updates": "600"}\n')
    jobs.follow(run)
    assert (run.share_done, run.place) == (0.75, "update 600/800")
    with log.open("a") as more:
        more.write('2026 | INFO | train_inner | {"epoch": 9, "update": 9.0, "loss": "1", "num_updates": "640"}\n')
    jobs.follow(run)
    assert (run.share_done, run.place) == (0.9, "epoch 9.0/10")
