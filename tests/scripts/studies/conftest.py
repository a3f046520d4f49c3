"""Made-up studies: results that nobody measured, from the means of a pilot plus noise of a fixed seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# {(alpha, MaxSup): (teacher, {T: student})}, top-1 in percent; labels alone by their own smoothing.
MEANS = {
    (0.0, None): (66.4, {1: 59.8, 2: 61.4, 4: 61.3, 64: 60.2}),
    (0.1, None): (66.6, {1: 59.9, 2: 59.6, 4: 58.4, 64: 56.9}),
}
MAXSUP = {(None, 0.1): (66.5, {1: 60.0, 4: 61.0})}
LABELS = {0.0: 55.5, 0.1: 56.1}
ETA = {(0.0, None): {2: 0.4, 4: 0.9, 64: 1.4}, (0.1, None): {2: 2.1, 4: 5.2, 64: 8.4}, (None, 0.1): {4: 1.5}}
IMAGES = 2500
FIRST_DAY = "2026-01-0"


def _curve(rng, epochs: int, end: float) -> list[dict]:
    progress = 1 - np.exp(-4 * np.arange(1, epochs + 1) / epochs)
    scores = end * progress / progress[-1] + rng.normal(0, 0.2, epochs)
    scores[-1] = end
    losses = 3.2 * (1 - 0.8 * progress)
    return [
        {"epoch": epoch, "train_loss": float(loss), "acc1": float(score), "seconds": 28.0, "images_per_s": 446.0}
        for epoch, (loss, score) in enumerate(zip(losses, scores, strict=True))
    ]


class MadeUp:
    """Writes one study; every random number comes from the seed given."""

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.easy = self.rng.normal(0, 1, IMAGES)  # some images are hard for every network
        self.records: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)

    def job(self, role: str, seed: int, alpha, maxsup, temperature, score: float, *, epochs: int, network: str, **more):
        name = f"{role}-s{seed}-a{alpha or 0:g}" + (f"-m{maxsup:g}" if maxsup else "")
        name += f"-t{temperature:g}" if temperature else ""
        latent = 1.6 * self.easy + self.rng.normal(0, 1, IMAGES)
        right = np.zeros(IMAGES, np.uint8)
        right[np.argsort(-latent)[: round(score / 100 * IMAGES)]] = 1
        file = Path("jobs") / name / "outcomes.npy"
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / file, right)
        score = 100 * float(right.mean())
        self.records.append(
            {
                "job": name,
                "role": role,
                "seed": seed,
                "alpha": alpha,
                "max_suppression": maxsup,
                "temperature": temperature,
                "network": network,
                "settings": {},
                "metrics": {"acc1": score, "acc5": min(score + 25, 99.9)},
                "outcomes": str(file),
                "curve": _curve(self.rng, epochs, score),
                "seconds": 580.0 if role == "student" else 1020.0 if role == "teacher" else 310.0,
                "command": ["python", "vision_reference/train.py", "--model", network, "--seed", str(seed)],
                "folder": f"jobs/{name}",
                "versions": {"python": "3.10.13", "torch": "2.5.1", "torchvision": "0.20.1"},
                "commit": "0123456789abcdef0123456789abcdef01234567",
                "host": "made-up-host",
                "finished": f"{FIRST_DAY}{1 + seed}T12:00:00+00:00",
                **more,
            }
        )

    def write(self, **facts) -> Path:
        (self.folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records))
        study = {
            "name": "made-up",
            "data": "CIFAR-100, 25 classes (made-up results)",
            "networks": {"teacher": "resnet20", "student": "resnet8"},
            "teachers": "per-seed",
            "temperatures": sorted({r["temperature"] for r in self.records if r["temperature"]}),
            "planned": len(self.records),
            "failed": [],
            "repeat": "python scripts/study.py run scripts/studies/configs/made-up.yaml --output DIR",
            "config": {"seeds": sorted({r["seed"] for r in self.records})},
            "machine": "no machine: these results are made up",
            **facts,
        }
        (self.folder / "study.json").write_text(json.dumps(study, indent=1))
        return self.folder


def grid(made_up: MadeUp, seeds: int = 5, *, maxsup: bool = False, spread: float = 0.45, shared: bool = False) -> None:
    """Teachers, students at every T, labels alone: each seed has its own luck, which its cells share."""
    rng = made_up.rng
    for seed in range(seeds):
        luck = rng.normal(0, 0.5)

        def noisy(mean: float, luck: float = luck) -> float:
            return mean + luck + rng.normal(0, spread)

        for (alpha, suppression), (teacher, students) in (MEANS | (MAXSUP if maxsup else {})).items():
            if seed == 0 or not shared:
                made_up.job("teacher", seed, alpha, suppression, None, noisy(teacher), epochs=25, network="resnet20")
            for temperature, mean in students.items():
                made_up.job("student", seed, alpha, suppression, temperature, noisy(mean), epochs=20, network="resnet8")
        for alpha, mean in LABELS.items():
            made_up.job("baseline", seed, alpha, None, None, noisy(mean), epochs=20, network="resnet8")


def analyses(made_up: MadeUp, seeds: int = 5, *, maxsup: bool = False) -> None:
    """eta, confusions, teacher inspection, a panel."""
    rng, records = made_up.rng, []
    kinds = [kind for kind in ETA if maxsup or not kind[1]]
    for seed in range(seeds):
        for alpha, suppression in kinds:
            of = {"seed": seed, "alpha": alpha, "max_suppression": suppression}
            for temperature, eta in ETA[alpha, suppression].items():
                moved = {"eta": eta + rng.normal(0, 0.5), "control": rng.normal(-0.3, 0.3)}
                records.append({"kind": "eta", **of, "temperature": temperature, "reference": 1, **moved})
            for temperature in (1, *ETA[alpha, suppression]):
                share = 0.45 + 0.008 * ETA[alpha, suppression].get(temperature, 0) + rng.normal(0, 0.004)
                errors = {"errors": 1000, "inside": round(1000 * share), "chance": 0.167}
                groups = "five groups of five similar classes"
                records.append({"kind": "confusions", **of, "temperature": temperature, "groups": groups, **errors})
            confidence = np.linspace(0.15, 0.95, 9)
            bend = 0.08 if not alpha and not suppression else -0.05
            bins = [
                {"confidence": float(c), "accuracy": float(c - bend * np.sin(np.pi * c)), "count": int(40 + 900 * c**3)}
                for c in confidence
            ]
            plain = not alpha and not suppression
            teacher = {"acc1": 66.5, "ece": 0.066 if plain else 0.039, "ace": 0.012, "aurc": 0.131 if plain else 0.141}
            teacher |= {"calibrating_temperature": 1.3 if plain else 0.9, "tightness": 0.62 if plain else 0.41}
            teacher |= {"looks_smoothed": "not smoothed" if plain else "smoothed", "reliability": bins}
            teacher |= {"looks_alpha": None if plain else 0.0981 + 0.01 * seed}
            records.append({"kind": "teacher", **of, **teacher})
    for right, taken, before, after in (("trout", "flatfish", 9.2, 14.0), ("pear", "apple", 11.0, 15.1)):
        of = {"alpha": 0.1, "max_suppression": None, "temperature": 4, "reference": 1}
        records.append({"kind": "moved", **of, "right": right, "taken_for": taken, "before": before, "after": after})
    folder = made_up.folder / "analysis"
    folder.mkdir(exist_ok=True)
    (folder / "panel.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 60 30"><circle cx="20" cy="15" r="4" fill="#0072B2"/>'
        '<circle cx="40" cy="15" r="4" fill="#D55E00"/></svg>'
    )
    panel = {"kind": "panels", "image": "panel.svg", "caption": "Made-up panel.", "alt": "Two dots."}
    (folder / "all.json").write_text(json.dumps([*records, panel]))


@pytest.fixture(scope="session")
def fill() -> Callable[..., None]:
    """Puts the grid's results into a ``MadeUp`` study."""
    return grid


@pytest.fixture(scope="session")
def analyse() -> Callable[..., None]:
    """Puts analyses into a ``MadeUp`` study."""
    return analyses


@pytest.fixture(scope="session")
def made_up() -> Callable[..., MadeUp]:
    return MadeUp


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory) -> Path:
    """Five seeds, two kinds of teacher, four temperatures, labels alone, analyses."""
    study = MadeUp(tmp_path_factory.mktemp("studies") / "whole")
    grid(study)
    analyses(study)
    return study.write()


@pytest.fixture(scope="session")
def whole_report(whole_study) -> Path:
    """Its page, which takes seconds to draw."""
    from scripts.studies.page import write_report

    return write_report(whole_study)
