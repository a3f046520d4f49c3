"""The runner of jobs: what is skipped, what goes on, how failures are told. Shell programs stand for trainings."""

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
from scripts.lib.jobs import Here, Job, cpu_slots
from vision_reference.errors import UserError

# Logs as fairseq does with --log-format json.
EPOCH = """echo '2026 | INFO | train_inner | {"epoch": 1, "update": 0.5, "loss": "7.5"}'; """


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def shell(program: str, *arguments: object) -> tuple[str, ...]:
    return ("bash", "-c", program, "run", *map(str, arguments))


def job(name: Path, program: str, *arguments: object, **details) -> Job:
    return Job(name.name, name, shell(program, *arguments), **details)


def run(*todo: Job, at_once: int = 2, replace: bool = False, ended=lambda job: None) -> list[jobs.Failure]:
    return jobs.run(todo, Here(cpu_slots(at_once)), replace=replace, ended=ended)


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_run_that_failed_at_once_binds_nobody_to_its_settings(tmp_path):
    failing = Job("a", tmp_path / "a", ("bash", "-c", "exit 3", "run", "--lr", "0.1"))
    assert [failure.job.name for failure in run(failing)] == ["a"]
    assert run(Job("a", tmp_path / "a", ("bash", "-c", "exit 0", "run", "--lr", "0.2"))) == []
    assert record(tmp_path / "a")["command"][-1] == "0.2"


def test_a_run_that_failed_with_results_keeps_its_settings(tmp_path):
    failing = Job(
        "a", tmp_path / "a", ("bash", "-c", f"echo x > {tmp_path}/a/checkpoint.pth; exit 3", "run", "--lr", "0.1")
    )
    assert len(run(failing)) == 1
    with pytest.raises(UserError, match="was made with other settings"):
        run(Job("a", tmp_path / "a", (*failing.command[:-1], "0.2")))
    assert (tmp_path / "a" / "checkpoint.pth").exists()


def test_jobs_end_with_their_log_times_and_command_recorded(tmp_path, capsys):
    program = EPOCH + "echo said; echo complained >&2"
    assert run(job(tmp_path / "a", program), job(tmp_path / "b", program)) == []
    for name in ("a", "b"):
        log = (tmp_path / name / "train.log").read_text()
        assert "said\n" in log
        assert "complained\n" in log
        kept = record(tmp_path / name)
        assert kept["finished"] is True
        assert kept["command"] == list(shell(program))
        assert 0 < kept["seconds"] < 60
        assert kept["exit_status"] == 0
        assert f"{name}: done in 0:0" in capsys.readouterr().out or name == "b"


def test_jobs_share_time_only_up_to_the_number_of_slots(tmp_path):
    alone = f"test ! -e {tmp_path}/busy && touch {tmp_path}/busy && sleep 0.1 && rm {tmp_path}/busy"
    assert run(*(job(tmp_path / name, alone) for name in "abc"), at_once=1) == []


def test_slots_share_the_cores_and_the_users_number_of_threads_stays(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpu_slots(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu_slots(3) == [{"OMP_NUM_THREADS": "5"}] * 3


def test_each_gpu_serves_one_job_and_only_the_visible_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert jobs.gpus() == ["2", "5"]
    todo = [job(tmp_path / name, f"echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/used; sleep 0.3") for name in "ab"]
    assert jobs.run(todo, Here(jobs.gpu_slots(jobs.gpus()))) == []
    assert sorted((tmp_path / "used").read_text().split()) == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert jobs.gpus() == []


def test_a_finished_job_is_not_repeated(tmp_path, capsys):
    for _ in range(2):
        assert run(job(tmp_path / "a", f"echo x >> {tmp_path}/count")) == []
    assert "a: finished before, skipped" in capsys.readouterr().out
    assert lines_of(tmp_path / "count") == 1


def test_what_a_job_makes_must_be_there(tmp_path):
    writes = job(tmp_path / "a", f"echo x >> {tmp_path}/count; touch {tmp_path}/a/weights", makes=("weights",))
    assert run(writes) == []
    (tmp_path / "a" / "weights").unlink()  # by somebody who needed space
    assert run(writes) == []
    assert lines_of(tmp_path / "count") == 2
    (failure,) = run(job(tmp_path / "b", "true", makes=("weights",)))
    assert "the command ended without having written weights" in failure.reason
    assert record(tmp_path / "b")["finished"] is False


def test_each_job_comes_after_those_it_depends_on(tmp_path):
    def writes(name, *after):
        return job(tmp_path / name, f"echo {name} >> {tmp_path}/order", after=after)

    ended = []
    todo = [writes("student", "store"), writes("store", "teacher", "data"), writes("teacher", "data"), writes("data")]
    assert run(*todo, ended=lambda job: ended.append(job.name)) == []
    assert (tmp_path / "order").read_text().split() == ["data", "teacher", "store", "student"] == ended


@pytest.mark.parametrize("wrong", ["circle", "unknown", "twice"])
def test_a_graph_that_cannot_be_run_is_refused(tmp_path, wrong):
    a, b = ({"circle": ("b",), "unknown": ("c",)}.get(wrong, ()), {"circle": ("a",)}.get(wrong, ()))
    with pytest.raises(ValueError, match="jobs"):
        run(job(tmp_path / "a", "true", after=a), job(tmp_path / ("a" if wrong == "twice" else "b"), "true", after=b))


def test_a_failed_job_keeps_back_only_what_depends_on_it(tmp_path, capsys):
    todo = [
        job(tmp_path / "bad", "echo one; echo the reason >&2; exit 3"),
        job(tmp_path / "child", "true", after=("bad",)),
        job(tmp_path / "grandchild", "true", after=("child",)),
        job(tmp_path / "good", "true"),
        job(tmp_path / "heir", "true", after=("good",)),
    ]
    failures = {failure.job.name: failure for failure in run(*todo)}
    assert list(failures) == ["bad", "child", "grandchild"]
    assert failures["bad"].reason == f"failed (exit status 3): the reason; see {tmp_path}/bad/train.log"
    assert failures["bad"].lines == ("one", "the reason")
    assert failures["grandchild"].reason == "not run, because child failed"
    assert record(tmp_path / "heir")["finished"] is True
    assert not (tmp_path / "child").exists()


def test_a_failed_job_goes_on_next_time_and_its_times_add_up(tmp_path):
    todo = job(tmp_path / "a", f"echo x >> {tmp_path}/count; test -e {tmp_path}/cured")
    assert len(run(todo)) == 1
    before = record(tmp_path / "a")
    assert before["finished"] is False
    (tmp_path / "cured").touch()
    assert run(todo) == []
    after = record(tmp_path / "a")
    assert (after["finished"], after["attempts"]) == (True, 2)
    assert after["seconds"] > before["seconds"]
    assert lines_of(tmp_path / "count") == 2


def test_a_folder_of_other_settings_is_refused_before_anything_starts(tmp_path):
    run(job(tmp_path / "a", "true", "--lr", "1", "--amp"))
    with pytest.raises(UserError, match=r"then: --lr 1 --amp; now: --lr 2\); choose another folder or remove it"):
        run(job(tmp_path / "b", "true"), job(tmp_path / "a", "true", "--lr", "2"))
    assert not (tmp_path / "b").exists()


def test_a_file_that_it_reads_belongs_to_the_result(tmp_path):
    expert = tmp_path / "expert.pt"
    expert.write_text("first")
    student = job(tmp_path / "student", f"echo >> {tmp_path}/count", reads=(str(expert),))
    run(student)
    assert jobs.states([student])["student"].kind == "finished"
    expert.write_text("second")
    with pytest.raises(UserError, match="expert.pt is not what it was then.; choose another folder or remove it"):
        run(student)
    run(student, replace=True)
    assert lines_of(tmp_path / "count") == 2
    expert.unlink()
    assert jobs.states([student])["student"].kind == "finished"
    record = jobs.load_record(student)
    del record["reads"]  # as earlier versions wrote it
    jobs.save_record(student, record)
    expert.write_text("third")
    assert jobs.states([student])["student"].kind == "finished"


def test_a_changed_setting_runs_anew_exactly_what_depends_on_it_and_comes_back_at_once(tmp_path):
    def todo(alpha):
        count = f"echo $(basename $1) >> {tmp_path}/count"
        return [
            Job("t0", tmp_path / "t0", shell(count, "t0", "--alpha", "0")),
            Job("t1", tmp_path / "t1", shell(count, "t1", "--alpha", alpha)),
            Job("s0", tmp_path / "s0", shell(count, "s0"), after=("t0",)),
            Job("s1", tmp_path / "s1", shell(count, "s1"), after=("t1",)),
        ]

    def ran():
        words = (tmp_path / "count").read_text().split() if (tmp_path / "count").exists() else []
        (tmp_path / "count").unlink(missing_ok=True)
        return sorted(words)

    assert run(*todo("0.1"), replace=True) == []
    assert ran() == ["s0", "s1", "t0", "t1"]
    assert [state.kind for state in jobs.states(todo("0.2")).values()] == ["finished", "changed", "finished", "stale"]
    assert run(*todo("0.2"), replace=True) == []
    assert ran() == ["s1", "t1"]
    assert run(*todo("0.1"), replace=True) == []  # both lie in replaced/, and are what was asked for
    assert ran() == []
    assert record(tmp_path / "t1")["command"][-1] == "0.1"
    assert len(list((tmp_path / "replaced").iterdir())) == 2


def test_a_teacher_trained_anew_makes_its_students_stale(tmp_path):
    teacher, student = job(tmp_path / "t", "true"), job(tmp_path / "s", f"echo >> {tmp_path}/count", after=("t",))
    run(teacher, student, replace=True)
    (tmp_path / "t" / "run.json").unlink()
    assert jobs.states([teacher, student])["s"].kind == "stale"
    run(teacher, student, replace=True)
    assert lines_of(tmp_path / "count") == 2


def test_settings_are_the_words_that_shape_the_result():
    command = ["/x/bin/python3.10", f"{jobs.ROOT}/vision_reference/train.py", "--data-path", "/data", "--lr", "1"]
    command += ["-j", "3", "--teacher-weights", "/out/runs/t/checkpoint.pth", "--device", "cpu", "--cpu"]
    kept = {"": "python vision_reference/train.py", "--lr": "--lr 1"}
    kept["--teacher-weights"] = "--teacher-weights ../t/checkpoint.pth"
    assert jobs.settings(command, Path("/out/runs/s")) == kept
    last = jobs.settings(["x", "--amp", "--lr", "2", "--lr", "1", "-j", "3", "rest"], Path("a"))
    assert last == {"": "x rest", "--amp": "--amp", "--lr": "--lr 1"}
    eight = ["python", "-m", "torch.distributed.run", "--nproc_per_node", "8", "x.py", "--batch-size", "256"]
    four = ["python", "scripts/lib/torchrun.py", "--nproc_per_node", "4", "x.py", "--batch-size", "512"]
    assert jobs.settings(eight, Path("a")) == jobs.settings(four, Path("a"))
    four[-1:] = ["256", "--accumulate", "2", "--require-gpu"]
    assert jobs.settings(eight, Path("a")) == jobs.settings(four, Path("a"))


def test_more_epochs_let_a_finished_run_go_on_and_fewer_do_not(tmp_path):
    counts = []
    for epochs in (2, 2, 3, 1):
        assert run(job(tmp_path / "a", f"echo x >> {tmp_path}/count", "--max-epoch", epochs)) == []
        counts.append(lines_of(tmp_path / "count"))
    assert counts == [1, 1, 2, 2]


def test_fewer_epochs_than_an_interrupted_attempt_wanted_are_not_taken_for_all(tmp_path):
    counts = []
    for epochs in (4, 3, 4):  # the first attempt fails
        run(job(tmp_path / "a", f"echo x >> {tmp_path}/count; test -e {tmp_path}/cured", "--max-epoch", epochs))
        counts.append(lines_of(tmp_path / "count"))
        (tmp_path / "cured").touch()
    assert counts == [1, 2, 3]


def test_a_record_of_earlier_versions_still_counts(tmp_path):
    todo = job(tmp_path / "a", f"echo x >> {tmp_path}/count", "--max-epoch", 2)
    (tmp_path / "a").mkdir()
    old = {"command": list(todo.command), "finished": True, "seconds": 1.0, "cpu_seconds": 1.0}
    (tmp_path / "a" / "run.json").write_text(json.dumps(old))
    assert run(todo) == []
    assert lines_of(tmp_path / "count") == 0


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        a, _ = run(job(tmp_path / "a", "true"), job(tmp_path / "b", "false"))
    assert a.reason.endswith("a is in use by another process; wait for it or end it")
    assert not (tmp_path / "a" / "run.json").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"command": []}', '{"command": "x", "finished": true, "seconds": 1, "cpu_seconds": 1}']
)
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged; remove the folder to run it again"):
        run(job(tmp_path / "a", "true"))


def test_without_a_terminal_progress_is_lines_not_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "max", lambda *numbers: 0, raising=False)  # a line at every look
    run(job(tmp_path / "a", EPOCH + "sleep 0.2", "--max-epoch", 2), job(tmp_path / "b", "sleep 0.1"))
    shown = capsys.readouterr().out
    assert "\r" not in shown
    assert "jobs: 0 done, 2 running of 2; " in shown
    assert "a epoch 0.5/2 loss 7.5" in shown
    assert " left; " in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_takes_all_it_started_with_it_and_keeps_the_time(tmp_path, scripts_folder, number):
    command = ["bash", "-c", "sleep 100 & echo $! > pid; wait"]
    process = subprocess.Popen(
        [sys.executable, str(scripts_folder / "lib" / "jobs.py"), "--", "a", *command],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.05)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert complaint == "jobs.py: stopped; run the same command again to go on\n"
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    left = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    assert not left.exists() or left.read_text().split()[2] == "Z"  # nobody has collected its exit status yet
    assert record(tmp_path / "a")["finished"] is False
    assert record(tmp_path / "a")["seconds"] > 0


def test_the_command_line_tells_mistakes_and_failures_in_one_line(tmp_path, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["jobs.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            jobs.run_command("jobs.py", jobs.main)
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        return ended.value.code, complaint

    a = tmp_path / "a"
    assert call("--", a) == (2, "jobs.py: error: every run needs a folder and a command, separated by ---\n")
    assert "two runs with the same folder" in call("--", a, "true", "---", a, "true")[1]
    assert "--jobs 0 is below 1" in call("--jobs", 0, "--", a, "true")[1]
    assert "--max-epoch abc is not a number" in call("--", a, "true", "--max-epoch", "abc")[1]
    code, line = call("--", a, "no-such-program")
    assert code == 1
    assert "a command 'no-such-program' not found; set up with scripts/setup.sh first" in line


def test_the_time_left_begins_with_the_plans_and_ends_with_the_measured(tmp_path):
    # 100 units of cost, 1000 s by the plan: a twentieth of the plan is 5 units in 50 s.
    left = jobs.TimeLeft(100, expected=1000)
    assert left.text(1, 0.0001, 100) == "about 17:00 left by the plan's estimate"  # (1 + 50) / 5 s for each of 100
    assert left.text(0, 0, 100) == "about 16:40 left by the plan's estimate"
    assert left.text(100, 5, 100) == "23:45 left"  # 20 s a unit measured, 10 planned: 15 * 95
    assert left.seconds(2000, 95, 100) == pytest.approx(2050 / 100 * 5)
    assert left.seconds(2000, 50, 50) == 0  # the other half failed and was dropped


def test_without_a_plan_no_time_is_told_before_there_is_something_to_go_by():
    left = jobs.TimeLeft(1.0)  # one job alone
    assert left.text(9, 0, 1) == "time left not known yet"  # it starts
    assert left.text(10, 0.001, 1) == "time left not known yet"  # its first line after 10 s: not 2:46:30
    assert left.text(11, 0.002, 1) == "time left not known yet"
    assert left.text(30, 0.021, 1) == f"{jobs.clock(20 / 0.02 * 0.979)} left"  # 0.02 in the 20 s since then
    assert jobs.TimeLeft(1.0).seconds(5, 0.5, 1) is None
    quick = jobs.TimeLeft(1.0)
    quick.seconds(5, 0.1, 1)
    assert quick.seconds(7, 0.5, 1) == pytest.approx(2 / 0.4 * 0.5)


def test_a_job_that_fails_counts_neither_as_work_done_nor_as_work_left(tmp_path, monkeypatch):
    seen = []

    class Seen(jobs.Progress):
        def show(self, done, counts, where):
            seen.append((done, self._total, counts["failed"]))

    monkeypatch.setattr(jobs, "Progress", Seen)
    first = job(tmp_path / "a", "exit 3")
    jobs.run(
        [first, job(tmp_path / "b", "true", after=("a",)), job(tmp_path / "c", "true")],
        Here(cpu_slots(1)),
    )
    assert seen[-1] == (1.0, 1.0, 2)


def test_progress_is_read_from_fairseqs_log(tmp_path):
    follower = jobs.Follower(Job("a", tmp_path, ("x", "--max-epoch", "4")))
    log = tmp_path / "train.log"
    log.write_text('2026 | INFO | train_inner | {"epoch": 2, "update": 1.25, "loss": "3.5"}\n2026 | INFO | train_in')
    follower.look()
    assert (follower.share, follower.text) == (1.25 / 4, "epoch 1.2/4 loss 3.5")
    with log.open("a") as more:  # the rest of the half-written line, then the end of the epoch
        more.write(
            'ner | {"epoch": 2, "update": 1.5, "loss": "3.0"}\n2026 | INFO | train | {"epoch": 2, "train_loss": "2"}\n'
        )
    follower.look()
    assert (follower.share, follower.text) == (0.5, "epoch 2.0/4 loss 2")


def test_progress_goes_by_updates_where_they_end_a_training_first(tmp_path):
    follower = jobs.Follower(Job("a", tmp_path, ("x", "--max-epoch", "10", "--max-update", "800")))
    log = tmp_path / "train.log"
    log.write_text('2026 | INFO | train_inner | {"epoch": 2, "update": 1.5, "loss": "3.5", "num_updates": "600"}\n')
    follower.look()
    assert (follower.share, follower.text) == (0.75, "update 600/800 loss 3.5")
    with log.open("a") as more:
        more.write('2026 | INFO | train_inner | {"epoch": 9, "update": 9.0, "loss": "1", "num_updates": "640"}\n')
    follower.look()
    assert (follower.share, follower.text) == (0.9, "epoch 9.0/10 loss 1")


def test_progress_is_read_from_the_lines_of_the_image_commands(tmp_path):
    follower = jobs.Follower(Job("a", tmp_path, ("x",)))
    log = tmp_path / "train.log"
    for line, share in (
        ("Epoch 2/4  [ 5/10]  lr 0.1  loss 2.3", 1.5 / 4),
        ("Epoch 2/4 done in 3.0 s: Acc@1 10.0", 0.5),
        ("[ 12 %]  300 views/s  ETA 0:00:10", 0.12),
    ):
        with log.open("a") as more:
            more.write(line + "\n")
        follower.look()
        assert follower.share == share
