"""Selective distillation: how much of the distillation weight a language pair gets, given validation BLEU.

Tan et al. 2019 (arXiv 1902.10461), section 3.3, and their code: a student that has caught up with its teacher on a pair
has nothing more to learn from it there.
"""

from __future__ import annotations

STRATEGIES = ("fixed", "threshold", "adaptive")
DEFAULT_MARGIN = {"fixed": 0.0, "threshold": 1.0, "adaptive": 2.0}


def strength(strategy: str, student_bleu: float, teacher_bleu: float, margin: float) -> float:
    """Share of the distillation weight for a pair, 0 to 1.

    fixed: always 1. threshold: 1 while student < teacher + margin, else 0. adaptive: 1 while student < teacher -
    margin, beyond that 0.5 ** (student - teacher + margin).

    Args:
        strategy: one of `STRATEGIES`.
        student_bleu: validation BLEU of the student on the pair, 0 to 100.
        teacher_bleu: the same of the pair's own teacher.
        margin: in BLEU points.
    """
    if strategy == "fixed":
        return 1.0
    if strategy == "threshold":
        return 1.0 if student_bleu < teacher_bleu + margin else 0.0
    ahead = student_bleu - (teacher_bleu - margin)
    return 1.0 if ahead < 0 else 0.5**ahead


class Selection:
    """What is in force for each pair, and the BLEU scores it follows from.

    Until the first validation every pair gets its full weight.

    Args:
        strategy: one of `STRATEGIES`.
        margin: in BLEU points; None for the strategy's own (`DEFAULT_MARGIN`).
    """

    def __init__(self, strategy: str = "fixed", margin: float | None = None) -> None:
        self.strategy = strategy
        self.margin = DEFAULT_MARGIN[strategy] if margin is None else margin
        self.teacher_bleu: dict[str, float] = {}
        self.student_bleu: dict[str, float] = {}

    def strength(self, pair: str) -> float:
        """Share of the distillation weight in force for a pair."""
        if pair not in self.teacher_bleu or pair not in self.student_bleu:
            return 1.0
        return strength(self.strategy, self.student_bleu[pair], self.teacher_bleu[pair], self.margin)

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"teacher_bleu": dict(self.teacher_bleu), "student_bleu": dict(self.student_bleu)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        self.teacher_bleu = dict(state["teacher_bleu"])
        self.student_bleu = dict(state["student_bleu"])
