"""Studies: configurations and their mistakes, the graph of jobs, results, and small studies run by the command line."""

import fcntl
import json
import sys

import numpy as np
import pytest

from scripts import study as command
from scripts.lib import jobs
from scripts.studies import plan as planning
from scripts.studies import renaming
from scripts.studies.commands import check_commands
from scripts.studies.results import Kind
from scripts.studies.results import read_study as read_page
from scripts.studies.schema import CONFIGS, ConfigError, parse_study, read_study
from vision_reference.errors import UserError

DIGITS = (CONFIGS / "digits.yaml").read_text()
SHIPPED = ["cifar10", "cifar100", "cifar100_15_classes", "cub", "digits", "imagenet"]
SHIPPED += ["iwslt", "multi30k", "multi30k_sequences", "multi30k_small", "phrases", "tiny_imagenet_40"]


def planned(text, tmp_path, **options):
    return planning.make_plan(parse_study(text), tmp_path, **options)


def by_name(plan):
    return {one.job.name: one for one in plan}


def value(job, flag):
    return jobs.value_of(flag, job.command)


def test_all_shipped_configurations_can_be_planned(tmp_path):
    assert sorted(file.stem for file in CONFIGS.glob("*.yaml")) == SHIPPED
    for name in SHIPPED:
        if name in ("iwslt", "multi30k", "multi30k_sequences", "multi30k_small", "phrases"):
            pytest.importorskip("fairseq")
        study = read_study(CONFIGS / f"{name}.yaml")
        plan = planning.make_plan(study, tmp_path / name)
        jobs.in_order(one.job for one in plan)
        assert study.name == name
        assert {"teacher", "student", "baseline"} <= {one.role for one in plan}


def test_a_misspelt_setting_of_translation_is_told_the_names_that_translation_has():
    text = (CONFIGS / "multi30k_small.yaml").read_text().replace("max_epoch: 5", "max_epochs: 5")
    with pytest.raises(ConfigError) as error:
        parse_study(text)
    said = str(error.value)
    assert "did you mean 'max_epoch'? allowed: adam_betas, alpha, " in said
    assert "train.py" not in said


# (what is replaced, by what, what the message says)
MISTAKES = [
    ("seeds: [0, 1, 2]", "seedz: [0, 1, 2]", "line 6: there is no 'seedz' here; did you mean 'seeds'? allowed: base"),
    ("seeds: [0, 1, 2]", "seeds: [0, 1, 1]", "line 6: seeds: one is given twice"),
    ("seeds: [0, 1, 2]", "seeds: [0, -1]", "line 6: seeds: -1 is not a whole number from 0"),
    ("seeds: [0, 1, 2]", "seeds: [010]", "line 6: 010 would be read as 8; write 8, or quote it"),
    ("seeds: [0, 1, 2]", "seeds: [1:30]", "line 6: 1:30 would be read as 90"),
    ("seeds: [0, 1, 2]", "seeds: [99999999999]", "99999999999 is not a whole number from 0 to 4294967295"),
    ("seeds: [0, 1, 2]", f"seeds: {list(range(41))}", "seeds: 41 are more than 40"),
    ("lr: 0.05", "lr: 0.05\n  clip-grad-norm: 5\n  clip_grad_norm: 6", "is given twice, in two spellings; keep one"),
    ("lr: 0.05", "epochs: 0", "epochs: 0 is below 1"),
    ("seeds: [0, 1, 2]", "seeds: []", "line 6: seeds: the list is empty"),
    ("seeds: [0, 1, 2]", "seeds: true", "line 6: seeds: True is not a whole number"),
    ("seeds: [0, 1, 2]\n", "", "'seeds' is missing; a study needs title, kind, data, seeds and cells"),
    ("seeds: [0, 1, 2]", "seeds: [0]\nseeds: [1]", "line 7: seeds is given twice, first in line 6; keep one"),
    ("kind: images", "kind: pictures", "kind: 'pictures' is none of images, translation"),
    ("teachers: shared", "teachers: common", "teachers: 'common' is none of per-seed, shared"),
    ("teachers: shared", "pairs: [en-de]", "'pairs' is for kind: translation"),
    ("lr: 0.05", "lr: fast", "lr: 'fast' is not a number from 0"),
    ("lr: 0.05", "lrr: 0.05", "there is no setting 'lrr'; did you mean 'lr'? allowed: "),
    ("lr: 0.05", "seed: 3", "'seed' is set by the study itself; drop it"),
    ("lr: 0.05", "label-smoothing: 0.1", "a study calls 'label-smoothing' 'alpha'; use that"),
    ("lr: 0.05", "temperature: 2", "'temperature' is a setting of distilled students; give it under 'student'"),
    ("lr: 0.05", "opt: sgdd", "opt: 'sgdd' is none of sgd, sgd_nesterov, rmsprop, adamw"),
    ("preset: digits", "preset: digit", "preset: 'digit' is none of "),
    ("lr-warmup-per-step: true", "lr-warmup-per-step: 3", "lr-warmup-per-step: 3 is neither true nor false"),
    ("alpha: [0.0, 0.1]}\n    student", "alpha: [0.0, 1.5]}\n    student", "alpha: 1.5 is not a number from 0 to 1"),
    ("temperature: [1, 4]", "temperature: [1, 0]", "temperature: 0 is not above 0"),
    ("temperature: [1, 4]", "temperature: [1, .inf]", "temperature: inf is not a number from 0"),
    ("temperature: [1, 4]", "temperature: [1, 1]", "temperature: a value is given twice"),
    ("temperature: [1, 4]", "temperature: []", "temperature: the list is empty"),
    ("temperature: [1, 4]", "kd-weight: 0.5", "no temperature: give student: {temperature: [1, 4]}"),
    ("student: {temperature", "pupil: {temperature", "there is no 'pupil' here; allowed: student, teacher"),
    ("network: resnet18\n", "network: resnet19\n", "unknown model 'resnet19'; allowed: torchvision's"),
    ("temperature: [1, 4]", "temperature: 1, kd-loss: [kl, kll]", "unknown --kd-loss 'kll'; allowed: kl, dkd, "),
    ("  network: resnet18\n", "", "no network of the teacher: give teacher: {network: resnet18}"),
    ("title: ", "title: [", "not YAML"),
    ("estimate: {on", "estimate: {onn: 3, on", "there is no 'onn' here; did you mean 'on'?"),
]


def test_a_value_of_translation_is_checked_where_it_stands():
    text = (CONFIGS / "multi30k_small.yaml").read_text().replace("max_epoch: 5", "max_epoch: soon")
    with pytest.raises(ConfigError, match="x.yaml, line 26: max_epoch is 'soon'; give a whole number, such as 50"):
        parse_study(text, "x.yaml")


# What only the program would find that is to run it, and of a student only when its teachers have been trained.
REFUSED = [
    ("cifar100_15_classes", "kd-weight: 1", "mixup-alpha: 0.2", "mixup-alpha does not go with --soft-labels"),
    ("cifar100_15_classes", "kd-weight: 1", "lr-milestones: [3]", "multisteplr and --lr-milestones"),
    ("cifar100_15_classes", "kd-weight: 1", "opt: sgd_nesterov\n  momentum: 0", "sgd_nesterov needs a --momentum"),
    ("cifar100_15_classes", "network: resnet8", "network: vit_b_16", "vit_b_16 takes 224x224 images only"),
    ("multi30k_small", "max_epoch: 3", "options: --max-epok 3", "refuse it: unrecognized arguments: --max-epok 3"),
    ("multi30k_small", "max_epoch: 3", "arch: transfomer", "'transfomer'; allowed: transformer"),
    ("multi30k_small", "max_epoch: 3", "lr_scheduler: cosin", "'cosin'; allowed: cosine"),
    ("multi30k_small", "max_epoch: 3", "kd_loss: standardized", "standardized needs all logits of the teacher"),
    ("multi30k_small", "max_epoch: 3", "kd_loss: dist\n  kd_tail: bucket", "--kd-tail bucket changes the entries"),
    ("multi30k_small", "max_epoch: 3", "kd_loss: kll", "unknown --kd-loss 'kll'; allowed: kl, dkd, "),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), REFUSED, ids=[new for _, _, new, _ in REFUSED])
def test_what_would_refuse_a_student_is_known_before_its_teachers_are_trained(name, old, new, message, tmp_path):
    if name == "multi30k_small":
        pytest.importorskip("fairseq")
    text = (CONFIGS / f"{name}.yaml").read_text()
    check_commands(planned(text, tmp_path, data=tmp_path))
    assert text.count(old) == 1
    with pytest.raises(UserError, match=r"^student_distilled_alpha0_T1_seed\d: ") as told:
        check_commands(planned(text.replace(old, new), tmp_path, data=tmp_path))
    assert message in str(told.value)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("answers", "student", "message"),
    [
        ("stored\ntop_k: 4", "kd-loss: standardized", "standardized needs all logits of the teacher, .* the 4 largest"),
        ("running", "kd-loss: dkd, mixup-alpha: 0.2", "dkd needs one class an image; drop --mixup-alpha"),
    ],
)
def test_a_loss_that_would_not_get_what_it_needs_is_known_before_teachers_are_trained(
    answers, student, message, tmp_path
):
    text = DIGITS.replace("teacher_answers: stored", f"teacher_answers: {answers}")
    check_commands(planned(text, tmp_path))
    text = text.replace("temperature: [1, 4]", f"temperature: [1, 4], {student}")
    with pytest.raises(UserError, match=message):
        check_commands(planned(text, tmp_path))


def test_a_function_of_the_users_own_is_not_imported_for_a_plan(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    text = DIGITS.replace("network: resnet18", "network: mine:network")
    text = text.replace("temperature: [1, 4]", "temperature: [1, 4], kd-loss: mine:loss")
    check_commands(planned(text, tmp_path))


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[new[:40] for _, new, _ in MISTAKES])
def test_a_mistake_names_line_key_and_what_is_allowed(old, new, message):
    assert old in DIGITS
    with pytest.raises(ConfigError) as told:
        parse_study(DIGITS.replace(old, new, 1), "x.yaml")
    assert str(told.value).startswith("x.yaml")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_prepared_data_of_a_translation_needs_no_preparing(tmp_path):
    pytest.importorskip("fairseq")
    text = (CONFIGS / "multi30k_small.yaml").read_text()
    start = text.index("prepare: {")
    without = text[:start] + text[text.index("\n", start) :]
    plan = planned(without, tmp_path, data=tmp_path / "mine")
    assert "data" not in by_name(plan)
    assert by_name(plan)["expert_en-de_alpha0_seed1"].job.command[1] == str(tmp_path / "mine" / "data-bin")
    with pytest.raises(UserError, match="holds no data-bin; give a folder that prepare.py made"):
        command.check_data(parse_study(without), tmp_path)
    with pytest.raises(ConfigError, match="from: builtin does not go with data: data/multi30k"):
        parse_study(text.replace("from: parallel", "from: builtin"))


def test_a_setting_is_passed_on_with_all_its_digits(tmp_path):
    plan = planned(DIGITS.replace("lr: 0.05", "lr: 0.123456789"), tmp_path)
    assert {value(one.job, "--lr") for one in plan if one.role == "teacher"} == {"0.123456789"}


@pytest.mark.parametrize("text", ["", "- 1", "just words", "{}", "title: 3", "? [a]\n: 1"])
def test_what_is_no_study_is_one_line(text):
    with pytest.raises(ConfigError):
        parse_study(text)


def test_within_a_seed_all_cells_share_it_and_its_teachers(tmp_path):
    text = DIGITS.replace("teachers: shared", "teachers: per-seed").replace("answers: stored ", "answers: running ")
    plan = by_name(planned(text, tmp_path))
    assert len(plan) == 1 + 3 * (2 + 4 + 2)
    for one in plan.values():
        if one.role != "data":
            assert value(one.job, "--seed") == str(one.seed)
    student = plan["student_distilled_alpha0.1_T4_seed2"]
    assert (student.alpha, student.temperature, student.network) == (0.1, 4.0, "shufflenet_v2_x0_5")
    assert student.job.after == ("data", "teacher_alpha0.1_seed2")
    weights = tmp_path / "runs" / "teacher_alpha0.1_seed2" / "checkpoint.pth"
    assert value(student.job, "--teacher-weights") == str(weights)
    assert value(student.job, "--kd-temperature") == "4"
    assert value(plan["teacher_alpha0.1_seed2"].job, "--label-smoothing") == "0.1"
    assert value(plan["student_labels_alpha0.1_seed0"].job, "--label-smoothing") == "0.1"
    assert "--teacher" not in plan["student_labels_alpha0.1_seed0"].job.command
    roles = [(one.seed, one.role) for one in planned(text, tmp_path) if one.role != "data"]
    assert [seed for seed, _ in roles] == sorted(seed for seed, _ in roles)  # whole seeds first


def test_stored_answers_are_shared_by_all_temperatures_and_show_the_same_views(tmp_path):
    plan = by_name(planned(DIGITS, tmp_path))
    first, second = plan["store_alpha0_seed0"].job, plan["store_alpha0.1_seed0"].job
    assert (value(first, "--views"), value(first, "--seed")) == ("8", "0")  # as many as epochs
    assert value(second, "--same-views-as") == str(first.folder / "soft_labels")
    assert first.name in second.after
    for seed in range(3):
        for temperature in (1, 4):
            student = plan[f"student_distilled_alpha0.1_T{temperature}_seed{seed}"].job
            assert value(student, "--soft-labels") == str(second.folder / "soft_labels")
            assert second.name in student.after
            assert "--teacher" not in student.command
    assert "--lr" not in first.command
    assert value(first, "--preset") == "digits"


def test_any_setting_can_be_an_axis(tmp_path):
    text = DIGITS.replace("temperature: [1, 4]", "temperature: 1, kd-weight: [0.5, 1], answers: [stored, running]")
    students = [one for one in planned(text, tmp_path) if one.role == "student" and one.seed == 0]
    assert len(students) == 2 * 4
    found = {(one.alpha, one.settings["kd-weight"], one.settings["answers"]) for one in students}
    assert len(found) == 8
    taught = {("--soft-labels" in one.job.command, one.settings["answers"]) for one in students}
    assert taught == {(True, "stored"), (False, "running")}
    assert len({one.job.folder for one in students}) == 8


def test_maxsup_teachers_and_milestones(tmp_path):
    text = DIGITS.replace("teacher: {alpha: [0.0, 0.1]}", "teacher: {max_suppression: 0.1}")
    text = text.replace("lr-scheduler: cosineannealinglr", "lr-scheduler: multisteplr\n  lr-milestones: [3, 5]")
    plan = by_name(planned(text, tmp_path))
    teacher = plan["teacher_maxsup0.1_seed0"]
    assert (teacher.alpha, teacher.max_suppression) == (0.0, 0.1)
    place = teacher.job.command.index("--lr-milestones")
    assert teacher.job.command[place + 1 : place + 3] == ("3", "5")


def test_translation_has_an_expert_for_each_pair_and_a_score_of_each_model(tmp_path):
    pytest.importorskip("fairseq")
    text = (CONFIGS / "multi30k.yaml").read_text()
    plan = by_name(planned(text, tmp_path, data=tmp_path / "text"))
    student = plan["student_distilled_alpha0.1_T64_seed2"]
    stores = [tmp_path / "runs" / f"store_en-{lang}_alpha0.1_seed2" / "outputs" for lang in ("de", "fr")]
    assert value(student.job, "--teacher-outputs") == f"en-de={stores[0]},en-fr={stores[1]}"
    assert value(student.job, "--kd-temperature") == "64"
    assert value(student.job, "--seed") == "2"
    assert value(student.job, "--label-smoothing") == "0.1"
    assert value(plan["expert_en-fr_alpha0_seed1"].job, "--label-smoothing") == "0"
    assert value(plan["store_en-de_alpha0_seed1"].job, "--temperatures") == "1,2,64"
    assert plan["bleu_student_distilled_alpha0.1_T64_seed2"].job.after == ("data", student.job.name)
    assert value(plan["data"].job, "--input") == str(tmp_path / "text")


def test_translation_compares_the_students_that_the_claims_are_about_sentence_by_sentence(tmp_path):
    pytest.importorskip("fairseq")
    plan = planned((CONFIGS / "multi30k.yaml").read_text(), tmp_path, data=tmp_path / "text")
    jobs_of = by_name(plan)
    compared = [(one.of, one.against) for one in plan if one.role == "comparison" and one.seed == 2]
    smoothed, plain = (f"student_distilled_alpha{alpha}_T1_seed2" for alpha in ("0.1", "0"))
    labels = [f"student_labels_alpha{alpha}_seed2" for alpha in ("0", "0.1")]
    assert set(compared) == {(smoothed, plain)} | {(one, other) for one in (smoothed, plain) for other in labels}
    one = jobs_of[f"compare_{smoothed.removesuffix('_seed2')}_with_{plain}"]
    assert one.job.after == (f"bleu_{plain}", f"bleu_{smoothed}")
    files = [str(tmp_path / "runs" / f"bleu_{name}" / "bleu.json") for name in (plain, smoothed)]
    place = one.job.command.index("--compare")
    assert list(one.job.command[place + 1 : place + 3]) == files
    # a finished one becomes a line for each language pair
    assert planning.comparisons(plan) == []
    found = {"bleu": {"baseline": 30.0, "difference": 0.5, "p_value": 0.04, "confidence": 1.0}}
    finish(plan)
    for other in plan:
        if other.role == "comparison":
            sets = json.dumps({"sets": {"en-de": found, "en-fr": found}})
            (other.job.folder / "compare.json").write_text(sets)
    german, french = [
        line for line in planning.comparisons(plan) if line["against"] == plain and smoothed == line["student"]
    ]
    assert (german["kind"], german["pair"], french["pair"]) == ("bootstrap", "en-de", "en-fr")
    assert german["name"] == "smoothed 0.1 teacher, T = 1 minus plain teacher, T = 1, seed 2"
    assert (german["difference"], german["p"]) == (0.5, 0.04)


def finish(plan):
    """Every job has ended well; what a test wrote of a job's files is kept."""
    for one in plan:
        for name in one.job.makes:
            (one.job.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (one.job.folder / name).touch()
        record = {"command": list(one.job.command), "seconds": 3.0, "cpu_seconds": 2.0, "finished": True, "host": "h"}
        record |= {"made": f"made {one.job.name}", "inputs": {name: f"made {name}" for name in one.job.after}}
        jobs.save_record(one.job, record | {"ended": "2026-11-24T10:00:00+00:00"})


def test_students_may_learn_from_their_experts_translations(tmp_path):
    pytest.importorskip("fairseq")
    text = (CONFIGS / "multi30k_sequences.yaml").read_text().replace("pairs: [en-de]", "pairs: [en-de, en-fr]")
    plan = by_name(planned(text, tmp_path, data=tmp_path / "text"))
    runs = tmp_path / "runs"
    sequences = plan["sequences_alpha0.1_seed2"].job
    experts = ",".join(f"en-{lang}={runs}/expert_en-{lang}_alpha0.1_seed2/checkpoint_best.pt" for lang in ("de", "fr"))
    assert value(sequences, "--experts") == experts
    assert value(sequences, "--data") == str(runs / "data" / "prepared")
    distilled = str(runs / sequences.name / "distilled" / "data-bin")
    for name in ("student_distilled_sequences_alpha0.1_T1_seed2", "student_labels_sequences_alpha0.1_seed2"):
        assert plan[name].job.command[1] == distilled
        assert sequences.name in plan[name].job.after
        assert value(plan[f"bleu_{name}"].job, "--data-bin") == str(runs / "data" / "prepared" / "data-bin")
    # stored outputs are about the sentences that the student sees
    assert value(plan["store_sequences_en-de_alpha0.1_seed2"].job, "--data-bin") == distilled
    assert plan["student_labels_no-sequences_alpha0.1_seed2"].job.command[1] == str(
        runs / "data" / "prepared" / "data-bin"
    )
    for old, message in (("{alpha: 0.1}", "'sequences' is a setting of students"), ("[false, true]", "neither true")):
        new = "{alpha: 0.1, sequences: true}" if "alpha" in old else "3"
        with pytest.raises(ConfigError, match=message):
            parse_study(text.replace(old, new, 1))


def test_results_are_the_last_epochs_with_all_that_a_report_needs(tmp_path):
    plan = planned(DIGITS, tmp_path)
    student = next(one for one in plan if one.role == "student")
    assert planning.results(plan, tmp_path) == []
    student.job.folder.mkdir(parents=True)
    epochs = [
        {
            "epoch": epoch,
            "lr": 0.1,
            "train_loss": 2.0,
            "val_loss": 1.0,
            "val_acc1": acc1,
            "val_acc5": 99.0,
            "seconds": 1,
        }
        for epoch, acc1 in enumerate((80.0, 70.0))
    ]
    finish(plan)
    for one in plan:
        if "metrics.jsonl" in one.job.makes:
            (one.job.folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    record = jobs.load_record(student.job)
    jobs.save_record(student.job, record | {"finished": False})
    assert student.job.name not in {line["job"] for line in planning.results(plan, tmp_path)}
    jobs.save_record(student.job, record)
    (line,) = [line for line in planning.results(plan, tmp_path) if line["job"] == student.job.name]
    assert line["metrics"] == {"acc1": 70.0, "acc5": 99.0}
    assert [epoch["acc1"] for epoch in line["curve"]] == [80.0, 70.0]
    assert line["folder"] == f"runs/{student.job.name}"
    assert (line["role"], line["seed"], line["seconds"], line["host"]) == ("student", 0, 3.0, "h")
    assert line["outcomes"] is None
    # what was taught by a teacher that has been trained anew since is no result of this study
    teacher = next(one for one in plan if one.job.name in student.job.after and one.role in ("teacher", "store"))
    jobs.save_record(teacher.job, jobs.load_record(teacher.job) | {"made": "again"})
    assert student.job.name not in {line["job"] for line in planning.results(plan, tmp_path)}
    # nor is one whose files are gone an end of the study
    (student.job.folder / "metrics.jsonl").unlink()
    assert planning.results(plan, tmp_path)


def test_the_curve_of_a_translation_is_what_fairseq_logged_of_each_epoch_last(tmp_path):
    def line(part, **told):
        return f"2026-11-30 21:00:00 | INFO | {part} | {json.dumps(told)}\n"

    log = tmp_path / "train.log"
    assert planning._translation_curve(log) == []
    log.write_text(
        "2026-11-30 21:00:00 | INFO | fairseq_cli.train | begin\n"
        + line("train_inner", epoch=1, update=0.5, loss="9.1")
        + line("valid", epoch=1, valid_loss="9.0", valid_nll_loss="8.5", valid_ppl="362", valid_num_updates="100")
        + line("train", epoch=1, train_loss="9.5", train_wps="1200.5", train_lr="0.0001", train_nll_loss="9")
        + line("valid", epoch=2, valid_loss="8.0", valid_nll_loss="7.5")
        + "2026-11-30 21:00:00 | INFO | valid | {broken\n"  # as where a run is killed
        + line("valid", epoch=2, valid_loss="8.0", valid_nll_loss="7.25", valid_num_updates="200")
        + line("train", epoch=2, train_loss="8.5", train_wps="1300", train_lr="0.0002")
    )
    curve = [
        {"epoch": 0, "val_nll": 8.5, "updates": 100.0, "lr": 0.0001, "train_loss": 9.5, "words_per_second": 1200.5},
        {"epoch": 1, "val_nll": 7.25, "updates": 200.0, "lr": 0.0002, "train_loss": 8.5, "words_per_second": 1300.0},
    ]
    assert planning._translation_curve(log) == curve
    with log.open("a") as file:  # --max-update 203
        file.write(line("valid", epoch=3, valid_nll_loss="7.24", valid_num_updates="203"))
    assert planning._translation_curve(log) == curve
    with log.open("a") as file:
        file.write(line("valid", epoch=3, valid_nll_loss="7.0", valid_num_updates="280"))
    assert planning._translation_curve(log) == [*curve, {"epoch": 2, "val_nll": 7.0, "updates": 280.0}]


def cells_of(text, tmp_path):
    """The page's comparisons of a plan whose jobs have all finished."""
    plan = planned(text, tmp_path)
    finish(plan)
    epoch = {"epoch": 0, "lr": 0.1, "train_loss": 2.0, "val_loss": 1.0, "val_acc1": 70.0, "val_acc5": 99.0}
    for one in plan:
        if "metrics.jsonl" in one.job.makes:
            (one.job.folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    lines = planning.results(plan, tmp_path)
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_page(tmp_path), lines


GRID = """
title: Grid
kind: images
data: builtin
seeds: [0, 1]
settings: {workers: 0}
teacher: {network: resnet18, epochs: 1}
student: {network: resnet8, epochs: 1}
cells:
  - teacher: {TEACHER}
    student: {STUDENT}
baselines:
  - {BASELINE}
"""


@pytest.mark.parametrize(
    ("teacher", "student", "baseline", "comparisons"),
    [
        ("network: [resnet18, resnet50], alpha: [0.0, 0.1]", "temperature: [1, 4]", "alpha: 0.0", 2),
        ("alpha: 0.0", "alpha: [0.0, 0.1], temperature: [1, 4]", "alpha: [0.0, 0.1]", 2),
        ("epochs: [1, 2]", "temperature: [1, 4]", "alpha: 0.0", 2),
        ("alpha: [0.0, 0.1]", "epochs: [1, 2], temperature: [1, 4]", "epochs: [1, 2]", 2),
        ("alpha: 0.0, max-suppression: [0.1, 0.2]", "temperature: [1, 4]", "alpha: 0.0", 1),
        ("alpha: [0.0, 0.1], max-suppression: 0.1", "temperature: [1, 4]", "alpha: 0.0", 1),
        ("alpha: 0.0", "max-suppression: [0.1, 0.2], temperature: [1, 4]", "alpha: 0.0", 2),
    ],
)
def test_no_cell_of_the_grid_takes_anothers_place(tmp_path, teacher, student, baseline, comparisons):
    text = GRID.replace("TEACHER", teacher).replace("STUDENT", student).replace("BASELINE", baseline)
    study, lines = cells_of(text, tmp_path)
    assert len(study.comparisons) == comparisons
    assert study.unplaced == []
    shown = {run.job for one in study.comparisons for run in one.runs}
    assert shown == {line["job"] for line in lines}
    for one in study.comparisons:
        for cell in (*one.teachers.values(), *one.baselines.values(), *one.students.values()):
            assert sorted(cell) == [0, 1]


def grown(teacher, student, baseline="alpha: 0.0"):
    text = GRID.replace("TEACHER", teacher).replace("STUDENT", student).replace("BASELINE", baseline)
    return text.replace("seeds:", "teacher_answers: stored\nseeds:")


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        (
            ("alpha: 0.0", "kd-weight: 1, temperature: 1"),
            ("alpha: 0.0", "kd-weight: [0.5, 1], temperature: [1, 4]"),
            [f"student_distilled_kd-weight{cell}" for cell in ("0.5_alpha0_T1", "0.5_alpha0_T4", "1_alpha0_T4")],
        ),
        (  # 1 is what it is where nothing says otherwise
            ("alpha: 0.0", "temperature: 1"),
            ("alpha: 0.0", "kd-weight: [0.5, 1], temperature: 1"),
            ["student_distilled_kd-weight0.5_alpha0_T1"],
        ),
        (  # all that reads the teacher's files goes along with it
            ("alpha: 0.0", "temperature: 1"),
            ("alpha: 0.0, lr: [0.1, 0.2]", "temperature: 1"),
            ["teacher_lr0.2_alpha0", "store_lr0.2_alpha0", "student_distilled_teacher-lr0.2_alpha0_T1"],
        ),
    ],
)
def test_finished_jobs_keep_their_results_when_a_grid_that_grows_names_them_anew(tmp_path, before, after, new):
    if "lr" in after[0]:
        before = before[0] + ", lr: 0.1", before[1]
    small = planned(grown(*before), tmp_path)
    finish(small)
    for one in small:
        (one.job.folder / "whose").write_text(one.job.name)
    plan = [one.job for one in planned(grown(*after), tmp_path)]
    expected = renaming.renamed(plan)
    assert all(not job.folder.exists() for job in plan if job.name in expected)  # looking changes nothing
    assert renaming.adopt(plan) == expected
    states = jobs.states(plan)
    assert {name for name, state in states.items() if state.kind != "finished"} == {
        f"{name}_seed{seed}" for name in new for seed in (0, 1)
    }
    assert {state.kind for state in states.values()} == {"finished", "new"}
    moved = {(tmp_path / "runs" / name / "whose").read_text(): name for name, state in states.items() if state.made}
    assert moved.keys() == {one.job.name for one in small}  # each result once, and none lost
    assert renaming.renamed(plan) == {}
    # and back again
    assert len(renaming.adopt([one.job for one in small])) == len(expected)
    assert renaming.adopt([one.job for one in small]) == {}
    assert {state.kind for state in jobs.states(one.job for one in small).values()} == {"finished"}
    assert all((one.job.folder / "whose").read_text() == one.job.name for one in small)


def test_to_state_a_default_changes_nothing(tmp_path):
    finish(planned(grown("alpha: 0.0", "temperature: 1"), tmp_path))

    def kinds(student):
        plan = planned(grown("alpha: 0.0", student), tmp_path)
        return {
            one.role: state.kind for one, state in zip(plan, jobs.states(p.job for p in plan).values(), strict=True)
        }

    assert set(kinds("temperature: 1, kd-weight: 1, momentum: 0.9").values()) == {"finished"}
    assert kinds("temperature: 1, kd-weight: 0.5")["student"] == "changed"


def test_a_result_of_other_settings_or_inputs_takes_no_new_name(tmp_path):
    small = planned(grown("alpha: 0.0", "kd-weight: 1, temperature: 1"), tmp_path)
    finish(small)
    other = [one.job for one in planned(grown("alpha: 0.0", "kd-weight: [0.5, 0.7], temperature: 1"), tmp_path)]
    assert renaming.renamed(other) == {}
    teacher = next(one.job for one in small if one.role == "teacher" and one.seed == 1)
    jobs.save_record(teacher, jobs.load_record(teacher) | {"made": "again"})
    plan = [one.job for one in planned(grown("alpha: 0.0", "kd-weight: [0.5, 1], temperature: 1"), tmp_path)]
    assert renaming.renamed(plan).keys() == {"student_distilled_kd-weight1_alpha0_T1_seed0"}
    stray = tmp_path / "runs" / "student_distilled_alpha0_T1_seed0"
    (stray / "run.json").write_text("{")
    assert renaming.renamed(plan) == {}


def test_a_baseline_of_other_settings_is_not_the_one_to_compare_with(tmp_path):
    text = GRID.replace("TEACHER", "alpha: 0.0").replace("BASELINE", "lr: [0.1, 0.2]")
    study, _ = cells_of(text.replace("STUDENT", "lr: 0.1, temperature: [1, 4]"), tmp_path)
    (comparison,) = study.comparisons
    assert {run.job for run in comparison.baselines[Kind()].values()} == {
        f"student_labels_lr0.1_alpha0_seed{seed}" for seed in (0, 1)
    }
    assert {run.job for run in study.unplaced} == {f"student_labels_lr0.2_alpha0_seed{seed}" for seed in (0, 1)}


def test_fewer_epochs_of_a_translation_are_another_training(tmp_path):
    pytest.importorskip("fairseq")
    text = (CONFIGS / "multi30k_small.yaml").read_text()
    finish(planned(text, tmp_path, data=tmp_path / "text"))
    plan = planned(text.replace("max_epoch: 3", "max_epoch: 2"), tmp_path, data=tmp_path / "other")
    kinds = {name: state.kind for name, state in jobs.states(one.job for one in plan).items()}
    assert kinds["student_distilled_alpha0_T1_seed1"] == "changed"
    assert kinds["expert_en-de_alpha0_seed1"] == "finished"  # and where the text lies does not count


FAKE = """
title: Fake
kind: images
data: DATA
seeds: [0]
settings: {workers: 0}
teacher: {network: resnet18, epochs: 1}
student: {network: resnet18, epochs: 1}
cells:
  - teacher: {alpha: 0.0}
    student: {temperature: [1, 2]}
"""
WRITES = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
if "--kd-temperature" in sys.argv and sys.argv[sys.argv.index("--kd-temperature") + 1] == "FAILS":
    sys.exit("the reason")
(folder / "checkpoint.pth").touch()
epoch = {"epoch": 0, "lr": 1, "train_loss": 1, "val_loss": 1, "val_acc1": 50.0, "val_acc5": 90.0, "seconds": 1}
(folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A study whose trainings are a script that takes no time; returns how to call study.py on it."""
    (tmp_path / "vision_reference").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(planning, "ROOT", tmp_path)
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def call(*words, fails="", config=FAKE):
        (tmp_path / "vision_reference" / "train.py").write_text(WRITES.replace("FAILS", fails))
        (tmp_path / "fake.yaml").write_text(config.replace("DATA", str(tmp_path / "data")))
        words = [str(tmp_path / word) if word in ("fake.yaml", "out") else word for word in words]
        monkeypatch.setattr(sys, "argv", ["study.py", *words])
        try:
            command.run_command("study.py", command.main)
        except SystemExit as ended:
            return ended.code
        return 0

    return call


def test_a_failure_is_isolated_told_by_status_and_tried_again(fake, tmp_path, capsys):
    assert fake("run", "fake.yaml", "--output", "out", "--jobs", "2", fails="2") == 1
    told = capsys.readouterr()
    assert told.err.endswith("/train.log\n")
    assert "student_distilled_alpha0_T2_seed0 failed (exit status 1): the reason; see " in told.err
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["job"] for line in lines] == ["teacher_alpha0_seed0", "student_distilled_alpha0_T1_seed0"]
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [failed["error"] for failed in facts["failed"]] == ["the reason"]
    assert (facts["planned"], facts["temperatures"]) == (3, [1.0, 2.0])
    assert fake("status", "out") == 1
    shown = capsys.readouterr().out
    assert "2 done, 0 running, 0 begun, 0 waiting, 1 failed" in shown
    assert "    the reason" in shown
    assert fake("run", "fake.yaml", "--output", "out") == 0
    assert "done in" in capsys.readouterr().out
    assert fake("status", "out") == 0
    assert json.loads((tmp_path / "out" / "study.json").read_text())["failed"] == []
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 3


def test_a_plan_shows_the_graph_what_is_done_and_what_changes_and_writes_nothing(fake, tmp_path, capsys):
    assert fake("plan", "fake.yaml", "--output", "out") == 0
    shown = capsys.readouterr().out
    assert "teacher    teacher_alpha0  x 1 (1 new)" in shown
    assert "student_distilled_alpha0_T2  x 1 (1 new)  after teacher_alpha0" in shown
    assert "not known until one has run: student, teacher" in shown
    assert not (tmp_path / "out").exists()
    fake("run", "fake.yaml", "--output", "out")
    capsys.readouterr()
    assert fake("plan", "fake.yaml", "--output", "out") == 0
    assert "nothing is left to do" in capsys.readouterr().out
    changed = FAKE.replace("teacher: {network: resnet18", "teacher: {network: resnet50")
    assert fake("plan", "fake.yaml", "--output", "out", config=changed) == 0
    shown = capsys.readouterr().out
    assert "made anew: teacher_alpha0_seed0 (then: --model resnet18; now: --model resnet50)" in shown
    assert "not known until one has run: student, teacher" in shown  # those of other settings are no measure


def test_mistakes_of_the_command_line_are_one_line(fake, tmp_path, capsys):
    def told(*words, **options):
        assert fake(*words, **options) == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        return complaint

    assert "cannot read nowhere.yaml: No such file or directory; shipped in" in told(
        "plan", "nowhere.yaml", "--output", "x"
    )
    assert "holds no study (no study.json)" in told("status", "out")
    missing = FAKE.replace("DATA", "/no/such/place")
    assert "no folder /no/such/place; give the data with --data DIR" in told(
        "run", "fake.yaml", "--output", "out", config=missing
    )
    assert "--jobs 0 is below 1" in told("run", "fake.yaml", "--output", "out", "--jobs", "0")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "--fresh: " in told("run", "fake.yaml", "--output", "out", "--fresh")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_fresh_removes_what_a_study_left_and_nothing_else(fake, tmp_path, capsys):
    fake("run", "fake.yaml", "--output", "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    first = json.loads((tmp_path / "out" / "runs" / "teacher_alpha0_seed0" / "run.json").read_text())
    assert fake("run", "fake.yaml", "--output", "out", "--fresh") == 0
    second = json.loads((tmp_path / "out" / "runs" / "teacher_alpha0_seed0" / "run.json").read_text())
    assert second["made"] != first["made"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_fresh_with_a_mistake_removes_nothing(fake, tmp_path, capsys):
    fake("run", "fake.yaml", "--output", "out")
    before = (tmp_path / "out" / "results.jsonl").read_text()
    for mistake in (["--data", "nowhere"], ["--jobs", "0"]):
        assert fake("run", "fake.yaml", "--output", "out", "--fresh", *mistake) == 2
    with (tmp_path / "out" / "runs" / "teacher_alpha0_seed0" / "run.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a training that outlived its runner
        assert fake("run", "fake.yaml", "--output", "out", "--fresh") == 2
        changed = FAKE.replace("teacher: {network: resnet18", "teacher: {network: resnet50")
        assert fake("run", "fake.yaml", "--output", "out", config=changed) == 1
        assert "is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs" / jobs.REPLACED).exists()
    assert fake("run", "fake.yaml", "--output", "out") == 0
    assert (tmp_path / "out" / "results.jsonl").read_text() == before


def test_results_of_earlier_settings_are_none_of_the_new_ones(fake, tmp_path, capsys):
    def kept():
        lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
        return {(one["job"], one["network"]) for one in map(json.loads, lines)}

    teacher, first, second = (
        "teacher_alpha0_seed0",
        "student_distilled_alpha0_T1_seed0",
        "student_distilled_alpha0_T2_seed0",
    )
    fake("run", "fake.yaml", "--output", "out")
    changed = FAKE.replace("student: {network: resnet18", "student: {network: resnet50")
    assert fake("run", "fake.yaml", "--output", "out", "--jobs", "0", config=changed) == 2
    assert kept() == {(name, "resnet18") for name in (teacher, first, second)}  # nothing was begun
    assert fake("run", "fake.yaml", "--output", "out", config=changed, fails="2") == 1
    assert kept() == {(teacher, "resnet18"), (first, "resnet50")}
    capsys.readouterr()
    assert fake("status", "out") == 1
    assert "2 done, 0 running, 0 begun, 0 waiting, 1 failed" in capsys.readouterr().out


def test_what_ended_badly_has_failed_and_what_was_stopped_has_not(fake, tmp_path, capsys):
    job = jobs.Job("a", tmp_path / "a", ("sleep", "60"))
    process = jobs.Process(job, {}, {})
    process.ask_to_end()
    process.stop()
    assert not jobs.has_failed(jobs.load_record(job))
    empty = jobs.Job("b", tmp_path / "b", ("true",), makes=("result",))
    process = jobs.Process(empty, {}, {})
    process.stop()
    assert jobs.has_failed(jobs.load_record(empty))  # it ended with status 0 and left nothing
    assert jobs.load_record(empty)["exit_status"] == 1


def test_amp_is_what_the_study_was_begun_with(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(command, "_fast_bf16", lambda: False)
    plain = parse_study(DIGITS)
    automatic = parse_study(DIGITS.replace("lr: 0.05", "lr: 0.05\n  amp: auto"))
    in_cells = parse_study(DIGITS.replace("student: {temperature", "student: {amp: auto, temperature"))
    assert command.decide_amp(plain, {"amp": True}) is None
    for study in (automatic, in_cells):
        assert command.decide_amp(study, {}) is False
        assert command.decide_amp(study, {"amp": True}) is True
        assert command.decide_amp(study, {}, on_cluster=True) is True


def test_nodes_of_a_cluster_are_not_told_to_train_on_the_cpu(tmp_path, monkeypatch):
    pytest.importorskip("fairseq")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study = read_study(CONFIGS / "phrases.yaml")
    for on_cluster in (False, True):
        plan = command.make_plan(study, tmp_path, None, amp=None, on_cluster=on_cluster)
        trains = [one.job.command for one in plan if one.role in ("teacher", "student", "baseline")]
        assert {"--cpu" in words for words in trains} == {not on_cluster}


def test_a_study_that_is_being_run_is_left_alone(fake, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.json").write_text("{}")
    with command.locked(tmp_path / "out"):
        assert fake("run", "fake.yaml", "--output", "out") == 2
        assert fake("run", "fake.yaml", "--output", "out", "--fresh") == 2
    assert capsys.readouterr().err.count("is being run by process") == 2
    assert (tmp_path / "out" / "study.json").exists()


def test_other_data_is_noticed(fake, tmp_path, capsys):
    assert fake("run", "fake.yaml", "--output", "out") == 0
    (tmp_path / "other").mkdir()
    assert fake("run", "fake.yaml", "--output", "out", "--data", str(tmp_path / "other")) == 0
    assert "note: this study was begun with the data in" in capsys.readouterr().err


def test_a_gpu_serves_one_job(tmp_path, monkeypatch):
    plan = planned(DIGITS, tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert all("OMP_NUM_THREADS" in slot for slot in command.slots(plan, None))  # device: cpu
    plan = planned(DIGITS.replace("  device: cpu\n", ""), tmp_path)
    assert command.slots(plan, None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    with pytest.raises(UserError, match="--jobs 3: this machine has 2 GPUs"):
        command.slots(plan, 3)


def test_a_real_study_from_data_to_results(tmp_path, monkeypatch, capsys):
    text = DIGITS.replace("seeds: [0, 1, 2]", "seeds: [3]").replace("batch-size: 64", "batch-size: 256")
    text = text.replace("resnet18", "mobilenet_v3_small").replace("epochs: 8", "epochs: 1")
    text = text.replace("lr-warmup-epochs: 1\n  lr-warmup-per-step: true", "print-freq: 1").replace(
        "print-freq: 100", ""
    )
    text = text.replace(
        "alpha: [0.0, 0.1]}\n    student: {temperature: [1, 4]}", "alpha: 0.1}\n    student: {temperature: 1}"
    )
    text = text[: text.index("baselines:")]
    (tmp_path / "small.yaml").write_text(text)
    monkeypatch.setattr(
        sys, "argv", ["study.py", "run", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "out")]
    )
    command.main()
    teacher, student = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert (teacher["role"], teacher["alpha"], teacher["seed"]) == ("teacher", 0.1, 3)
    assert (student["role"], student["temperature"], student["alpha"]) == ("student", 1.0, 0.1)
    right = np.load(tmp_path / "out" / student["outcomes"])
    assert 100 * right.mean() == pytest.approx(student["metrics"]["acc1"])
    assert {"epoch", "train_loss", "acc1"} <= student["curve"][0].keys()
    assert {"torch", "torchvision"} <= student["versions"].keys()
    assert (tmp_path / "out" / student["folder"] / "run.json").is_file()
    assert "4 done, 0 running" in (command.show_status(tmp_path / "out") and capsys.readouterr().out)
