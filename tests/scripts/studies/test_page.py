"""A study's page and its Markdown, of whole, partial, hostile and empty studies."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from scripts.studies.page import markdown, tie, write_report
from scripts.studies.results import read_study
from scripts.studies.sections.outline import sections_of
from vision_reference.errors import UserError

HEADINGS = [
    "Answer",
    "Top-1 accuracy against T",
    "Claims",
    "The paper's table",
    "Mechanism",
    "Teachers",
    "Training curves",
    "What it cost",
    "Every run",
    "How to repeat it",
]


class Page(HTMLParser):
    """What a test asks of a page: its text, its tags with their attributes, whether tags are closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self._open = "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(whole_study, whole_report) -> tuple[Page, str, str]:
    """(page, its source, its Markdown) of the whole study."""
    assert whole_report == whole_study / "report.html"
    source = whole_report.read_text(encoding="utf-8")
    return Page(source), source, (whole_study / "report.md").read_text(encoding="utf-8")


def test_sections_stand_in_the_order_agreed_each_with_an_anchor(report):
    page, source, text = report
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    anchors = [attributes["id"] for attributes in page.of("h2")]
    assert [link["href"] for link in page.of("a") if link["href"] != "data:,"] == [f"#{a}" for a in anchors] + [
        f"#{a}" for a in anchors
    ]
    assert re.sub(r"<[^>]+>", "", "|".join(re.findall(r"<h2.*?</h2>", source))).replace("&#39;", "'") == "|".join(
        HEADINGS
    )


def test_the_page_stands_alone(report):
    page, source, _ = report
    assert not page.of("script")
    assert "@import" not in source
    for tag in ("img", "link", "iframe", "source", "use", "image"):
        for attributes in page.of(tag):
            for name in ("src", "href", "xlink:href"):
                assert attributes.get(name, "#").startswith(("data:", "#"))
    assert not re.findall(r"url\((?!#)", source)


def test_ids_are_unique_and_every_reference_has_one(report):
    page, source, _ = report
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', source))
    assert referenced <= set(ids)


def test_figures_follow_the_readers_colours_and_say_what_they_show(report):
    page, source, _ = report
    drawings = page.of("svg")
    assert len(drawings) == 2 * 7  # scores, differences, claims, eta, shares, reliability, curves; wide and narrow
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 40
    assert "currentColor" in source
    assert "#010203" not in source
    assert "#fdfeff" not in source
    assert "<text" in source
    assert "61.3" in drawings[0]["aria-label"] or "61.1" in drawings[0]["aria-label"]


def test_tables_can_be_read_aloud(report):
    page, _, _ = report
    tables = len(page.of("table"))
    assert tables > 60
    assert len(page.of("caption")) == tables
    assert {attributes.get("scope") for attributes in page.of("th")} == {"row", "col"}


def test_figures_lie_beside_the_page_as_files(whole_study, report):
    _, _, text = report
    files = {path.name for path in (whole_study / "figures").iterdir()}
    names = {"scores", "differences", "claims", "eta", "shares", "reliability", "curves"}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    for name in names:
        assert f"](figures/{name}.png)" in text
        ElementTree.parse(whole_study / "figures" / f"{name}.svg")
    with Image.open(whole_study / "figures" / "scores.png") as picture:
        assert picture.width == 1800
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn on it


def test_teachers_of_one_kind_are_summed_up_in_one_cell(report):
    _, _, text = report
    assert "| not smoothed | 5 |" in text
    assert "| smoothed, alpha about 0.098 to 0.14 | 5 |" in text


def test_page_and_markdown_give_the_same_numbers(report):
    page, _, text = report
    for line in re.findall(r"^\| T = .*$", text, re.MULTILINE):
        for number in re.findall(r"\d+\.\d ± \d+\.\d", line):
            assert number in page.text
    for sentence in re.search(r"## Answer\n\n(.*)\n", text)[1].split(". ")[:3]:
        assert sentence in page.text.replace("\n", " ")


def test_the_table_holds_means_and_intervals_computed_apart(report, whole_study):
    from scipy import stats

    records = [json.loads(line) for line in (whole_study / "results.jsonl").read_text().splitlines()]
    scores = [
        r["metrics"]["acc1"] for r in records if r["role"] == "student" and (r["alpha"], r["temperature"]) == (0.1, 4)
    ]
    mean, half = np.mean(scores), stats.sem(scores) * stats.t.ppf(0.975, len(scores) - 1)
    row = re.search(r"^\| T = 4 \|.*$", report[2], re.MULTILINE)[0]
    assert row.split("|")[3].strip().startswith(f"{mean:.1f} ± {half:.1f} (n = 5)")


@pytest.fixture
def nothing_is_drawn(monkeypatch):
    """Figures cost seconds; tests of words do without."""
    from scripts.studies.figures import Drawing

    monkeypatch.setattr(Drawing, "svg", lambda self, narrow: '<svg viewBox="0 0 10 10"></svg>')
    monkeypatch.setattr(Drawing, "save", lambda self, folder: None)


def _text(folder) -> str:
    Page(write_report(folder).read_text(encoding="utf-8"))  # well-formed
    return (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("nothing_is_drawn")
def test_writing_it_twice_gives_the_same_and_drops_figures_that_are_no_more(made_up, fill, tmp_path):
    study = made_up(tmp_path)
    fill(study, 2)
    before = write_report(study.write()).read_bytes()
    stale, other = tmp_path / "figures" / "old.svg", tmp_path / "figures" / "notes.txt"
    stale.write_text("<svg/>")
    other.write_text("mine")
    assert write_report(tmp_path).read_bytes() == before
    assert not stale.exists()
    assert other.exists()


@pytest.mark.usefixtures("nothing_is_drawn")
class TestPartialStudies:
    def test_three_seeds_lean(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 3)
        text = _text(study.write())
        assert "Leaning: (1)" in text
        assert "0.125 | 0.125 | 3" in text
        assert "the students' features" in text.replace("the features of the students", "the students' features")

    def test_one_seed_gives_no_verdict_and_no_interval(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 1, shared=True)
        text = _text(study.write(teachers="shared"))
        assert "(one seed)" in text
        assert not re.search(r"\*\*\d", text)  # nothing stands out in bold
        assert "Undecided: (1) raising T costs more with the smoothed teacher (one seed shows no spread)" in text
        assert "about these teachers and not about smoothing" in text
        assert "±" not in text.split("## The paper's table")[1].split("## Mechanism")[0].split("Mean, half")[0]

    def test_an_unfinished_study_says_so_and_leaves_later_claims_open(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 5)
        study.records = [record for record in study.records if record["temperature"] != 4]
        text = _text(study.write(planned=60, temperatures=[1, 2, 4, 64]))
        assert "50 of 60 runs finished" in text
        assert "The study is not finished (50 of 60 jobs)" in text
        assert "Claim 1: no seed has all runs of" in text
        assert "exploratory, as an earlier one is open: (2), (3), (4) and (5)" in text

    def test_no_student_yet(self, made_up, tmp_path):
        study = made_up(tmp_path)
        study.job("teacher", 0, 0.0, None, None, 66.0, epochs=3, network="resnet20")
        text = _text(study.write(planned=60))
        assert "there is nothing to answer yet" in text

    def test_nothing_at_all(self, made_up, tmp_path):
        text = _text(made_up(tmp_path).write(planned=60))
        assert "there is nothing to answer yet" in text
        assert "No job has finished." in text

    def test_one_temperature_and_no_baseline(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 5)
        study.records = [r for r in study.records if r["temperature"] in (None, 1) and r["role"] != "baseline"]
        text = _text(study.write())
        assert "not tested: (1), (2), (4) and (5)" in text
        assert "the grid has one temperature" in text
        assert "no student was trained on labels alone" in text

    def test_without_outcomes_the_noise_of_the_test_set_stays_open(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 3)
        for path in tmp_path.glob("jobs/student*/outcomes.npy"):
            path.write_bytes(b"damaged")
        assert re.search(r"1\. Raising T .* \| \S \| leaning towards it", _text(study.write()))

    def test_a_run_that_diverged_is_named_and_left_out(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 3)
        study.records[-1]["metrics"]["acc1"] = float("nan")
        assert f"{study.records[-1]['job']} ended without a finite score." in _text(study.write())

    def test_failed_jobs_come_first_with_their_last_lines(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 1)
        failed = [{"job": "student-s4", "command": ["python", "train.py"], "error": ["Killed", "out of memory"]}]
        text = _text(study.write(failed=failed)).split("## Every run")[1]
        assert text.index("failed: student-s4") < text.index("teacher, resnet20")
        assert "out of memory" in text

    def test_a_last_line_cut_short_is_left_out_and_said(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 2)
        study.write()
        with (tmp_path / "results.jsonl").open("a") as file:
            file.write('{"job": "half')
        assert "cut short" in _text(tmp_path)

    def test_results_of_another_configuration_do_not_count(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 2)
        jobs = [record["job"] for record in study.records if record["seed"] == 0]
        assert "1 seed," in _text(study.write(jobs=jobs))

    def test_several_networks_and_settings_are_told_apart(self, made_up, fill, tmp_path):
        study = made_up(tmp_path)
        fill(study, 2)
        first = [dict(record) for record in study.records]
        for record in study.records:
            if record["role"] == "student":
                record["settings"] = {"kd_weight": 0.5}
                record["job"] += "-w0.5"
        study.records += [record for record in first if record["role"] == "student"]
        text = _text(study.write())
        assert "## Claims: kd_weight 0.5" in text
        assert "not across them" in text
        assert len(read_study(tmp_path).comparisons[1].baselines) == 2


@pytest.mark.usefixtures("nothing_is_drawn")
def test_translation_means_over_language_pairs(made_up, tmp_path):
    study = made_up(tmp_path)
    for seed in range(3):
        for alpha in (0.0, 0.1):
            for pair, bleu in (("en-de", 30.0), ("en-fr", 40.0)):
                study.job("teacher", seed, alpha, None, None, 50, epochs=2, network="transformer")
                study.records[-1] |= {"job": f"expert-{seed}-{alpha}-{pair}", "metrics": {"bleu": {pair: bleu}}}
            for t in (1, 2):
                study.job("student", seed, alpha, None, t, 50, epochs=2, network="transformer")
                study.records[-1]["metrics"] = {"bleu": {"en-de": 28 + seed / 10 - t, "en-fr": 38 - alpha * t}}
    for record in study.records:
        record["outcomes"], record["curve"] = None, []
    text = _text(study.write())
    assert "## BLEU against T" in text
    assert "BLEU, mean over en-de and en-fr, by temperature" in text
    assert re.search(r"^\| teacher \| 35.0", text, re.MULTILINE)
    assert "BLEU en-fr, by temperature" in text
    assert "T = 2 against" not in text
    assert "%" not in re.search(r"^Distil.*?\.|^Undecided.*?\.", text.split("## Answer\n\n")[1])[0].replace("95 %", "")
    assert "No run has kept a validation score for each epoch." in text
    for record in study.records:  # 0.1 bits an epoch: of 20 epochs the last four bring 0.4
        falls = {"teacher": 0.1, "student": 0.1, "baseline": 0.0}[record["role"]]
        record["curve"] = [{"epoch": epoch, "val_nll": 6 - falls * epoch} for epoch in range(20)]
    text = _text(study.write())
    assert "tudents still gained 0.40 bits per word piece in the last fifth of their training" in text
    assert "teachers +0.40 [0.40, 0.40] bits per word piece (still gaining)" in text
    assert "Negative log-likelihood (bits per word piece) on the validation data after each epoch" in text


@pytest.mark.usefixtures("nothing_is_drawn")
def test_translation_shows_the_papers_bleu_and_the_noise_of_the_sentences(made_up, tmp_path):
    study = made_up(tmp_path)
    for alpha in (0.0, 0.1):
        study.job("student", 1, alpha, None, 1, 50, epochs=2, network="transformer_iwslt_de_en")
        study.records[-1] |= {"metrics": {"bleu": {"en-de": 25.5, "en-ru": 16.5}}, "outcomes": None, "curve": []}
    noise = {
        "kind": "bootstrap",
        "name": "smoothed minus plain, seed 1",
        "pair": "en-de",
        "difference": 0.25,
        "p": 0.02,
    }
    text = _text(study.write())
    assert "paper 2" not in text
    assert "sacrebleu's paired bootstrap" not in text
    study.write(paper="iwslt")
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(noise) + "\n" + json.dumps({**noise, "pair": "en-ru", "difference": -1.5}) + "\n")
    text = _text(tmp_path)
    # the mean of the paper's two, and each of them in its own table
    assert re.search(r"^\| T = 1 \| 21.0 \(n = 1; paper 20.53\) \| 21.0 \(n = 1; paper 20.64\) \|", text, re.MULTILINE)
    assert re.search(r"^\| T = 1 \| 25.5 \(n = 1; paper 24.91\) \| 25.5 \(n = 1; paper 25.09\) \|", text, re.MULTILINE)
    assert "| smoothed minus plain, seed 1 | en-de | +0.2 | 0.02 |" in text
    assert "| smoothed minus plain, seed 1 | en-ru | \N{MINUS SIGN}1.5 | 0.02 |" in text
    assert "and is no verdict" in text
    assert "compare differences, not levels" in text


@pytest.mark.usefixtures("nothing_is_drawn")
def test_a_pair_that_was_not_scored_is_not_averaged_away(made_up, tmp_path):
    study = made_up(tmp_path)
    study.job("student", 0, 0.0, None, 1, 50, epochs=2, network="transformer")
    study.records[-1]["metrics"] = {"bleu": {"en-de": 30.0, "en-fr": None}}
    assert read_study(study.write()).runs[0].score is None


def test_everything_that_comes_from_data_is_escaped(made_up, fill, analyse, tmp_path):
    evil = '<script>alert("x")</script>&"\'$\\alpha$|`'
    study = made_up(tmp_path)
    fill(study, 2)
    for record in study.records:
        record |= {"network": evil, "command": evil, "host": evil, "versions": {evil: evil}, "settings": {evil: evil}}
    analyse(study, 2)
    records = json.loads((tmp_path / "analysis" / "all.json").read_text())
    for record in records:
        for name in ("groups", "right", "taken_for", "looks_smoothed", "caption", "alt"):
            if name in record:
                record[name] = evil
    records.append({"kind": "panels", "image": "../../../../etc/passwd", "caption": evil})
    (tmp_path / "analysis" / "all.json").write_text(json.dumps(records))
    facts = dict.fromkeys(("data", "machine", "question", "licence", "repeat", "name"), evil)
    failed = [{"job": evil, "error": evil, "command": evil}]
    path = write_report(study.write(**facts, failed=failed, networks={"teacher": evil, "student": evil}))
    source = path.read_text()
    page = Page(source)
    assert not page.of("script")
    assert evil in page.text
    assert "root:" not in source
    text = (tmp_path / "report.md").read_text()
    outside_code = re.sub(r"^(`{3,})$.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_code


@pytest.mark.usefixtures("nothing_is_drawn")
def test_a_panel_outside_the_analysis_is_not_read(made_up, fill, analyse, tmp_path):
    study = made_up(tmp_path / "study")
    fill(study, 1)
    analyse(study, 1)
    (tmp_path / "secret.svg").write_text("<svg>secret</svg>")
    panel = [{"kind": "panels", "image": "../../secret.svg"}]
    (tmp_path / "study" / "analysis" / "more.json").write_text(json.dumps(panel))
    text = _text(study.write())
    assert "A picture is missing or too large for the page" in text


@pytest.mark.usefixtures("nothing_is_drawn")
def test_the_papers_numbers_only_where_the_configuration_is_the_papers(made_up, tmp_path):
    study = made_up(tmp_path)
    for alpha in (0.0, 0.1):
        study.job("student", 0, alpha, None, 1, 71, epochs=2, network="resnet18")
    assert "paper 7" not in _text(study.write())
    text = _text(study.write(paper="imagenet"))
    assert "71.0 (n = 1; paper 71.49) | 71.0 (n = 1; paper 71.67)" in text


@pytest.mark.usefixtures("nothing_is_drawn")
def test_commands_are_shown_as_a_reader_would_give_them(made_up, tmp_path):
    study = made_up(tmp_path)
    study.job("student", 0, 0.1, None, 1, 60, epochs=2, network="resnet8")
    record = study.records[-1]
    clone, output = "/somewhere/clone", "/elsewhere/results"
    record["command"] = [
        f"{clone}/.venv/bin/python3.10",
        f"{clone}/vision_reference/train.py",
        "--data-path",
        "/d/cifar",
    ]
    record["command"] += ["--output-dir", f"{output}/{record['folder']}", "--teacher-weights", f"{output}/jobs/t/c.pth"]
    record["command"] += ["--weights", "/home/me/w.pth", "--note", "a b"]
    text = _text(study.write())
    assert (
        f"python vision_reference/train.py --data-path DATA --output-dir DIR/{record['folder']} "
        "--teacher-weights DIR/jobs/t/c.pth --weights \N{HORIZONTAL ELLIPSIS}/w.pth --note 'a b'"
    ) in text
    assert "/somewhere" not in text
    assert "/elsewhere" not in text


def test_bad_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        write_report(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"job": 1}\nnonsense\n{"job": 2}\n')
    with pytest.raises(UserError, match=r"line 1: no finished job"):
        write_report(tmp_path)
    (tmp_path / "results.jsonl").write_text('nonsense\n{"job": 2}\n')
    with pytest.raises(UserError, match=r"line 1: not JSON"):
        write_report(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        write_report(tmp_path)


def test_no_line_breaks_inside_what_belongs_together():
    assert tie("[0.4, 2.0] of 1, 2 and 3").split(" ") == ["[0.4,\N{NO-BREAK SPACE}2.0]", "of", "1,", "2", "and", "3"]
    assert tie("T = 4, 61.1 ± 0.5 % (95 %, n = 5)").split(" ") == [
        "T\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}4,",
        "61.1\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.5\N{NO-BREAK SPACE}%",
        "(95\N{NO-BREAK SPACE}%,",
        "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}5)",
    ]


def test_markdown_tables_keep_their_columns(whole_study):
    lines = markdown("t", "s", "q", sections_of(read_study(whole_study))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows
    for first, second in pairwise(rows):
        if lines.index(second) == lines.index(first) + 1:
            assert len(re.findall(r"(?<!\\)\|", first)) == len(re.findall(r"(?<!\\)\|", second))
