"""From a study's configuration to its graph of jobs: data, teachers, their stored answers, students, baselines, scores.

Each job's folder is ``runs/<name>`` below the study's own; its name says role, alpha, T, what else varies, and seed.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.lib.jobs import ROOT, Job, load_record, states
from scripts.studies import schema
from scripts.studies.schema import Settings, Study
from vision_reference.errors import UserError

TEACHER, STUDENT, BASELINE = "teacher", "student", "baseline"
DATA, STORE, SEQUENCES, EVALUATION, COMPARISON = "data", "store", "sequences", "evaluation", "comparison"
_TRAINED = (TEACHER, STUDENT, BASELINE)
_AXES = ("network", "alpha", "max-suppression", "temperature")  # with fields of their own in the results
_KINDS = ("alpha", "max-suppression")  # those of them that make a kind of teacher
# Of the lines that fairseq logs after each epoch, and how a curve calls them.
_FAIRSEQ_LOG = {
    "train": {"train_lr": "lr", "train_loss": "train_loss", "train_wps": "words_per_second"},
    "valid": {"valid_nll_loss": "val_nll", "valid_num_updates": "updates"},
}
PYTHON = sys.executable


@dataclass(frozen=True)
class Planned:
    """A job and what the results say about it.

    Attributes:
        role: data, teacher, store, sequences, student, baseline, evaluation or comparison.
        seed: of everything random in it.
        alpha, max_suppression: of the teacher (of a baseline: its own).
        temperature: of the distillation.
        settings: what else sets this cell apart from others of the study.
        pairs: translation: language pairs it learns.
        of: evaluation, comparison: the name of the training it scores.
        against: comparison: the name of the training that it compares that one with.
    """

    job: Job
    role: str
    seed: int
    alpha: float | None = None
    max_suppression: float | None = None
    temperature: float | None = None
    network: str = ""
    settings: Settings = field(default_factory=dict)
    pairs: tuple[str, ...] = ()
    of: str = ""
    against: str = ""

    @property
    def cell(self) -> str:
        """The job's name without its seed: what all seeds of it have in common."""
        return self.job.name.removesuffix(f"_seed{self.seed}")


def make_plan(
    study: Study, output: Path, *, data: Path | None = None, cpu: bool = True, amp: bool = False
) -> list[Planned]:
    """All jobs, each after those it depends on.

    Args:
        study: the configuration.
        output: the study's folder, absolute.
        data: in place of ``study.data``.
        cpu: translation: whether trainings run on the CPU.
        amp: what ``amp: auto`` stands for.

    Raises:
        UserError: two cells are the same job.
    """
    planner = _Images if study.kind == schema.IMAGES else _Translation
    plan = planner(study, output / "runs", data, cpu=cpu, amp=amp).plan()
    names = [planned.job.name for planned in plan]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two different jobs would be called {min(twice)}; say their difference in settings that vary")
    return plan


class _Planner:
    """What both kinds of study share; jobs that several cells need are planned once."""

    def __init__(self, study: Study, runs: Path, data: Path | None, *, cpu: bool, amp: bool) -> None:
        self.study, self.runs, self.cpu, self.amp = study, runs, cpu, amp
        self.jobs: dict[str, Planned] = {}
        self.data = data if data is not None else None if study.data == schema.BUILTIN else Path(study.data)
        cells = [
            (teacher, student)
            for block in study.cells
            for teacher in _on_top(study.settings | study.teacher, block.teacher)
            for student in _on_top(study.settings | study.student, block.student)
        ]
        self.cells = cells
        labels_only = {key: value for key, value in study.student.items() if key not in _OF_TEACHING}
        self.baselines = [one for each in study.baselines for one in _on_top(study.settings | labels_only, each)]
        self.varied_teacher = _varied([teacher for teacher, _ in cells])
        self.varied_student = _varied([student for _, student in cells])
        self.varied_baseline = _varied(self.baselines)

    def plan(self) -> list[Planned]:
        for seed in self.study.seeds:
            for teacher, student in self.cells:
                own = self.study.seeds[0] if self.study.teachers == schema.SHARED else seed
                self.student(seed, student, teacher, own)
            for settings in self.baselines:
                self.baseline(seed, settings)
        self.compare()
        # Seed by seed, so that an unfinished study has whole seeds to compare.
        place = {seed: number for number, seed in enumerate(self.study.seeds)}
        return sorted(
            self.jobs.values(),
            key=lambda planned: (planned.role != DATA, place[planned.seed], _ORDER.index(planned.role)),
        )

    def add(self, planned: Planned) -> Planned:
        known = self.jobs.setdefault(planned.job.name, planned)
        if known.job.command != planned.job.command:
            raise UserError(
                f"two different jobs would be called {planned.job.name}; say their difference in settings that vary"
            )
        return known

    def folder(self, name: str) -> Path:
        return self.runs / name

    def cost(self, role: str) -> float:
        """Minutes, from the configuration's estimate; a second where it gives none."""
        return getattr(self.study.estimate, role, 0.0) or 1 / 60

    def student(self, seed: int, settings: Settings, teacher: Settings, teacher_seed: int) -> None:
        raise NotImplementedError

    def baseline(self, seed: int, settings: Settings) -> None:
        raise NotImplementedError

    def compare(self) -> None:
        """Adds what compares trainings with each other, once all of them are planned."""

    def name(
        self, role: str, settings: Settings, seed: int, varied: Iterable[str], teacher: Settings | None = None
    ) -> str:
        """`student_distilled_alpha0.1_T4_seed0`: roles, the axes, what else varies, the seed."""
        kind = teacher if teacher is not None else settings
        parts = [role]
        for key in varied:
            if key not in ("alpha", "max-suppression", "temperature", "answers"):
                parts.append(_part(key, settings[key]) if key in settings else "")
        parts += [
            _part("teacher-" + key, teacher[key])
            for key in self.varied_teacher
            if teacher and key in teacher and key not in ("alpha", "max-suppression")
        ]
        for key, short in (("alpha", "own-alpha"), ("max-suppression", "own-maxsup")) if teacher is not None else ():
            if key in varied and key in settings:
                parts.append(f"{short}{_text(settings[key])}")
        if kind.get("max-suppression"):
            parts.append(f"maxsup{_text(kind['max-suppression'])}")
        if kind.get("alpha") or not kind.get("max-suppression"):
            parts.append(f"alpha{_text(kind.get('alpha', 0.0))}")
        if teacher is not None:
            parts.append(f"T{_text(settings['temperature'])}")
            if "answers" in varied:
                parts.append(settings["answers"])
        return "_".join([*filter(None, parts), f"seed{seed}"])

    def extras(self, settings: Settings, *varied: Iterable[str]) -> Settings:
        """What sets a cell apart besides the axes that have fields of their own."""
        names = dict.fromkeys(key for some in varied for key in some)
        return {key: settings[key] for key in names if key in settings and key not in _AXES}

    def student_extras(self, settings: Settings, teacher: Settings) -> Settings:
        """What sets a student's cell apart: of its own settings, those that tell baselines apart too; its teacher's."""
        own = {
            f"own-{key}": settings[key]
            for key in ("alpha", "max-suppression")
            if key in self.varied_student and key in settings
        }
        taught = {key: teacher[key] for key in self.varied_teacher if key in teacher and key not in _KINDS}
        return self.extras(settings, self.varied_student, self.varied_baseline) | own | _prefixed(taught)

    def baseline_extras(self, settings: Settings) -> Settings:
        """What sets a baseline apart, from others and from students of other settings."""
        return self.extras(settings, self.varied_baseline, self.varied_student)


_ORDER = (DATA, TEACHER, SEQUENCES, STORE, STUDENT, BASELINE, EVALUATION, COMPARISON)
_OF_TEACHING = {"temperature", "answers", "kd-weight", "kd-tail", "kd-loss", "unlabelled"}


class _Images(_Planner):
    def data_path(self) -> tuple[Path, tuple[str, ...]]:
        """Where the images lie, and the job that makes them."""
        if self.data is not None:
            return self.data, ()
        folder = self.folder("data")
        command = (PYTHON, str(ROOT / "scripts" / "demo" / "digits.py"), "--output", str(folder / "digits"))
        self.add(Planned(Job("data", folder, command, makes=("digits",), cost=5 / 60), DATA, self.study.seeds[0]))
        return folder / "digits", ("data",)

    def train(self, folder: Path, settings: Settings, seed: int, data: Path) -> list[str]:
        words = [PYTHON, str(ROOT / "vision_reference" / "train.py"), "--data-path", str(data)]
        words += ["--output-dir", str(folder), "--resume", "auto", "--seed", str(seed)]
        return words + self.flags(settings)

    def flags(self, settings: Settings) -> list[str]:
        words: list[str] = []
        for key, value in settings.items():
            if key == "answers":
                continue
            if key == "amp" and value == "auto":
                value = self.amp
            if key == "amp-dtype" and settings.get("amp") == "auto" and not self.amp:
                continue
            flag = schema.AXES.get(key, f"--{key}")
            if value is True:
                words.append(flag)
            elif value is False:
                words += [f"--no-{key}"] if key == "channels-last" else []
            elif isinstance(value, list):
                words += [flag, *map(str, value)]
            else:
                words += [flag, _text(value)]
        return words

    def teacher(self, settings: Settings, seed: int) -> Planned:
        data, after = self.data_path()
        name = self.name(TEACHER, settings, seed, self.varied_teacher)
        folder = self.folder(name)
        job = Job(
            name,
            folder,
            tuple(self.train(folder, settings, seed, data)),
            after,
            ("checkpoint.pth", "metrics.jsonl"),
            self.cost(TEACHER),
        )
        return self.add(
            Planned(
                job,
                TEACHER,
                seed,
                settings.get("alpha", 0.0),
                settings.get("max-suppression"),
                None,
                settings["network"],
                self.extras(settings, self.varied_teacher),
            )
        )

    def store(self, teacher: Planned, settings: Settings, student: Settings, seed: int) -> Planned:
        """The teacher's answers; those of further teachers of the seed are about the same views."""
        views = self.study.views or int(student["epochs"])
        name = teacher.job.name.replace(TEACHER, STORE, 1) + (f"_views{views}" if self._several_views() else "")
        folder = self.folder(name)
        data, after = self.data_path()
        words = [PYTHON, str(ROOT / "vision_reference" / "store_soft_labels.py"), "--data-path", str(data)]
        words += ["--output-dir", str(folder / "soft_labels"), "--teacher", settings["network"]]
        words += ["--teacher-weights", str(teacher.job.folder / "checkpoint.pth")]
        first = next((one for one in self.jobs.values() if self._same_views(one, seed, views, name)), None)
        if first:
            words += ["--same-views-as", str(first.job.folder / "soft_labels")]
            after = (*after, first.job.name)
        else:
            words += ["--views", str(views), "--seed", str(seed)]
        if self.study.top_k:
            temperatures = sorted({float(one["temperature"]) for _, one in self.cells})
            words += ["--top-k", str(self.study.top_k), "--temperatures", ",".join(map(_text, temperatures))]
        allowed = _store_flags()
        words += self.flags({key: value for key, value in student.items() if key in allowed})
        job = Job(
            name, folder, tuple(words), (*after, teacher.job.name), ("soft_labels/manifest.json",), self.cost(STORE)
        )
        extras = teacher.settings | {"views": views}
        return self.add(
            Planned(job, STORE, seed, teacher.alpha, teacher.max_suppression, None, teacher.network, extras)
        )

    def _several_views(self) -> bool:
        return not self.study.views and len({student["epochs"] for _, student in self.cells}) > 1

    def _same_views(self, one: Planned, seed: int, views: int, name: str) -> bool:
        found = one.role == STORE and one.seed == seed and one.settings.get("views") == views
        return found and one.job.name != name and "--same-views-as" not in one.job.command

    def student(self, seed: int, settings: Settings, teacher: Settings, teacher_seed: int) -> None:
        taught = self.teacher(teacher, teacher_seed)
        data, after = self.data_path()
        name = self.name("student_distilled", settings, seed, self.varied_student, teacher)
        folder = self.folder(name)
        words = self.train(folder, settings, seed, data)
        if settings.get("answers", self.study.teacher_answers) == schema.STORED:
            stored = self.store(taught, teacher, settings, teacher_seed)
            words += ["--soft-labels", str(stored.job.folder / "soft_labels")]
            after = (*after, stored.job.name)
        else:
            words += ["--teacher", teacher["network"], "--teacher-weights", str(taught.job.folder / "checkpoint.pth")]
            after = (*after, taught.job.name)
        job = Job(name, folder, tuple(words), after, ("checkpoint.pth", "metrics.jsonl"), self.cost(STUDENT))
        self.add(
            Planned(
                job,
                STUDENT,
                seed,
                taught.alpha,
                taught.max_suppression,
                float(settings["temperature"]),
                settings["network"],
                self.student_extras(settings, teacher),
            )
        )

    def baseline(self, seed: int, settings: Settings) -> None:
        data, after = self.data_path()
        name = self.name("student_labels", settings, seed, self.varied_baseline)
        folder = self.folder(name)
        job = Job(
            name,
            folder,
            tuple(self.train(folder, settings, seed, data)),
            after,
            ("checkpoint.pth", "metrics.jsonl"),
            self.cost(BASELINE),
        )
        self.add(
            Planned(
                job,
                BASELINE,
                seed,
                settings.get("alpha", 0.0),
                settings.get("max-suppression"),
                None,
                settings["network"],
                self.baseline_extras(settings),
            )
        )


class _Translation(_Planner):
    """Experts of one pair each, one student of all pairs, a score of each."""

    def data_path(self) -> tuple[Path, tuple[str, ...]]:
        """The data-bin, and the job that prepares it."""
        options = dict(self.study.prepare)
        if not options:
            if self.data is None:
                raise UserError("data: builtin needs prepare: {from: builtin}")
            return self.data / "data-bin", ()
        folder = self.folder(DATA)
        source = options.pop("from")
        words = [PYTHON, str(ROOT / "scripts" / "nmt" / "prepare.py"), source]
        if source == "iwslt":
            words += [str(file) for file in sorted(Path(self.data or ".").rglob("*.tgz"))] or [str(self.data)]
        elif source == "parallel":
            words += ["--input", str(self.data)]
        words += ["--output", str(folder / "prepared")]
        if source != "builtin":
            words += ["--pairs", ",".join(self.study.pairs)]
        for key, value in options.items():
            words += [f"--{key.replace('_', '-')}", _text(value)]
        job = Job(DATA, folder, tuple(words), makes=("prepared/manifest.json",), cost=1)
        self.add(Planned(job, DATA, self.study.seeds[0]))
        return folder / "prepared" / "data-bin", (DATA,)

    def recipe(self, settings: Settings, seed: int) -> tuple[dict[str, str], list[str]]:
        """Settings of the recipe, and further options."""
        from scripts.nmt.lib import recipe

        given = {
            {"alpha": "label_smoothing"}.get(key, key.replace("-", "_")): _text(value)
            for key, value in settings.items()
            if key not in ("answers", "options", "sequences")
        }
        return recipe.filled(given | {"seed": str(seed)}), settings.get("options", [])

    def expert(self, settings: Settings, pair: str, seed: int) -> Planned:
        from scripts.nmt.lib import recipe

        data_bin, after = self.data_path()
        name = self.name(f"expert_{pair}", settings, seed, self.varied_teacher)
        values, more = self.recipe(settings, seed)
        folder = self.folder(name)
        command = recipe.expert_command(data_bin, pair, folder, values, self.cpu) + more
        job = Job(name, folder, tuple(command), after, ("checkpoint_best.pt",), self.cost(TEACHER), exact_epochs=True)
        planned = Planned(
            job,
            TEACHER,
            seed,
            float(values["label_smoothing"]),
            None,
            None,
            values["arch"],
            self.extras(settings, self.varied_teacher),
            (pair,),
        )
        known = self.add(planned)
        self.evaluation(known)
        return known

    def evaluation(self, trained: Planned) -> None:
        from scripts.nmt.lib import recipe

        data_bin, after = self.data_path()
        name = f"bleu_{trained.job.name}"
        folder = self.folder(name)
        checkpoint = trained.job.folder / "checkpoint_best.pt"
        command = [PYTHON, *recipe.evaluate_command(data_bin, checkpoint, trained.pairs, folder / "bleu.json")[1:]]
        job = Job(name, folder, tuple(command), (*after, trained.job.name), ("bleu.json",), self.cost(EVALUATION))
        self.add(Planned(job, EVALUATION, trained.seed, pairs=trained.pairs, of=trained.job.name))

    def training_data(self, settings: Settings, teacher: Settings, teacher_seed: int) -> tuple[Path, tuple[str, ...]]:
        """The data-bin that a student is trained on, and the jobs that make it: with `sequences`, its experts'."""
        from scripts.nmt.lib import recipe

        data_bin, after = self.data_path()
        if not settings.get("sequences"):
            return data_bin, after
        experts = {pair: self.expert(teacher, pair, teacher_seed) for pair in self.study.pairs}
        files = {pair: str(expert.job.folder / "checkpoint_best.pt") for pair, expert in experts.items()}
        name = self.name(SEQUENCES, teacher, teacher_seed, self.varied_teacher)
        folder = self.folder(name)
        words = recipe.sequences_command(data_bin.parent, files, folder / "distilled", self.cpu)
        job = Job(
            name,
            folder,
            (PYTHON, *words[1:]),
            (*after, *(expert.job.name for expert in experts.values())),
            ("distilled/manifest.json",),
            self.cost(SEQUENCES),
        )
        alpha = next(iter(experts.values())).alpha
        self.add(Planned(job, SEQUENCES, teacher_seed, alpha, pairs=self.study.pairs))
        return folder / "distilled" / "data-bin", (*after, name)

    def student(self, seed: int, settings: Settings, teacher: Settings, teacher_seed: int) -> None:
        from scripts.nmt.lib import recipe

        data_bin, after = self.training_data(settings, teacher, teacher_seed)
        experts = {pair: self.expert(teacher, pair, teacher_seed) for pair in self.study.pairs}
        files = {pair: str(expert.job.folder / "checkpoint_best.pt") for pair, expert in experts.items()}
        values, more = self.recipe(settings, seed)
        if settings.get("answers", self.study.teacher_answers) == schema.STORED:
            top_k = str(self.study.top_k) if self.study.top_k else values["top_k"]
            stores = {}
            for pair, expert in experts.items():
                of_what = f"{STORE}_{SEQUENCES}" if settings.get("sequences") else STORE
                name = expert.job.name.replace("expert", of_what, 1)
                folder = self.folder(name)
                temperatures = sorted({float(one["temperature"]) for _, one in self.cells})
                words = recipe.store_command(
                    data_bin, pair, files[pair], folder / "outputs", top_k, self.cpu, temperatures
                )
                job = Job(
                    name,
                    folder,
                    (PYTHON, *words[1:]),
                    (*after, expert.job.name),
                    ("outputs/manifest.json",),
                    self.cost(STORE),
                )
                stores[pair] = self.add(Planned(job, STORE, teacher_seed, expert.alpha, pairs=(pair,)))
            named = [f"{pair}={store.job.folder / 'outputs'}" for pair, store in stores.items()]
            teaching = ["--teacher-outputs", ",".join(named)]
            needs = tuple(store.job.name for store in stores.values())
        else:
            teaching = ["--teachers", ",".join(f"{pair}={file}" for pair, file in files.items())]
            needs = tuple(expert.job.name for expert in experts.values())
        name = self.name("student_distilled", settings, seed, self.varied_student, teacher)
        folder = self.folder(name)
        command = recipe.student_command(data_bin, self.study.pairs, folder, values, self.cpu, teaching) + more
        job = Job(
            name,
            folder,
            tuple(command),
            (*after, *needs),
            ("checkpoint_best.pt",),
            self.cost(STUDENT),
            exact_epochs=True,
        )
        alpha = next(iter(experts.values())).alpha
        self.evaluation(
            self.add(
                Planned(
                    job,
                    STUDENT,
                    seed,
                    alpha,
                    None,
                    float(settings["temperature"]),
                    values["arch"],
                    self.student_extras(settings, teacher),
                    self.study.pairs,
                )
            )
        )

    def baseline(self, seed: int, settings: Settings) -> None:
        from scripts.nmt.lib import recipe

        # the experts of a baseline's sequences are those of the first cell
        own = self.study.seeds[0] if self.study.teachers == schema.SHARED else seed
        data_bin, after = self.training_data(settings, self.cells[0][0], own)
        name = self.name("student_labels", settings, seed, self.varied_baseline)
        values, more = self.recipe(settings, seed)
        folder = self.folder(name)
        command = recipe.student_command(data_bin, self.study.pairs, folder, values, self.cpu) + more
        job = Job(name, folder, tuple(command), after, ("checkpoint_best.pt",), self.cost(BASELINE), exact_epochs=True)
        self.evaluation(
            self.add(
                Planned(
                    job,
                    BASELINE,
                    seed,
                    float(values["label_smoothing"]),
                    None,
                    None,
                    values["arch"],
                    self.baseline_extras(settings),
                    self.study.pairs,
                )
            )
        )

    def compare(self) -> None:
        """Of each seed, the students at the lowest T with those on labels alone and with the plain teacher's."""
        planned = list(self.jobs.values())
        students = [one for one in planned if one.role == STUDENT]
        lowest = min((one.temperature or 0 for one in students), default=0)
        students = [one for one in students if one.temperature == lowest]
        for student in students:
            alike = [one for one in students if one.settings == student.settings and not one.alpha and student.alpha]
            for other in [*alike, *(one for one in planned if one.role == BASELINE)]:
                if other.seed == student.seed:
                    self.comparison(student, other)

    def comparison(self, student: Planned, other: Planned) -> None:
        from scripts.nmt.lib import recipe

        name = f"compare_{student.cell}_with_{other.job.name}"
        folder = self.folder(name)
        scored = [f"bleu_{one.job.name}" for one in (other, student)]
        words = recipe.compare_command(*(self.folder(each) / "bleu.json" for each in scored), folder / "compare.json")
        job = Job(name, folder, (PYTHON, *words[1:]), tuple(scored), ("compare.json",), 0.1)
        self.add(
            Planned(job, COMPARISON, student.seed, pairs=student.pairs, of=student.job.name, against=other.job.name)
        )


def comparisons(plan: Iterable[Planned]) -> list[dict]:
    """A line of ``results.jsonl`` for each pair of trainings and each language pair that a bootstrap has compared."""
    plan = list(plan)
    by_name, done = {planned.job.name: planned for planned in plan}, _finished(plan)
    lines = []
    for planned in plan:
        if planned.role != COMPARISON or planned.job.name not in done:
            continue
        sets = json.loads((planned.job.folder / "compare.json").read_text())["sets"]
        names = [_in_words(by_name[name]) for name in (planned.of, planned.against)]
        for pair in planned.pairs:
            lines.append(
                {
                    "kind": "bootstrap",
                    "name": f"{names[0]} minus {names[1]}, seed {planned.seed}",
                    "pair": pair,
                    "difference": sets[pair]["bleu"]["difference"],
                    "p": sets[pair]["bleu"]["p_value"],
                    "student": planned.of,
                    "against": planned.against,
                }
            )
    return lines


def _in_words(planned: Planned) -> str:
    """`smoothed teacher, T = 1`; `labels alone`."""
    smoothed = "" if not planned.alpha else f"smoothed {planned.alpha:g} "
    extras = "".join(
        f", {key}" if value is True else f", no {key}" if value is False else f", {key} {_text(value)}"
        for key, value in planned.settings.items()
    )
    if planned.role == BASELINE:
        return f"{smoothed}labels alone{extras}"
    return f"{smoothed or 'plain '}teacher, T = {planned.temperature:g}{extras}"


def results(plan: Iterable[Planned], output: Path) -> list[dict]:
    """A line of ``results.jsonl`` for each finished training (and, of translation, its finished evaluation)."""
    plan = list(plan)
    scores, done = {planned.of: planned for planned in plan if planned.role == EVALUATION}, _finished(plan)
    lines = []
    for planned in plan:
        record = load_record(planned.job) if planned.role in _TRAINED and planned.job.name in done else None
        if record is None:
            continue
        if planned.pairs:
            scored = scores[planned.job.name]
            if scored.job.name not in done:
                continue
            measured = _translation_metrics(scored) | {"curve": _translation_curve(planned.job.log_file)}
        else:
            measured = _image_metrics(planned, output)
        lines.append(
            {
                "job": planned.job.name,
                "role": planned.role,
                "seed": planned.seed,
                "alpha": planned.alpha,
                "max_suppression": planned.max_suppression,
                "temperature": planned.temperature,
                "network": planned.network,
                "settings": planned.settings,
                **measured,
                "seconds": round(record["seconds"], 2),
                "cpu_seconds": round(record["cpu_seconds"], 2),
                "command": record["command"],
                "folder": str(planned.job.folder.relative_to(output)),
                "versions": record.get("versions", {}),
                "commit": record.get("commit"),
                "host": record.get("host"),
                "finished": record.get("ended"),
            }
        )
    return lines


def _finished(plan: Iterable[Planned]) -> set[str]:
    """Names of the jobs that have finished with the plan's settings: a result of others is none of this study's."""
    return {name for name, state in states(planned.job for planned in plan).items() if state.kind == "finished"}


def _image_metrics(planned: Planned, output: Path) -> dict[str, Any]:
    """The last epoch's accuracy: nothing is picked by looking at the validation images."""
    epochs = [json.loads(line) for line in (planned.job.folder / "metrics.jsonl").read_text().splitlines()]
    if not epochs:
        raise UserError(f"{planned.job.folder / 'metrics.jsonl'} is empty; remove the folder to run it again")
    names = {"val_acc1": "acc1", "val_acc5": "acc5", "val_loss": "val_loss"}
    kept = ("epoch", "lr", "train_loss", "train_acc1", "seconds", "images_per_second")
    curve = [
        {key: epoch[key] for key in kept if key in epoch} | {new: epoch[old] for old, new in names.items()}
        for epoch in epochs
    ]
    outcomes = planned.job.folder / "outcomes.npy"
    return {
        "metrics": {"acc1": epochs[-1]["val_acc1"], "acc5": epochs[-1]["val_acc5"]},
        "outcomes": str(outcomes.relative_to(output)) if outcomes.is_file() else None,
        "curve": curve,
    }


def _translation_metrics(scored: Planned) -> dict[str, Any]:
    found = json.loads((scored.job.folder / "bleu.json").read_text())
    pairs = found["pairs"]
    return {
        "metrics": {
            "bleu": {pair: one["bleu"] for pair, one in pairs.items()},
            "chrf": {pair: one["chrf"] for pair, one in pairs.items()},
            "signature": found.get("signatures", {}).get("bleu"),
        },
        "outcomes": None,
        "evaluation": str(Path("runs") / scored.job.folder.name / "bleu.json"),
    }


def _translation_curve(log: Path) -> list[dict[str, float]]:
    """What fairseq's log (--log-format json) says of each epoch; of one that a stopped run repeated, the last time.

    `val_nll` is the negative log-likelihood of the validation targets in bits per word piece, without smoothing and
    distillation, so it compares across all of a study. A last epoch that --max-update ends before its middle is left
    out: its point would make any curve look flat.
    """
    epochs: dict[int, dict[str, float]] = {}
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        for part, names in _FAIRSEQ_LOG.items():
            if f" | {part} | {{" in line:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    told = json.loads(line[line.index("{") :])
                    values = {new: float(told[old]) for old, new in names.items() if old in told}
                    epochs.setdefault(int(told["epoch"]) - 1, {}).update(values)
    curve = [{"epoch": epoch, **values} for epoch, values in sorted(epochs.items())]
    updates = [entry.get("updates", 0.0) for entry in curve]
    if len(curve) > 1 and updates[-1] - updates[-2] < updates[0] / 2:
        curve.pop()
    return curve


def _on_top(common: Settings, axes: Settings) -> list[Settings]:
    return [common | one for one in schema.combinations(axes)]


def _varied(settings: list[Settings]) -> list[str]:
    """Names of settings that are not the same in all; without those that go with the network, as its weights do."""
    names = dict.fromkeys(key for one in settings for key in one)
    varied = [key for key in names if len({repr(one.get(key)) for one in settings}) > 1]
    networks = {one.get("network") for one in settings}
    if len(networks) == 1:
        return varied
    pairs = {key: {(one.get("network"), repr(one.get(key))) for one in settings} for key in varied}
    return [key for key in varied if key in _AXES or len(pairs[key]) > len(networks)]


def _prefixed(settings: Mapping[str, Any]) -> Settings:
    return {f"teacher-{key}": value for key, value in settings.items()}


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return short if float(short := f"{value:g}") == value else repr(value)


def _part(key: str, value: Any) -> str:
    """`kd-weight0.5`, and networks by their name alone; fit for a folder."""
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    text = "-".join(map(str, value)) if isinstance(value, list) else _text(value)
    text = "".join(letter if letter.isalnum() or letter in ".-+" else "-" for letter in text)
    return text if key == "network" else f"{key}{text}"


def _store_flags() -> set[str]:
    """Settings of trainings that store_soft_labels.py knows too, by the names that studies use."""
    from vision_reference.arguments import get_store_args_parser

    options = {option for action in get_store_args_parser()._actions for option in action.option_strings}
    return {option.removeprefix("--") for option in options if option.startswith("--")} - {
        "seed",
        "views",
        "top-k",
        "temperatures",
        "teacher",
        "teacher-weights",
        "output-dir",
        "data-path",
        "help",
    }
