"""The configuration of a study: a YAML file, checked key by key. A mistake names file, line, key and what is allowed.

Everything a study may say is a field of ``Study``; its docstring is the reference. Settings of a training are the flags
of ``train.py`` (images) or the settings of ``scripts/nmt/lib/recipe.py`` (translation), by their names, next to the few
that the study itself knows: ``network``, ``alpha``, ``temperature`` and ``answers``; and ``sequences`` (true: a student
of translation learns from its experts' translations of the training sources in place of the references).
"""

import argparse
import difflib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vision_reference.errors import UserError

IMAGES, TRANSLATION = "images", "translation"
PER_SEED, SHARED = "per-seed", "shared"
RUNNING, STORED = "running", "stored"
BUILTIN = "builtin"

Settings = dict[str, Any]

# What a study calls the flags that are its axes.
AXES = {"network": "--model", "alpha": "--label-smoothing", "temperature": "--kd-temperature"}
# Flags of train.py that the study sets.
_SET_HERE = {
    "--data-path", "--output-dir", "--resume", "--start-epoch", "--test-only", "--seed", "--teacher",
    "--teacher-weights", "--soft-labels", "--keep-checkpoints", "--world-size", "--dist-url", "--download", "--help",
    "--overwrite", "--debug", "--track",
}  # fmt: skip
_OF_STUDENTS = {"temperature", "answers", "kd-weight", "kd-tail", "kd-loss", "unlabelled"}


_MOST_NODES, _DEEPEST = 100_000, 50
_MOST_SEEDS, _HIGHEST_SEED = 40, 2**32 - 1  # what the exact test counts, and what numpy takes


class ConfigError(UserError):
    """A mistake in a configuration, with its file and line."""


@dataclass(frozen=True)
class Cells:
    """A block of the grid: every combination of the values given; a list stands for several.

    Attributes:
        teacher: settings of the teachers, on top of ``Study.teacher``.
        student: settings of the students, on top of ``Study.student``.
    """

    teacher: Settings = field(default_factory=dict)
    student: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """About how long a job takes and what it leaves, for ``plan`` before any job has finished.

    Attributes:
        on: the machine this was measured on.
        teacher, student, baseline, store, sequences, evaluation: minutes of one job.
        megabytes: that a training leaves on the disk.
    """

    on: str = ""
    teacher: float = 0.0
    student: float = 0.0
    baseline: float = 0.0
    store: float = 0.0
    sequences: float = 0.0
    evaluation: float = 0.0
    megabytes: float = 0.0


@dataclass(frozen=True)
class Study:
    """A grid of trainings.

    Attributes:
        title: what the page is called.
        question: a line below it.
        kind: images or translation.
        data: images: a folder with train/ and val/ (cub200: that of CUB_200_2011/); translation: a folder of parallel
            text, of IWSLT archives, or made by prepare.py; "builtin": the digits, or the phrases of the CLDR.
        seeds: of everything random. Within a seed all students share first weights, order and augmentation.
        teachers: per-seed (each seed trains its own of each kind) or shared (one of each kind, with the first seed).
        teacher_answers: running (the teacher runs along) or stored (once for all students).
        views: images, stored: how many views of each image (0: one for each epoch of the students).
        top_k: stored: entries kept (images: 0 keeps all classes).
        settings: of every training.
        teacher, student: on top, of every teacher or student (and baseline).
        cells: the grid.
        baselines: students on labels alone.
        pairs: translation: language pairs, such as [en-de, en-ru].
        prepare: translation: options of prepare.py; none where ``data`` is prepared already.
        paper: which of the paper's tables the configuration follows: imagenet, cub, iwslt or none.
        estimate: time and disk.
    """

    title: str
    kind: str
    data: str
    seeds: tuple[int, ...]
    cells: tuple[Cells, ...]
    question: str = "Smooth the teacher or not, and which temperature?"
    teachers: str = PER_SEED
    teacher_answers: str = RUNNING
    views: int = 0
    top_k: int = 0
    settings: Settings = field(default_factory=dict)
    teacher: Settings = field(default_factory=dict)
    student: Settings = field(default_factory=dict)
    baselines: tuple[Settings, ...] = ()
    pairs: tuple[str, ...] = ()
    prepare: Settings = field(default_factory=dict)
    paper: str = ""
    estimate: Estimate = field(default_factory=Estimate)
    name: str = ""


_CHOICES = {
    "kind": (IMAGES, TRANSLATION),
    "teachers": (PER_SEED, SHARED),
    "teacher_answers": (RUNNING, STORED),
    "paper": ("", "imagenet", "cub", "cifar100", "iwslt"),
}


def read_study(path: Path) -> Study:
    """The study that a file describes.

    Raises:
        ConfigError: the file cannot be read, or says something that a study cannot.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        shipped = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"cannot read {path}: {reason}; shipped in scripts/studies/configs: {shipped}") from None
    return parse_study(text, str(path), name=path.stem)


CONFIGS = Path(__file__).resolve().parent / "configs"


def parse_study(text: str, source: str = "configuration", name: str = "study") -> Study:
    """As ``read_study``, from text; ``source`` is what messages call it."""
    return _Reader(source, text).study(name)


def combinations(settings: Mapping[str, Any]) -> list[Settings]:
    """Every combination of the values given: {a: [1, 2], b: 3} -> [{a: 1, b: 3}, {a: 2, b: 3}]."""
    values = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, chosen, strict=True)) for chosen in itertools.product(*values)]


class _Reader:
    """Checks one file; ``self.lines`` has the line of every key, by the path to it."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self.lines: dict[tuple, int] = {}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ConfigError(f"{source}{where}: not YAML ({getattr(error, 'problem', None) or error})") from None
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{source}: no study: its first line should be a key such as 'title: ...'")
        self._nodes = 0
        self.data = self._plain(node, ())
        self.flags: dict[str, argparse.Action] = {}

    def fail(self, message: str, *path: object) -> ConfigError:
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return ConfigError(f"{self.source}{f', line {line}' if line else ''}: {message}")

    def _plain(self, node: yaml.Node, path: tuple) -> Any:
        """The node as dicts, lists and scalars; notes its lines."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._nodes += 1
        if self._nodes > _MOST_NODES or len(path) > _DEEPEST:  # a few lines of aliases can stand for billions
            raise self.fail("too large: its lists of lists (or their aliases) have no end", *path)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, number)) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            found: dict = {}
            for key_node, value in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
                line = self.lines.get((*path, key))
                self.lines[(*path, key)] = key_node.start_mark.line + 1
                if key in found:
                    raise self.fail(f"{key} is given twice, first in line {line}; keep one", *path, key)
                found[key] = self._plain(value, (*path, key))
            return found
        constructor = yaml.constructor.SafeConstructor()
        try:
            value = constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            raise self.fail(f"cannot make sense of {getattr(node, 'value', '')!r}", *path) from None
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if (is_whole and str(value) != node.value.lstrip("+")) or (isinstance(value, float) and ":" in node.value):
            # 010 is 8 to YAML, and 1:30 is 90
            raise self.fail(f"{node.value} would be read as {value}; write {value}, or quote it", *path)
        return value if isinstance(value, bool | int | float | str) or value is None else str(value)

    # Keys and their values

    def check_keys(self, found: Mapping, allowed: Iterable[str], *path: object) -> None:
        allowed = sorted(allowed)
        for key in found:
            if key not in allowed:
                raise self.fail(f"there is no {key!r} here{_nearest(key, allowed)}", *path, key)

    def study(self, name: str) -> Study:
        data = self.data
        known = {item.name: item for item in fields(Study) if item.name != "name"}
        self.check_keys(data, known)
        for needed in ("title", "kind", "data", "seeds", "cells"):
            if data.get(needed) is None:
                raise self.fail(f"{needed!r} is missing; a study needs title, kind, data, seeds and cells")
        values: dict[str, Any] = {"name": name}
        for key, choices in _CHOICES.items():
            if key in data and (values.setdefault(key, data[key])) not in choices:
                allowed = ", ".join(choice for choice in choices if choice)
                raise self.fail(f"{key}: {data[key]!r} is none of {allowed}", key)
        for key in ("title", "question", "data"):
            if key in data:
                values[key] = self.text(data[key], key)
        for key in ("views", "top_k"):
            if key in data:
                values[key] = self.whole(data[key], 0, key)
        values["seeds"] = self.seeds(data["seeds"])
        images = values["kind"] == IMAGES
        self.flags = _image_flags() if images else {}
        for role in ("settings", "teacher", "student"):
            if role in data:
                values[role] = self.settings(data[role], role, images, (role,), axes=False)
        values["cells"] = tuple(self.cells(data["cells"], images))
        baselines = data.get("baselines") or []
        if not isinstance(baselines, list):
            raise self.fail("baselines: give a list of settings, such as '- {alpha: [0.0, 0.1]}'", "baselines")
        values["baselines"] = tuple(
            self.settings(each, "baselines", images, ("baselines", number)) for number, each in enumerate(baselines)
        )
        if "estimate" in data:
            values["estimate"] = self.estimate(data["estimate"])
        if images and (misplaced := [key for key in ("pairs", "prepare") if key in data]):
            raise self.fail(f"{misplaced[0]!r} is for kind: translation", misplaced[0])
        if not images:
            values["pairs"] = self.pairs(data.get("pairs"))
            values["prepare"] = self.prepare(data.get("prepare"), values["data"])
        study = Study(**values)
        self.check_whole(study)
        return study

    def check_whole(self, study: Study) -> None:
        images = study.kind == IMAGES
        for number, block in enumerate(study.cells):
            student = study.settings | study.student | block.student
            teacher = study.settings | study.teacher | block.teacher
            if "temperature" not in student:
                raise self.fail("no temperature: give student: {temperature: [1, 4]}", "cells", number)
            for role, each in (("teacher", teacher), ("student", student)) if images else ():
                for key, example in (("network", "resnet18"), ("epochs", "20")):
                    if key not in each:
                        raise self.fail(f"no {key} of the {role}: give {role}: {{{key}: {example}}}", "cells", number)
        for number, each in enumerate(study.baselines) if images else ():
            for key in {"network", "epochs"} - (study.settings | study.student | each).keys():
                raise self.fail(f"no {key} of the baseline: give it here or under 'student'", "baselines", number)

    def text(self, value: Any, *path: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.fail(f"{path[-1]}: {value!r} is no text", *path)
        return value

    def whole(self, value: Any, least: int, *path: object, most: int | None = None) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
            upper = f" to {most}" if most else ""
            raise self.fail(f"{path[-1]}: {value!r} is not a whole number from {least}{upper}", *path)
        return value

    def number(self, value: Any, low: float, high: float, *path: object) -> float:
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not (low <= number <= high) or math.isinf(number):
            upper = "" if math.isinf(high) else f" to {high:g}"
            raise self.fail(f"{path[-1]}: {value!r} is not a number from {low:g}{upper}", *path)
        return number

    def seeds(self, value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise self.fail("seeds: the list is empty; give one or more, such as [0, 1, 2]", "seeds")
        seeds = tuple(self.whole(each, 0, "seeds", most=_HIGHEST_SEED) for each in values)
        if len(seeds) > _MOST_SEEDS:
            raise self.fail(f"seeds: {len(seeds)} are more than {_MOST_SEEDS}, which the exact test counts", "seeds")
        if len(set(seeds)) < len(seeds):
            raise self.fail("seeds: one is given twice; each counts once", "seeds")
        return seeds

    def estimate(self, value: Any) -> Estimate:
        if not isinstance(value, dict):
            raise self.fail("estimate: give keys such as 'teacher: 17' (minutes)", "estimate")
        self.check_keys(value, [item.name for item in fields(Estimate)], "estimate")
        numbers = {key: self.number(each, 0, math.inf, "estimate", key) for key, each in value.items() if key != "on"}
        return Estimate(on=str(value.get("on", "")), **numbers)

    def cells(self, value: Any, images: bool) -> Iterable[Cells]:
        if not isinstance(value, list) or not value:
            raise self.fail("cells: give a list of blocks, such as '- teacher: {alpha: [0.0, 0.1]}'", "cells")
        for number, block in enumerate(value):
            path = ("cells", number)
            if not isinstance(block, dict):
                raise self.fail("a block of cells has the keys teacher and student", *path)
            self.check_keys(block, ("teacher", "student"), *path)
            yield Cells(**{role: self.settings(each, role, images, (*path, role)) for role, each in block.items()})

    def settings(self, value: Any, role: str, images: bool, path: tuple, axes: bool = True) -> Settings:
        """Checked settings, by the names that flags have; with ``axes`` a list stands for several values."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.fail(f"{role}: give keys and values, such as 'alpha: 0.1'", *path)
        checked: Settings = {}
        for given, each in value.items():
            key = given.replace("_", "-")
            if key in checked:
                raise self.fail(f"{given} is given twice, in two spellings; keep one", *path, given)
            if key in _OF_STUDENTS and role != "student":
                raise self.fail(f"{given!r} is a setting of distilled students; give it under 'student'", *path, given)
            several = axes and isinstance(each, list)
            if several and not each:
                raise self.fail(f"{given}: the list is empty", *path, given)
            check = self.image_setting if images else self.translation_setting
            results = [check(key, one, (*path, given)) for one in (each if several else [each])]
            if several and len({repr(one) for one in results}) < len(results):
                raise self.fail(f"{given}: a value is given twice", *path, given)
            checked[key] = results if several else results[0]
        return checked

    def common_setting(self, key: str, value: Any, path: tuple) -> Any:
        """Checks the settings that both kinds have; None for another."""
        if key == "alpha":
            return self.number(value, 0, 1, *path)
        if key == "temperature":
            number = self.number(value, 0, math.inf, *path)
            if not number:
                raise self.fail(f"temperature: {value!r} is not above 0", *path)
            return number
        if key == "answers":
            if value not in (RUNNING, STORED):
                raise self.fail(f"answers: {value!r} is none of {RUNNING}, {STORED}", *path)
            return value
        return None

    def image_setting(self, key: str, value: Any, path: tuple) -> Any:
        if (checked := self.common_setting(key, value, path)) is not None:
            return checked
        if key == "amp" and value == "auto":
            return value
        flag = AXES.get(key, f"--{key}")
        if flag in _SET_HERE:
            raise self.fail(f"{path[-1]!r} is set by the study itself; drop it", *path)
        named = {v: k for k, v in AXES.items()}
        if key not in AXES and flag in named:
            raise self.fail(f"a study calls {path[-1]!r} {named[flag]!r}; use that", *path)
        if flag not in self.flags:
            names = [name.removeprefix("--") for name in self.flags if name not in _SET_HERE and name not in named]
            raise self.fail(f"there is no setting {path[-1]!r}{_nearest(key, [*names, *AXES, 'answers'])}", *path)
        checked = self.flag_value(self.flags[flag], value, path)
        self.check_name(key, str(checked), path)
        return checked

    def check_name(self, key: str, name: str, path: tuple) -> None:
        """Refuses a network or a loss that there is not; nothing of the user's own is imported."""
        if key not in ("network", "kd-loss"):
            return
        from vision_reference.losses.by_name import is_own, parse_kd_loss  # takes seconds to import
        from vision_reference.networks import by_name

        try:
            if key == "network":
                by_name.check_name(name)
            elif not is_own(name):
                parse_kd_loss(name)
        except UserError as error:
            raise self.fail(error.line, *path) from None

    def flag_value(self, action: argparse.Action, value: Any, path: tuple) -> Any:
        """Checks a value as the command line of train.py would; it stays as it is in the file."""
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise self.fail(f"{path[-1]}: {value!r} is neither true nor false", *path)
            return value
        several = action.nargs in ("+", "*")
        values = value if several and isinstance(value, list) else [value]
        for each in values:
            if isinstance(each, list | dict) or each is None or isinstance(each, bool):
                raise self.fail(f"{path[-1]}: {each!r} is not a value of {action.option_strings[-1]}", *path)
            try:
                parsed = action.type(str(each)) if callable(action.type) else str(each)
            except (argparse.ArgumentTypeError, ValueError) as error:
                raise self.fail(f"{path[-1]}: {error}", *path) from None
            if path[-1] == "epochs" and parsed < 1:
                raise self.fail(f"epochs: {each!r} is below 1", *path)
            if action.choices is not None and parsed not in action.choices:
                raise self.fail(f"{path[-1]}: {each!r} is none of {', '.join(map(str, action.choices))}", *path)
        return values if several else value

    def translation_setting(self, key: str, value: Any, path: tuple) -> Any:
        from scripts.nmt.lib import recipe
        from scripts.nmt.lib.user_error import UserError as TranslationError

        if (checked := self.common_setting(key, value, path)) is not None:
            return checked
        name = key.replace("-", "_")
        if name == "sequences":
            if "teacher" in path[:-1]:
                raise self.fail("'sequences' is a setting of students; give it under 'student' or 'baselines'", *path)
            if not isinstance(value, bool):
                raise self.fail(f"sequences: {value!r} is neither true nor false", *path)
            return value
        if name == "options":
            words = value if isinstance(value, list) else str(value).split()
            return [str(word) for word in words]
        if name not in recipe.SETTINGS:
            raise self.fail(
                f"there is no setting {path[-1]!r}"
                f"{_nearest(name, [*recipe.SETTINGS, 'alpha', 'temperature', 'answers', 'sequences', 'options'])}",
                *path,
            )
        try:
            recipe.check_setting(name, str(value), called=str(path[-1]))
        except TranslationError as error:
            raise self.fail(str(error), *path) from None
        return value

    def pairs(self, value: Any) -> tuple[str, ...]:
        from scripts.nmt.lib.lang_pair import parse_pairs

        if not isinstance(value, list) or not value:
            raise self.fail("kind: translation needs pairs, such as [en-de, en-fr]", "pairs")
        try:
            return tuple(str(pair) for pair in parse_pairs(",".join(map(str, value))))
        except Exception as error:
            raise self.fail(f"pairs: {error}", "pairs") from None

    def prepare(self, value: Any, data: str) -> Settings:
        """How the data is prepared; without it, ``data`` is a folder that prepare.py has made."""
        if value is None and data != BUILTIN:
            return {}
        allowed = ("from", "train", "valid", "test", "vocab_size", "model_type", "character_coverage")
        if not isinstance(value, dict):
            raise self.fail("prepare: give keys such as 'vocab_size: 8000'", "prepare")
        self.check_keys(value, allowed, "prepare")
        if value.get("from") not in ("parallel", "iwslt", "builtin"):
            raise self.fail("prepare: from: parallel, iwslt or builtin says what data is", "prepare", "from")
        if (value["from"] == BUILTIN) != (data == BUILTIN):
            raise self.fail(f"prepare: from: {value['from']} does not go with data: {data}", "prepare", "from")
        return value


def _nearest(key: str, allowed: Iterable[str]) -> str:
    """`; did you mean seeds? allowed: ...`"""
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(key.replace("_", "-"), [name.replace("_", "-") for name in allowed], 1, 0.6)
    shown = [name for name in allowed if name.replace("_", "-") in close]
    listed = ", ".join(allowed) if len(allowed) <= 40 else f"{len(allowed)} names, see train.py --help"
    return f"{f'; did you mean {shown[0]!r}?' if shown else ';'} allowed: {listed}"


def _image_flags() -> dict[str, argparse.Action]:
    """The flags of train.py by their long names."""
    from vision_reference.arguments import get_args_parser

    parser = get_args_parser()
    return {option: action for action in parser._actions for option in action.option_strings if option[:2] == "--"}
