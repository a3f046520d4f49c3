"""Many trainings that answer one question: teachers x temperatures x seeds, planned, run, counted, reported.

    python scripts/study.py plan   scripts/studies/configs/digits.yaml --output results/digits
    python scripts/study.py run    scripts/studies/configs/digits.yaml --output results/digits
    python scripts/study.py status results/digits
    python scripts/study.py report results/digits

A configuration is a small YAML file; scripts/studies/configs holds some to start from, and their names alone will do
("digits"). `run` may be stopped and started again at any time: finished jobs are skipped, begun ones go on, failed ones
are tried again, and what a changed setting touches is made anew (what it replaces is kept in runs/replaced/). A grid
may grow: a second value of a setting names it in all jobs, and what has finished takes its new name along.

The folder of a study:
  results.jsonl   one line for each finished training; its score is that of the last epoch (BLEU: best checkpoint);
                  of translation also what the paired bootstrap over sentences says of two students
  study.json      what is planned, what failed
  config.yaml     the configuration as it was run
  runs/           a folder for each job, with run.json and train.log
  report.html, report.md, figures/   the report
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.lib import jobs
from scripts.studies import plan as planning
from scripts.studies import renaming
from scripts.studies.commands import check_commands
from scripts.studies.plan import Planned
from scripts.studies.schema import CONFIGS, IMAGES, TRANSLATION, Study, read_study
from scripts.studies.tracking import set_environment, with_tracking
from vision_reference.analysis.flags import path
from vision_reference.arguments import add_track
from vision_reference.errors import Parser, UserError, run_command
from vision_reference.files import write_atomically

MARK = "study.json"  # the folder of a study is known by it


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{plan,run,status,report}")
    for name, text in (
        ("plan", "show the jobs and an estimate of time and disk; starts and writes nothing"),
        ("run", "run what is not finished"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument(
            "config", metavar="CONFIG", help="a YAML file, or the name of one in scripts/studies/configs"
        )
        command.add_argument("--output", type=path, required=True, metavar="DIR", help="the folder of the study")
        command.add_argument(
            "--data", type=path, metavar="DIR", help="where the data lies, in place of the configuration's"
        )
        command.add_argument(
            "--jobs",
            type=int,
            metavar="N",
            help="how many at a time (default: one for each GPU; without any, each core)",
        )
        if name == "run":
            add_track(command)
            command.add_argument("--fresh", action="store_true", help="remove the results of an earlier run first")
            command.add_argument(
                "--launcher",
                choices=("local", "slurm"),
                default="local",
                help="this machine or a cluster (default: local)",
            )
            command.add_argument(
                "--slurm",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="for sbatch by way of submitit, such as partition=gpu, timeout_min=600; repeatable",
            )
    for name, text in (("status", "what is done, running, failed, and why"), ("report", "write the page of results")):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("folder", type=path, metavar="DIR", help="the folder of the study")
    return parser


# The plan


def load_config(given: str) -> tuple[Study, str]:
    """The study and the text of its file; a name alone means a shipped one.

    Raises:
        UserError: there is no such file, or it has a mistake.
    """
    path = Path(given)
    if not path.exists() and (CONFIGS / f"{given}.yaml").is_file():
        path = CONFIGS / f"{given}.yaml"
    study = read_study(path)
    return study, path.read_text(encoding="utf-8")


def make_plan(
    study: Study, output: Path, data: Path | None, *, amp: bool | None, on_cluster: bool = False
) -> list[Planned]:
    """The jobs.

    Args:
        amp: of `decide_amp`.
        on_cluster: jobs run on other machines, which have GPUs.

    Raises:
        UserError: the configuration makes two jobs alike.
    """
    cpu = not (on_cluster or jobs.gpus())
    return planning.make_plan(study, output, data=data.absolute() if data else None, cpu=cpu, amp=bool(amp))


def decide_amp(study: Study, facts: Mapping[str, Any], *, on_cluster: bool = False) -> bool | None:
    """What `amp: auto` stands for: what the study was begun with, else what this machine is fast at.

    Args:
        facts: of an earlier run, from ``study.json``.

    Returns:
        None where the configuration does not say `auto`.
    """
    parts = [study.settings, study.teacher, study.student, *study.baselines]
    parts += [part for block in study.cells for part in (block.teacher, block.student)]
    given = [part.get("amp") for part in parts]
    if study.kind != IMAGES or not any(each == "auto" or (isinstance(each, list) and "auto" in each) for each in given):
        return None
    before = facts.get("amp")
    return before if isinstance(before, bool) else on_cluster or bool(jobs.gpus()) or _fast_bf16()


def _fast_bf16() -> bool:
    from vision_reference.machine import multiplies_bf16_fast  # takes seconds to import

    return multiplies_bf16_fast()


def read_facts(output: Path) -> dict[str, Any]:
    """What ``study.json`` says; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        facts = json.loads((output / MARK).read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        raise UserError(f"{output / MARK} is damaged; remove it: study.py run writes it again") from None
    return facts


def check_data(study: Study, data: Path | None) -> None:
    """Raises UserError where the data is not there."""
    folder = data or (None if study.data == "builtin" else Path(study.data))
    if folder is not None and not folder.is_dir():
        raise UserError(f"no folder {folder}; give the data with --data DIR (its form: {_FORMS[study.kind]})")
    if folder is not None and study.kind == TRANSLATION and not study.prepare and not (folder / "data-bin").is_dir():
        raise UserError(f"{folder} holds no data-bin; give a folder that prepare.py made, or say prepare: in the study")


_FORMS = {
    IMAGES: "train/ and val/, one folder of images per class; for cub200 that of CUB_200_2011/",
    TRANSLATION: "see scripts/nmt/prepare.py --help",
}


def write_facts(
    study: Study, plan: list[Planned], output: Path, text: str, data: Path | None, amp: bool | None
) -> None:
    """Keep what is planned; reports and status read it."""
    trained = [planned for planned in plan if planned.role in ("teacher", "student", "baseline")]
    facts = {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "kind": study.kind,
        "data": str(data or study.data),
        "teachers": study.teachers,
        "teacher_answers": study.teacher_answers,
        "seeds": list(study.seeds),
        "temperatures": sorted({one.temperature for one in trained if one.temperature is not None}),
        "networks": {
            role: sorted({one.network for one in trained if one.role == role}) for role in ("teacher", "student")
        },
        "paper": study.paper,
        "pairs": list(study.pairs),
        "amp": amp,
        "planned": len(trained),
        "jobs": [one.job.name for one in trained],
        "folder": str(output),
        "all_jobs": [
            {
                "job": one.job.name,
                "role": one.role,
                "command": one.job.command,
                "after": one.job.after,
                "makes": one.job.makes,
                "exact_epochs": one.job.exact_epochs,
            }
            for one in plan
        ],
        "config": text,
        "failed": failed(plan),
        "stores_bytes": sum(_size(one.job.folder) for one in plan if one.role == "store"),
    }
    write(output / MARK, json.dumps(facts, indent=2) + "\n")
    write(output / "config.yaml", text)


def failed(plan: list[Planned]) -> list[dict[str, Any]]:
    """Jobs whose last attempt failed, with the last lines of their logs."""
    found = []
    for planned in plan:
        with contextlib.suppress(UserError):
            record = jobs.load_record(planned.job)
            if record and jobs.has_failed(record) and not jobs.in_use(planned.job.folder):
                lines = jobs.last_lines(planned.job)
                found.append(
                    {
                        "job": planned.job.name,
                        "role": planned.role,
                        "exit_status": record["exit_status"],
                        "lines": lines,
                        "error": lines[-1] if lines else "no output",
                        "command": record["command"],
                    }
                )
    return found


def write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def write_results(plan: list[Planned], output: Path) -> None:
    """Replace ``results.jsonl`` by what is finished now."""
    lines = [*planning.results(plan, output), *planning.comparisons(plan)]
    write(output / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# Commands


def show_plan(study: Study, plan: list[Planned], at_once: int) -> None:
    """Print the graph, and about how long it takes."""
    states = jobs.states([planned.job for planned in plan])
    other_names = renaming.renamed(planned.job for planned in plan)
    states |= {name: jobs.State("finished") for name in other_names}
    kinds: dict[tuple, list[Planned]] = {}
    for planned in plan:  # the same job of all seeds is one line
        kinds.setdefault((planned.role, planned.cell), []).append(planned)
    print(f"{study.title}: {len(plan)} jobs, seeds {', '.join(map(str, study.seeds))}, teachers {study.teachers}")
    for (role, base), alike in kinds.items():
        after = [name.rpartition("_seed")[0] or name for name in alike[0].job.after]
        done = Counter(states[planned.job.name].kind for planned in alike)
        state = ", ".join(f"{number} {kind}" for kind, number in done.items())
        waits = f"  after {', '.join(after)}" if after else ""
        print(f"  {role:<10} {base}  x {len(alike)} ({state}){waits}")
    for planned in plan:
        if (state := states[planned.job.name]).kind in ("changed", "stale"):
            print(f"  made anew: {planned.job.name} ({state.why})")
    for name, folder in other_names.items():
        print(f"  takes the new name {name}: {folder.name}, finished before")
    print(estimate(study, plan, states, at_once))


def expected_seconds(
    study: Study, plan: list[Planned], states: Mapping[str, jobs.State]
) -> tuple[float, set[str], set[str]]:
    """What is not finished will take, one after the other: as jobs of this study took, else by the configuration.

    Args:
        states: of all jobs. Those made with other settings say nothing about today's.

    Returns:
        Seconds, the roles of which nothing is known, and where the figures come from, in words.
    """
    measured: dict[str, list[float]] = {}
    for planned in plan:
        if states[planned.job.name].kind in ("finished", "stale"):
            record = jobs.load_record(planned.job)
            if record and record["finished"]:
                measured.setdefault(planned.role, []).append(record["seconds"])
    total, unknown, source = 0.0, set(), set()
    for planned in _left(plan, states):
        if planned.role in measured:
            total += sum(measured[planned.role]) / len(measured[planned.role])
            source.add("as the finished jobs of this study took")
        elif minutes := getattr(study.estimate, planned.role, 0.0):
            total += 60 * minutes
            source.add(f"as measured on {study.estimate.on}" if study.estimate.on else "by the configuration")
        elif planned.role not in ("data", "comparison"):  # of a few seconds
            unknown.add(planned.role)
    return total, unknown, source


def _left(plan: list[Planned], states: Mapping[str, jobs.State]) -> list[Planned]:
    return [planned for planned in plan if states[planned.job.name].kind != "finished"]


def estimate(study: Study, plan: list[Planned], states: Mapping[str, jobs.State], at_once: int) -> str:
    """Time and disk of what is left, in words."""
    left = _left(plan, states)
    if not left:
        return "nothing is left to do"
    total, unknown, source = expected_seconds(study, plan, states)
    text = f"left: {len(left)} jobs"
    if total:
        text += f", about {jobs.clock(total / at_once)} with {at_once} at a time ({'; '.join(sorted(source))})"
    if unknown:
        text += f"; not known until one has run: {', '.join(sorted(unknown))}"
    trainings = sum(planned.role in ("teacher", "student", "baseline") for planned in left)
    if study.estimate.megabytes and trainings:
        text += f"; about {trainings * study.estimate.megabytes / 1000:.1f} GB of disk"
    return text


def slots(plan: list[Planned], asked: int | None) -> list[dict[str, str]]:
    """Where jobs run on this machine: one on each GPU, or as many side by side as there are cores.

    Raises:
        UserError: `asked` is below 1, or more than there are GPUs.
    """
    if asked is not None and asked < 1:
        raise UserError(f"--jobs {asked} is below 1")
    names = jobs.gpus()
    on_cpu = any(("--device", "cpu") in zip(one.job.command, one.job.command[1:], strict=False) for one in plan)
    if names and not on_cpu:
        if asked and asked > len(names):
            raise UserError(f"--jobs {asked}: this machine has {len(names)} GPUs, and each serves one job")
        return jobs.gpu_slots(names[: asked or len(names)])
    return jobs.cpu_slots(min(asked or jobs.cores(), len(plan)))


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second `run` out of the folder.

    Raises:
        UserError: there is one already.
    """
    with (output / "study.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{output} is being run by process {lock.read().strip() or '?'}; wait or end it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def remove_earlier(output: Path) -> None:
    """Remove what an earlier run of a study left in its folder, and nothing else.

    Raises:
        UserError: the folder holds something, but no study, or it is being run.
    """
    if not output.exists():
        return
    if not (output / MARK).is_file():
        if any(output.iterdir()):
            raise UserError(f"--fresh: {output} holds no study (no {MARK} in it); it was left as it is")
        return
    files = ("results.jsonl", "config.yaml", "report.html", "report.md", "summary.json", "summary.md")
    with locked(output):
        if busy := [lock.parent for lock in (output / "runs").glob("*/run.lock") if jobs.in_use(lock.parent)]:
            raise UserError(f"--fresh: {busy[0]} is in use by another process; wait for it or end it")
        for name in ("runs", "figures", "analysis", "cluster"):
            if (output / name).is_dir():
                shutil.rmtree(output / name)
        for name in (*files, MARK):  # the mark last: an interrupted removal can be repeated
            (output / name).unlink(missing_ok=True)


def run(
    study: Study,
    text: str,
    output: Path,
    *,
    data: Path | None = None,
    at_once: int | None = None,
    launcher: Any = None,
    name: str = "study.py",
    track: Sequence[str] = (),
    fresh: bool = False,
) -> list[Planned]:
    """Run what is not finished; results.jsonl and study.json follow. Returns the plan.

    Args:
        launcher: where jobs run; None: on this machine, `at_once` at a time.
        fresh: remove the results of an earlier run first, once everything that was given is found good.

    Raises:
        UserError: the data is missing, the folder is in use, or what tracks is not installed.
        SystemExit: jobs failed (1), or a signal stopped the run.
    """
    given, output = output, output.absolute()
    check_data(study, data)
    on_cluster = launcher is not None
    amp = decide_amp(study, {} if fresh else read_facts(output), on_cluster=on_cluster)
    plan = make_plan(study, output, data, amp=amp, on_cluster=on_cluster)
    check_commands(plan)
    if track:
        plan = with_tracking(plan, track)
    places = [] if on_cluster else slots(plan, at_once)
    if fresh:
        remove_earlier(given)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--output {output} is a file; give a folder") from None
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # has fairseq-train
    if study.kind == TRANSLATION and not jobs.gpus():
        from scripts.nmt.lib.recipe import KEEP_MEMORY

        for key, value in KEEP_MEMORY.items():
            os.environ.setdefault(key, value)
    by_name = {planned.job.name: planned for planned in plan}
    with locked(output):
        set_environment(track, study.title, output)
        before = read_facts(output).get("data")
        is_free = (
            study.kind == IMAGES or study.prepare.get("from") == "parallel"
        )  # else the runner tells what it undoes
        if before not in (None, str(data or study.data)) and is_free:
            print(
                f"{name}: note: this study was begun with the data in {before}, which counts as the same as "
                f"{data or study.data}; if it is not, give another --output",
                file=sys.stderr,
            )

        def keep() -> None:
            write_facts(study, plan, output, text, data, amp)
            write_results(plan, output)

        def ended(job: jobs.Job) -> None:
            if by_name[job.name].pairs and "--save-dir" in job.command:
                from scripts.nmt.lib.recipe import keep_vocabulary_of

                keep_vocabulary_of(Path(job.command[1]), by_name[job.name].pairs, job.folder)
            write_results(plan, output)

        for new, folder in renaming.adopt(planned.job for planned in plan).items():
            print(f"{new}: finished before as {folder.name}", flush=True)
        keep()
        try:
            todo, expected = [planned.job for planned in plan], None
            if launcher is None:
                launcher = jobs.Here(places)
                seconds, unknown, _ = expected_seconds(study, plan, jobs.states(todo))
                expected = seconds / len(places) if seconds and not unknown else None
            jobs.run_as_command(name, todo, launcher, replace=True, ended=ended, expected=expected)
        finally:
            keep()
    return plan


def show_status(output: Path) -> bool:
    """Print how the study stands; whether nothing failed.

    Raises:
        UserError: the folder holds no study.
    """
    facts = read_facts(output)
    known = facts.get("all_jobs", [])
    if not facts or not isinstance(known, list):
        raise UserError(f"{output} holds no study (no {MARK}); give the --output of study.py run")
    if not all(isinstance(one, dict) and isinstance(one.get("job"), str) for one in known):
        raise UserError(f"{output / MARK} is damaged; remove it: study.py run writes it again")
    counts: Counter[str] = Counter()
    shown = []
    finished: dict[str, str | None] = {}
    for entry in known:
        job = jobs.Job(entry["job"], output / "runs" / entry["job"], ("?",))
        record = jobs.load_record(job)
        then = _planned_job(entry, facts)
        stands = jobs.state_of(then, {each: finished.get(each) for each in then.after}, job.folder)
        finished[job.name] = stands.made
        if stands.kind == "finished":
            state = "done"
        elif jobs.in_use(job.folder):
            state = "running"
            shown.append(f"running: {job.name}: {(jobs.last_lines(job, 1) or ['no output yet'])[0]}")
        elif record and jobs.has_failed(record):
            state = "failed"
            shown.append(f"failed: {job.name} (exit status {record['exit_status']}); last lines of {job.log_file}:")
            shown += [f"    {line}" for line in jobs.last_lines(job)]
        else:
            state = "begun" if stands.kind == "begun" else "waiting"
        counts[state] += 1
    print(f"{facts.get('title', output)}: {sum(counts.values())} jobs")
    print(", ".join(f"{counts[state]} {state}" for state in ("done", "running", "begun", "waiting", "failed")))
    for line in shown:
        print(line)
    return not counts["failed"]


def _planned_job(entry: dict[str, Any], facts: dict[str, Any]) -> jobs.Job:
    """A job as study.json has it, in the folder where the study was planned."""
    try:
        folder = Path(facts["folder"]) / "runs" / entry["job"]
        words = {name: tuple(map(str, entry[name])) for name in ("command", "after", "makes")}
        return jobs.Job(entry["job"], folder, **words, exact_epochs=bool(entry["exact_epochs"]))
    except (KeyError, TypeError):
        raise UserError(f"{MARK} is of an earlier version or damaged; study.py run writes it again") from None


def write_report(folder: Path) -> Path:
    """Write the page; returns its path."""
    from scripts.studies import page  # draws: takes a second to import

    return page.write_report(folder)


def look_into(study: Study, folder: Path, data: Path | None = None) -> None:
    """For the page: the features of the students and the diffusion index, confusions of images, what the teachers are
    like. What cannot be looked into is said; the page then goes without.
    """
    from scripts.studies import mechanism

    try:
        if study.kind == IMAGES:
            print("looking into the networks: features, diffusion index, confusions, teachers", flush=True)
            mechanism.analyse_images(folder, data=data)
        else:
            print("looking into the models: features, diffusion index, experts", flush=True)
            mechanism.analyse_translation(folder, data=None if study.prepare else data)
    except UserError as error:
        print(f"note: {error.line}; the networks were not looked into now", flush=True)


def main() -> None:
    args = get_args_parser().parse_args()
    if args.command == "status":
        sys.exit(0 if show_status(args.folder) else 1)
    if args.command == "report":
        print(write_report(args.folder))
        return
    study, text = load_config(args.config)
    if args.command == "plan":
        output = args.output.absolute()
        plan = make_plan(study, output, args.data, amp=decide_amp(study, read_facts(output)))
        check_commands(plan)
        show_plan(study, plan, len(slots(plan, args.jobs)))
        return
    if args.slurm and args.launcher != "slurm":
        raise UserError("--slurm was given without --launcher slurm; give both or neither")
    launcher = None
    if args.launcher == "slurm":
        from scripts.lib.cluster import slurm

        launcher = slurm(args.output.absolute() / "cluster", args.slurm, args.jobs)
    run(
        study,
        text,
        args.output,
        data=args.data,
        at_once=args.jobs,
        launcher=launcher,
        track=args.track,
        fresh=args.fresh,
    )
    look_into(study, args.output.absolute(), args.data)
    print(f"results: {args.output / 'results.jsonl'}; the page: {write_report(args.output)}")


if __name__ == "__main__":
    run_command("study.py", main)
