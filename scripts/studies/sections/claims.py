"""The paper's claims and what came of them."""

from collections.abc import Sequence

from scripts.studies import figures, statistics, wording
from scripts.studies.answer import needed_seeds
from scripts.studies.claims import Claim, Part
from scripts.studies.content import Block, Cell, Fold, Picture, Row, Section, Table, Text
from scripts.studies.figures import Drawing
from scripts.studies.results import Study
from scripts.studies.statistics import EXPLORATORY
from scripts.studies.wording import DASH

FEW_ROWS = 8  # of a table that is not folded away
_GREY_LINES = (
    "Thin grey lines below them: what another test set of this size might change, a bootstrap over its images. "
)


def claims_section(study: Study, claims: Sequence[Claim], suffix: str) -> Section:
    blocks: list[Block] = [
        Text(
            "The paper's claims in the order in which they are tested. A verdict needs a 95 % interval that leaves "
            "zero out and a sign-flip p of at most 0.05; after the first claim without one, later ones are exploratory "
            "(in brackets: how they would read alone). A claim of several parts stands on its weakest."
        )
    ]
    if any(claim.finding for claim in claims):
        caption = (
            "Claims. Diamonds are means, filled where there is a verdict; dots are seeds; thick lines 95 % t-intervals "
            f"over seeds. {'' if study.is_translation else _GREY_LINES}Right of zero: as the paper claims."
        )
        alt = "Forest plot. " + " ".join(_say_claim(claim) for claim in claims if claim.finding)
        blocks.append(Picture(Drawing(f"claims{suffix}", figures.forest(claims)), caption, alt))
    head = ["claim", "estimate", "95 % over seeds", "p", "smallest p", "n", "test set's noise", "verdict"]
    blocks.append(Table("The claims in numbers", head, [_claim_row(claim) for claim in claims], words=(7,)))
    missing = [f"Claim {claim.number}: {claim.missing}." for claim in claims if claim.missing]
    if missing:
        blocks.append(Text(" ".join(missing)))
    parts = [(claim, part) for claim in claims if len(claim.parts) > 1 for part in claim.parts]
    if parts:
        rows = [_part_row(claim, part) for claim, part in parts]
        head = ["part", "mean", "95 % over seeds", "p (one-sided)", "n", "test set's noise, 95 %", "alone"]
        caption = "What claims of several parts rest on; each part must be greater than zero"
        blocks.append(Fold("Parts of the claims", [Table(caption, head, rows, words=(6,))]))
    if suffix in ("", "-1"):  # of several comparisons the first: students of all are compared with each other
        blocks += _sentence_noise(study)
    return Section("claims", "Claims", blocks)


def verdict_words(claim: Claim) -> str:
    """The verdict with what belongs to it: which way it leans, seeds needed, how an exploratory claim would read."""
    if claim.finding is None:
        return claim.verdict
    reading, towards = claim.finding.reading, "towards it" if claim.finding.direction > 0 else "against it"
    leans = f"{statistics.LEANING} {towards}"
    if claim.verdict == EXPLORATORY:
        return f"{EXPLORATORY} ({leans if reading == statistics.LEANING else reading})"
    if claim.verdict == statistics.LEANING:
        return f"{leans}; {needed_seeds(claim)}"
    return f"{claim.verdict}; {needed_seeds(claim)}" if claim.verdict == statistics.UNDECIDED else claim.verdict


def _say_claim(claim: Claim) -> str:
    assert claim.finding is not None
    estimate = wording.difference(claim.finding.interval)
    return f"{claim.number}, {claim.statement}: {estimate} {claim.part.unit}, {verdict_words(claim)}."


def _claim_row(claim: Claim) -> Row:
    name = f"{claim.number}. {claim.statement}"
    if claim.finding is None:
        return [name, *[DASH] * 6, Cell(verdict_words(claim), mark=claim.verdict)]
    finding, noise = claim.finding, claim.part.noise
    decimals = wording.decimals_for([finding.interval.half_width])
    return [
        name,
        Cell(wording.signed(finding.interval.mean, decimals), note=claim.part.unit),
        wording.brackets(finding.interval, decimals),
        wording.p_value(finding.p),
        wording.p_value(finding.smallest_p),
        str(finding.interval.n),
        wording.brackets(noise, decimals) if noise else DASH,
        Cell(verdict_words(claim), mark=claim.verdict),
    ]


def _part_row(claim: Claim, part: Part) -> Row:
    return [
        f"({claim.number}) {part.name}",
        *wording.finding_cells(part.finding, part.noise, p=part.finding.p),
        part.finding.reading,
    ]


def _sentence_noise(study: Study) -> list[Block]:
    """sacrebleu's paired bootstrap over sentences, where the evaluation made one."""
    records = [
        record
        for record in study.analyses.get("bootstrap", ())
        if isinstance(record.get("difference"), (int, float)) and isinstance(record.get("p"), (int, float))
    ]
    rows: list[Row] = [
        [
            str(record.get("name", "")),
            str(record.get("pair", "")),
            wording.signed(float(record["difference"]), 1),
            wording.p_value(float(record["p"])),
        ]
        for record in records
    ]
    if not rows:
        return []
    caption = (
        "The test set's own noise: sacrebleu's paired bootstrap over sentences (p: two-sided, 1,000 resamples). It "
        "says nothing about other seeds, and is no verdict"
    )
    table = Table(caption, ["difference", "pair", "BLEU", "p"], rows, words=(1,))
    return [table] if len(rows) <= FEW_ROWS else [Fold("The test set's own noise, sentence by sentence", [table])]
