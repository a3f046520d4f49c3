"""The paper's table shape: one row per temperature, one column per teacher's label smoothing alpha.

    python scripts/lib/alpha_t_table.py records.jsonl --paper imagenet

reads one JSON record per line (role "teacher" or "student", model, alpha, temperature, acc1, acc5) and prints one
Markdown table per student network. Of several runs of a cell (seeds) it shows the mean, how many there are and how far
apart their top-1 is. Missing runs stay empty; ``--paper`` puts the published numbers beside ours.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.analysis.flags import path
from vision_reference.errors import Parser, UserError, run_command

Cell = tuple[float, ...]
Table = Mapping[tuple[str, float], Cell]  # (row, alpha): the measured numbers of that cell

TEACHER = "teacher"


def _table(teacher: tuple[Cell, Cell], rows: dict[int, tuple[Cell, Cell]]) -> Table:
    """A published table: the teachers' cells, then the students' by temperature; alpha = 0.0 before 0.1."""
    named = {TEACHER: teacher, **{f"T = {temperature}": cells for temperature, cells in rows.items()}}
    return {(row, alpha): cell for row, cells in named.items() for alpha, cell in zip((0.0, 0.1), cells, strict=True)}


# Chandrasegaran et al. 2022 (arXiv 2206.14532), top-1 / top-5 in percent, ResNet-50 teachers.
_IMAGENET_TEACHERS = (76.132, 92.862), (76.200, 93.082)
_CUB_TEACHERS = (81.584, 95.927), (82.068, 96.168)
PAPER: dict[str, dict[str, Table]] = {
    "imagenet": {
        "resnet18": _table(
            _IMAGENET_TEACHERS,
            {
                1: ((71.488, 90.272), (71.666, 90.364)),
                2: ((71.360, 90.362), (68.860, 89.352)),
                3: ((69.674, 89.698), (67.752, 88.932)),
                64: ((66.194, 88.706), (64.362, 87.698)),
            },
        ),
        "resnet50": _table(
            _IMAGENET_TEACHERS,
            {
                1: ((76.328, 92.996), (76.896, 93.236)),
                2: ((76.180, 93.072), (76.110, 93.138)),
                3: ((75.488, 92.670), (75.790, 93.006)),
                64: ((74.278, 92.410), (74.566, 92.596)),
            },
        ),
    },
    "cub": {
        "resnet18": _table(
            _CUB_TEACHERS,
            {
                1: ((80.169, 95.392), (80.946, 95.312)),
                2: ((80.808, 95.593), (80.428, 95.518)),
                3: ((80.785, 95.674), (78.196, 95.213)),
                64: ((73.611, 94.529), (67.161, 93.062)),
            },
        ),
        "resnet50": _table(
            _CUB_TEACHERS,
            {
                1: ((82.902, 96.358), (83.742, 96.778)),
                2: ((82.534, 96.427), (83.379, 96.537)),
                3: ((82.091, 96.243), (82.142, 96.427)),
                64: ((79.784, 95.927), (77.206, 95.812)),
            },
        ),
        "mobilenet_v2": _table(
            _CUB_TEACHERS,
            {
                1: ((81.144, 95.677), (81.731, 95.754)),
                2: ((81.895, 95.858), (80.609, 95.470)),
                3: ((81.257, 95.677), (78.961, 95.306)),
                64: ((75.441, 94.702), (70.435, 93.494)),
            },
        ),
    },
    "cifar10": {},
    "cifar100": {},
}


def _bleu(teacher: tuple[float, float], rows: dict[int, tuple[float, float]]) -> Mapping[tuple[str, float], float]:
    """One language pair's, as ``_table``."""
    table = _table(((teacher[0],), (teacher[1],)), {t: ((cells[0],), (cells[1],)) for t, cells in rows.items()})
    return {place: cell[0] for place, cell in table.items()}


# The same paper, IWSLT, Transformer to Transformer, by language pair: {pair: {(row, alpha): BLEU}}. Its text is
# tokenized otherwise than ours.
PAPER_BLEU: dict[str, dict[str, Mapping[tuple[str, float], float]]] = {
    "iwslt": {
        "en-de": _bleu(
            (26.461, 26.75), {1: (24.914, 25.085), 2: (23.103, 23.421), 3: (21.999, 22.076), 64: (6.564, 6.461)}
        ),
        "en-ru": _bleu(
            (16.718, 16.976), {1: (16.140, 16.197), 2: (14.977, 15.100), 3: (13.826, 14.106), 64: (3.605, 3.590)}
        ),
    }
}


def temperature_row(temperature: float) -> str:
    """Name of the row of ``temperature``: 1.0 is "T = 1"."""
    return f"T = {temperature:g}"


def runs_by_student(records: Iterable[dict]) -> dict[str, dict[tuple[str, float], list[Cell]]]:
    """{student network: {(row, alpha): [(acc1, acc5) of each run]}}; every student's table has the teacher's row."""
    records = list(records)
    students = list(dict.fromkeys(record["model"] for record in records if record["role"] == "student"))
    runs: dict[str, dict[tuple[str, float], list[Cell]]] = {student: {} for student in students}
    for record in records:
        teaches = record["role"] == TEACHER
        row = TEACHER if teaches else temperature_row(record["temperature"])
        for student in students if teaches else [record["model"]]:
            runs[student].setdefault((row, record["alpha"]), []).append((record["acc1"], record["acc5"]))
    return runs


def cells_by_student(records: Iterable[dict]) -> dict[str, dict[tuple[str, float], Cell]]:
    """As ``runs_by_student``, with the mean over the runs (seeds) of a cell in their place."""
    return {
        student: {
            place: tuple(sum(column) / len(runs) for column in zip(*runs, strict=True)) for place, runs in cells.items()
        }
        for student, cells in runs_by_student(records).items()
    }


def spreads_by_student(records: Iterable[dict], *, digits: int = 3) -> dict[str, dict[tuple[str, float], str]]:
    """{student network: {(row, alpha): "3 seeds, 70.1 to 71.4"}}: how many runs a mean has, and their top-1."""
    return {
        student: {
            place: f"{len(runs)} seeds, {min(runs)[0]:.{digits}f} to {max(runs)[0]:.{digits}f}"
            for place, runs in cells.items()
            if len(runs) > 1
        }
        for student, cells in runs_by_student(records).items()
    }


def format_table(
    measured: Table,
    paper: Table | None = None,
    *,
    digits: int = 3,
    spreads: Mapping[tuple[str, float], str] | None = None,
) -> str:
    """Markdown table of ``measured``, rows in the order teacher, rising T, others.

    In brackets stand ``spreads`` (see ``spreads_by_student``) and ``paper``'s numbers. Rows and alphas that only one of
    the two has are shown as well; an empty cell is a dash.
    """
    places = list(measured) + [place for place in paper or () if place not in measured]
    rows = sorted({row for row, _ in places}, key=_row_order)
    alphas = sorted({alpha for _, alpha in places})
    lines = ["| | " + " | ".join(f"alpha = {alpha:g}" for alpha in alphas) + " |"]
    lines.append("|---" * (len(alphas) + 1) + "|")
    for row in rows:
        cells = [_cell((row, alpha), measured, paper, digits, (spreads or {}).get((row, alpha))) for alpha in alphas]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row_order(row: str) -> tuple[int, float, str]:
    if row == TEACHER:
        return 0, 0.0, row
    return (1, float(row.removeprefix("T = ")), row) if row.startswith("T = ") else (2, 0.0, row)


def _cell(place: tuple[str, float], measured: Table, paper: Table | None, digits: int, spread: str | None) -> str:
    def numbers(table: Table) -> str:
        return " / ".join(f"{number:.{digits}f}" for number in table[place]) if place in table else "-"

    notes = [spread] * bool(spread) + ([f"paper: {numbers(paper)}"] if paper else [])
    return numbers(measured) + (f" ({'; '.join(notes)})" if notes else "")


def read_records(path: Path) -> list[dict]:
    """One JSON object a line, each with what a table needs.

    Raises:
        UserError: the file cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else None
            if record is not None:
                needed = ("acc1", "acc5", "alpha", *(("temperature",) if record["role"] != TEACHER else ()))
                numbers = {name: float(record[name]) for name in needed}
                if record["role"] not in (TEACHER, "student") or not all(map(_possible, numbers, numbers.values())):
                    raise ValueError
                records.append(record | numbers | {"model": str(record["model"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}, line {number}: no record of a run (role, model, alpha, temperature, acc1, acc5)"
            ) from None
    return records


def _possible(name: str, value: float) -> bool:
    """Whether a record can have this number: accuracies are percentages, alpha a share."""
    return 0 < value < math.inf if name == "temperature" else 0 <= value <= (1 if name == "alpha" else 100)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=path, help="file with one JSON record per line")
    parser.add_argument("--paper", choices=sorted(PAPER), help="show the paper's numbers for this data set")
    args = parser.parse_args()
    records = read_records(args.records)
    teacher = next((record["model"] for record in records if record["role"] == TEACHER), "teacher")
    tables = cells_by_student(records)
    if not tables:
        print("no student has been evaluated")
    for student, cells in tables.items():
        print(f"\n{teacher} to {student}, top-1 / top-5 (%)\n")
        published = PAPER.get(args.paper, {}).get(student)
        print(format_table(cells, published, spreads=spreads_by_student(records)[student]))


if __name__ == "__main__":
    run_command("alpha_t_table.py", main)
