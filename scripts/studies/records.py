"""Records of ``analysis/*.json`` (see ``results.py``) that studies of images and of translation have in common."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.studies.results import Run, stamp


def made_of(*runs: Run) -> dict[str, str]:
    """The networks that a record was made of: it counts only as long as they are the study's."""
    return {run.job: stamp(run) for run in runs}


def about(run: Run, *others: Run) -> dict[str, Any]:
    """Which network a record is about, and which others it compares that one with."""
    return {
        "of": made_of(run, *others),
        "seed": run.seed,
        "alpha": run.kind.alpha,
        "max_suppression": run.kind.max_suppression or None,
        "network": run.network,
    }


def drifts(
    means: Mapping[float, np.ndarray], reference: float | None, similar: np.ndarray, control: np.ndarray
) -> dict[float, np.ndarray]:
    """The diffusion index of one seed's students against the one at the reference temperature.

    Args:
        means: {T: (K, h) class means of the student's features}.
        similar, control: (K, n) numbers of each class's most and least similar classes.

    Returns:
        {T: (2,) eta towards the similar and towards the control classes, in percent, mean over classes}; empty where
        the reference is not there.
    """
    from vision_reference.analysis import geometry

    if reference not in means:
        return {}
    return {
        temperature: np.array([geometry.drift(means[reference], own, towards).mean() for towards in (similar, control)])
        for temperature, own in means.items()
        if temperature != reference
    }


def inspected(run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a teacher is like, of what ``vision_reference.analysis.inspect_teacher.inspect`` found."""
    calibration, bins = found["calibration"], found["calibration"]["reliability"]
    adaptive = calibration["adaptive_calibration_error"]
    return about(run) | {
        "kind": "teacher",
        "ece": calibration["expected_calibration_error"] / 100,
        "ace": None if adaptive is None else adaptive / 100,
        "calibrating_temperature": calibration["calibrating_temperature"],
        "aurc": found["selective"]["area_under_risk_coverage"],
        "tightness": found["features"]["ratio"] if found["features"] else None,
        "looks_smoothed": found["smoothing"]["answer"],
        "looks_alpha": found["smoothing"].get("alpha"),
        "reliability": [
            {"confidence": confidence, "accuracy": accuracy, "count": count}
            for confidence, accuracy, count in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True)
            if count
        ],
    }
