"""BLEU per language pair on detokenized text, from counts that add up over batches and workers."""

from __future__ import annotations

from sacrebleu.metrics import BLEU

ORDER = 4


def keys(name: str) -> list[str]:
    """Names of the counts of one BLEU score in a logging output; fairseq hides names that begin with `_`."""
    counts = [f"{kind}{n}" for kind in ("correct", "total") for n in range(1, ORDER + 1)]
    return [f"_{name}_{count}" for count in [*counts, "sys_len", "ref_len"]]


def count(name: str, hypotheses: list[str], references: list[str]) -> dict[str, int]:
    """Counts of one batch as entries of a logging output; zeros for an empty one, as workers must agree on the keys."""
    if not hypotheses:
        return dict.fromkeys(keys(name), 0)
    score = BLEU().corpus_score(hypotheses, [references])
    return dict(zip(keys(name), [*score.counts, *score.totals, score.sys_len, score.ref_len], strict=True))


def score(counts: list[float]) -> float:
    """BLEU, 0 to 100, from summed counts in the order of `count`."""
    counts = [int(n) for n in counts]
    if not counts[-2]:
        return 0.0
    return BLEU.compute_bleu(
        correct=counts[:ORDER],
        total=counts[ORDER : 2 * ORDER],
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method="exp",
    ).score
