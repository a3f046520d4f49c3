"""BLEU and chrF of translations by sacrebleu, and the paired bootstrap test against a baseline."""

import logging
from collections.abc import Callable
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from scripts.nmt.lib.user_error import UserError

METRICS = {"bleu": BLEU, "chrf": CHRF}
BOOTSTRAP_SAMPLES = 1000
logging.getLogger("sacrebleu").setLevel(logging.WARNING)  # the test reports its progress as log lines


def score(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    """{"bleu": 0..100, "chrf": 0..100} of detokenized lines, one reference each, with sacrebleu's default settings."""
    return {name: metric().corpus_score(hypotheses, [references]).score for name, metric in METRICS.items()}


def signatures() -> dict[str, str]:
    """sacrebleu's signature of each metric as `score` uses it: all that must be equal for scores to be comparable."""
    found = {}
    for name, make in METRICS.items():
        metric = make()
        metric.corpus_score([""], [[""]])  # only then does the signature tell the number of references
        found[name] = str(metric.get_signature())
    return found


def paired_bootstrap(hypotheses: list[str], baseline: list[str], references: list[str]) -> dict[str, dict[str, float]]:
    """Whether the system differs from the baseline by more than the choice of test sentences explains.

    Koehn (2004), "Statistical Significance Tests for Machine Translation Evaluation", as sacrebleu implements it:
    1,000 resamples of the test set; the seed is sacrebleu's 12345 unless SACREBLEU_SEED is set.

    Returns per metric the baseline's score, the difference (system minus baseline), the p-value and the half width of
    the system's 95 % confidence interval.
    """
    identical = hypotheses == baseline
    test = PairedTest(
        [("baseline", baseline), ("system", hypotheses)],
        {name: make() for name, make in METRICS.items()},
        [references],
        test_type="bs",
        n_samples=BOOTSTRAP_SAMPLES,
    )
    _, columns = test()
    compared = {}
    for name, make in METRICS.items():
        before, after = columns[make().corpus_score([""], [[""]]).name]
        compared[name] = {
            "baseline": before.score,
            "difference": after.score - before.score,
            # No resample of two equal systems differs more than the test set; sacrebleu would call that p = 0.001,
            # as it does with two different ones of score zero.
            "p_value": 1.0 if identical or after.score == before.score else after.p_value,
            "confidence": after.ci,
        }
    return compared


def load_comet(model: str) -> Callable[[list[str], list[str], list[str]], float]:
    """COMET (Rei et al. 2020) as a function of sources, translations and references: their mean score.

    Args:
        model: a checkpoint's path, or the name of a model to download.

    Raises:
        UserError: the package is not installed, or the model cannot be had.
    """
    try:
        import comet
    except ImportError:
        raise UserError("--comet needs the package unbabel-comet: pip install unbabel-comet") from None
    try:
        path = model if Path(model).is_file() else comet.download_model(model)
        network = comet.load_from_checkpoint(path)
    except Exception as problem:  # no network, no such model, a file of another kind
        raise UserError(f"--comet {model} cannot be loaded: {' '.join(str(problem).split())}") from None

    def judge(sources: list[str], hypotheses: list[str], references: list[str]) -> float:
        rows = [
            {"src": source, "mt": hypothesis, "ref": reference}
            for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
        ]
        return float(network.predict(rows, batch_size=32, gpus=0).system_score)

    return judge
