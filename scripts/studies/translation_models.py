"""What the models of a translation study are like: records of ``analysis/*.json`` (see ``results.py``).

For every student the diffusion index of the most frequent target pieces against the same seed's student at the lowest
T, mean over its language pairs (what it is there, and what it does not show: ``scripts/nmt/diffusion_index.py``); for
every expert its inspection (``scripts/nmt/inspect_teacher.py``).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.nmt.lib.lang_pair import parse_pairs
from scripts.studies.claims import temperatures_of
from scripts.studies.records import about, drifts, inspected
from scripts.studies.results import TEACHER, Comparison, Kind, Run, Study
from vision_reference.files import atomic_file, file_digest

if TYPE_CHECKING:
    from scripts.nmt.lib.decoder_features import References

CHECKPOINT = "checkpoint_best.pt"  # what was scored
SUBSET = "valid"
PIECES = 50  # of the most frequent target pieces
FEWEST = 3  # of which one can be nearer than another
MAX_TOKENS = 2048
INSPECTED = 5000  # tokens of which all logits are looked at: the calibration error to half a point
_FORMAT = 1  # of what is kept beside a checkpoint; a changed meaning needs a new number


@dataclass(frozen=True)
class Pieces:
    """What a model makes of K frequent target pieces of one language pair.

    Attributes:
        means: (K, h) mean feature of each.
        probabilities: (K, K) mean probability, at T = 1, that each one's places are given for piece k.
    """

    means: np.ndarray
    probabilities: np.ndarray


Look = Callable[[Run, str], "Pieces | None"]
Inspect = Callable[[Run, str], "Mapping[str, Any] | None"]


def measure(study: Study, pairs: Iterable[str], look: Look, inspect: Inspect) -> Iterator[Mapping[str, Any]]:
    """The records of all runs whose checkpoints are there.

    Args:
        pairs: language pairs that have frequent pieces enough to compare.
        look: what a run's model makes of a pair; None where its checkpoint is gone.
        inspect: what an expert of a pair is like, as ``inspect_teacher.look`` says it; None likewise.
    """
    for comparison in study.comparisons:
        yield from _students(study, comparison, list(pairs), look)
    for run in study.runs:
        for pair in run.scores if run.role == TEACHER else ():
            found = inspect(run, pair)
            if found is not None:
                tokens = found["all_tokens"]
                scores = {"bleu": run.scores[pair], "token_accuracy": tokens["accuracy"]}
                yield inspected(run, found) | scores | {"perplexity": tokens["perplexity"], "pair": pair}


def _students(study: Study, comparison: Comparison, pairs: list[str], look: Look) -> Iterator[Mapping[str, Any]]:
    from vision_reference.analysis import geometry

    compared = temperatures_of(study, comparison)
    if compared is None or not pairs:
        return
    for seed in sorted({seed for cell in comparison.students.values() for seed in cell}):
        near, experts = {}, []
        for pair in pairs:
            expert = comparison.expert(comparison.plain, seed, pair)
            seen = look(expert, pair) if expert else None
            if expert is not None and seen is not None:
                experts.append(expert)
                count = geometry.neighbour_count(len(seen.probabilities))
                near[pair] = geometry.most_and_least_similar(seen.probabilities, count)
        if len(near) < len(pairs):
            continue  # what is similar is asked of the plain expert; a mean over some pairs is no mean over all
        for kind in comparison.kinds:
            runs = {t: cell[seed] for t in comparison.temperatures if seed in (cell := _cell(comparison, kind, t))}
            etas: dict[float, list[np.ndarray]] = {}
            for pair in pairs:
                means = {t: seen.means for t, run in runs.items() if (seen := look(run, pair)) is not None}
                for temperature, found in drifts(means, compared[0], *near[pair]).items():
                    etas.setdefault(temperature, []).append(found)
            for temperature, found in etas.items():
                eta, control = np.mean(found, axis=0)
                record = about(runs[temperature], runs[compared[0]], *experts)
                record |= {"temperature": temperature, "reference": compared[0]}
                record |= {"kind": "eta", "eta": float(eta), "control": float(control)}
                yield record | {"settings": dict(comparison.settings)}


def _cell(comparison: Comparison, kind: Kind, temperature: float) -> Mapping[int, Run]:
    return comparison.students.get((kind, temperature), {})


class Models:
    """What the study's models make of its validation sentences, read from their checkpoints; kept beside them."""

    def __init__(self, study: Study, data_bin: Path, *, device: str) -> None:
        """Raises UserError (of the plugin) if the data-bin does not hold the validation set of a pair."""
        from scripts.nmt.lib import decoder_features as decoder

        self.study, self.device = study, device
        self.missing: list[str] = []
        self.references: dict[str, References] = {}
        self.pieces: dict[str, np.ndarray] = {}
        self._digests = {}
        for pair in study.pairs:
            references = decoder.open_references(data_bin, parse_pairs(pair)[0], SUBSET)
            self.references[pair] = references
            self.pieces[pair] = decoder.by_frequency(references)[:PIECES]
            files = [Path(file) for file in (references.vocabulary.source_path, references.vocabulary.target_path)]
            files += sorted(data_bin.glob(f"{SUBSET}.{pair}.*"))
            self._digests[pair] = [file_digest(file) for file in files]

    @property
    def pairs(self) -> list[str]:
        """Those with pieces enough to compare."""
        return [pair for pair, pieces in self.pieces.items() if len(pieces) >= FEWEST]

    def look(self, run: Run, pair: str) -> Pieces | None:
        """What the run's model makes of the pair's frequent pieces."""
        from scripts.nmt.lib import decoder_features as decoder

        def compute(checkpoint: Path) -> dict[str, Any]:
            references = self.references[pair]
            model = decoder.load(str(checkpoint), references, self.device)
            title = f"{run.job}, {pair}"
            found = decoder.of_classes(model, references, self.pieces[pair], max_tokens=MAX_TOKENS, title=title)
            return dict(zip(("means", "probabilities"), (array.tolist() for array in found), strict=True))

        found = self._kept(run, pair, "pieces", [self.pieces[pair].tolist()], compute)
        return None if found is None else Pieces(np.array(found["means"]), np.array(found["probabilities"]))

    def inspect(self, run: Run, pair: str) -> Mapping[str, Any] | None:
        """What the expert is like."""
        from scripts.nmt import inspect_teacher

        def compute(checkpoint: Path) -> dict[str, Any]:
            references = self.references[pair]
            return inspect_teacher.look(
                checkpoint, references, tokens=INSPECTED, max_tokens=MAX_TOKENS, device=self.device
            )

        return self._kept(run, pair, "inspection", [INSPECTED], compute)

    def _kept(
        self, run: Run, pair: str, what: str, more: list, compute: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """What ``compute`` makes of the run's checkpoint, from an earlier time where nothing has changed since."""
        from vision_reference.analysis import features

        checkpoint = self.study.folder / str(run.record.get("folder") or "") / CHECKPOINT
        if not checkpoint.is_file():
            self.missing.append(run.job)
            return None
        key = features.content_key(_FORMAT, file_digest(checkpoint), self._digests[pair], more)
        file = checkpoint.with_name(f"{what}.{pair}.json")
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept["found"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing, or nothing whole: it is made anew
        found = compute(checkpoint)
        with atomic_file(file) as target:
            target.write(json.dumps({"key": key, "found": found}).encode())
        return found
