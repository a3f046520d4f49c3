"""The recipes pass the paper's hyper-parameters, share its global batch, and repeat nothing that is finished."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.lib.alpha_t_table import PAPER, cells_by_student, format_table, spreads_by_student
from scripts.lib.environment import check_environment, distance

ROOT = Path(__file__).resolve().parents[2]


# The paper's values, written down once more from its table; flags without a value are True.
SGD = {"--require-gpu": True, "--opt": "sgd", "--momentum": "0.9", "--lr-scheduler": "steplr", "--lr-gamma": "0.1"}
IMAGENET_TEACHER = {
    **SGD,
    "--model": "resnet50",
    "--preset": "imagenet",
    "--loader": "torchvision",
    "--epochs": "90",
    "--lr": "0.1",
    "--weight-decay": "1e-4",
    "--lr-step-size": "30",
}
IMAGENET_STUDENT = {
    **SGD,
    "--preset": "imagenet",
    "--loader": "dali",
    "--dali-device": "cpu",
    "--epochs": "200",
    "--lr": "0.1",
    "--weight-decay": "1e-4",
    "--lr-step-size": "80",
    "--lr-warmup-epochs": "5",
    "--lr-warmup-per-step": True,
    "--teacher": "resnet50",
    "--kd-weight": "1.0",
    "--amp": True,
    "--amp-dtype": "fp16",
}
CUB_TEACHER = {
    **SGD,
    "--dataset": "cub200",
    "--model": "resnet50",
    "--preset": "cub",
    "--loader": "torchvision",
    "--epochs": "90",
    "--lr": "0.01",
    "--weight-decay": "1e-4",
    "--lr-step-size": "30",
    "--amp": True,
    "--amp-dtype": "fp16",
}
CUB_STUDENT = {
    **SGD,
    "--dataset": "cub200",
    "--preset": "cub",
    "--loader": "torchvision",
    "--epochs": "200",
    "--lr": "0.01",
    "--weight-decay": "1e-3",
    "--lr-step-size": "80",
    "--teacher": "resnet50",
    "--kd-weight": "1.0",
    "--amp": True,
    "--amp-dtype": "fp16",
}
ALPHAS, TEMPERATURES = ["0.0", "0.1"], ["1", "2", "3", "64"]
FIRST_WEIGHTS = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "convnext_tiny": "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    "mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V1",
}
PLACE = {"--data-path", "--device", "--workers", "--output-dir", "--resume", "--keep-checkpoints", "--seed"}


def recipe(script, *arguments, **settings):
    inherited = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *arguments],
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def commands(script, *arguments, **settings):
    """The dry run's commands: for each the launcher's flags and train.py's flags as dicts."""
    done = recipe(script, *arguments, DRY_RUN="1", **settings)
    assert done.returncode == 0, done.stderr
    parsed = []
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[1] == "scripts/lib/torchrun.py"
        split = words.index("vision_reference/train.py")
        parsed.append((flags(words[2:split]), flags(words[split + 1 :])))
    return parsed


def flags(words):
    found, name = {}, None
    for word in words:
        if word.startswith("--"):
            name = word
            found[name] = True
        elif name == "--lr-milestones" and found[name] is not True:
            found[name] += " " + word
        else:
            assert found[name] is True, f"two values for {name}"
            found[name] = word
    return found


def without(found, *names):
    return {name: value for name, value in found.items() if name not in PLACE | set(names)}


def test_imagenet_teachers_are_trained_as_the_paper_does():
    runs = [arguments for _, arguments in commands("imagenet/train_teacher.sh")]
    assert [run["--label-smoothing"] for run in runs] == ALPHAS
    for run in runs:
        assert without(run, "--label-smoothing", "--batch-size") == IMAGENET_TEACHER


@pytest.mark.parametrize(
    ("script", "students"),
    [
        ("imagenet/train_student.sh", ["resnet18", "resnet50"]),
        ("compact/imagenet_efficientnet_b0.sh", ["efficientnet_b0"]),
    ],
)
def test_imagenet_students_are_distilled_as_the_paper_does(script, students):
    runs = [arguments for _, arguments in commands(script)]
    varied = [(run["--model"], run["--teacher-weights"], run["--kd-temperature"]) for run in runs]
    assert varied == [
        (student, f"results/imagenet/teacher_resnet50_alpha{alpha}/best.pth", temperature)
        for student in students
        for alpha in ALPHAS
        for temperature in TEMPERATURES
    ]
    for run in runs:
        rest = without(run, "--model", "--teacher-weights", "--kd-temperature", "--batch-size")
        assert rest == IMAGENET_STUDENT
    assert len({run["--output-dir"] for run in runs}) == len(runs)


def test_cub_teachers_start_from_the_imagenet_teacher_of_the_same_alpha():
    runs = [arguments for _, arguments in commands("cub/train_teacher.sh")]
    assert [(run["--label-smoothing"], run["--init-weights"]) for run in runs] == [
        (alpha, f"results/imagenet/teacher_resnet50_alpha{alpha}/best.pth") for alpha in ALPHAS
    ]
    for run in runs:
        assert without(run, "--label-smoothing", "--init-weights", "--batch-size") == CUB_TEACHER


@pytest.mark.parametrize(
    ("script", "students"),
    [
        ("cub/train_student.sh", ["resnet18", "resnet50", "convnext_tiny"]),
        ("compact/cub_mobilenet_v2.sh", ["mobilenet_v2"]),
    ],
)
def test_cub_students_start_from_torchvisions_weights_and_are_distilled_as_the_paper_does(script, students):
    runs = [arguments for _, arguments in commands(script)]
    varied = [
        (run["--model"], run["--init-weights"], run["--teacher-weights"], run["--kd-temperature"]) for run in runs
    ]
    assert varied == [
        (student, FIRST_WEIGHTS[student], f"results/cub/teacher_resnet50_alpha{alpha}/best.pth", temperature)
        for student in students
        for alpha in ALPHAS
        for temperature in TEMPERATURES
    ]
    for run in runs:
        rest = without(run, "--model", "--init-weights", "--teacher-weights", "--kd-temperature", "--batch-size")
        assert rest == CUB_STUDENT


@pytest.mark.parametrize(
    ("script", "global_batch"),
    [
        ("imagenet/train_teacher.sh", 2048),
        ("imagenet/train_student.sh", 2048),
        ("cub/train_teacher.sh", 256),
        ("cub/train_student.sh", 256),
    ],
)
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (4, 1), (8, 1), (4, 2)])
def test_global_batch_rate_and_warm_up_are_the_papers_on_any_number_of_gpus(script, global_batch, gpus, nodes):
    expected_rate = "0.1" if "imagenet" in script else "0.01"
    for launcher, run in commands(script, GPUS=str(gpus), NODES=str(nodes)):
        assert int(launcher["--nproc_per_node"]) == gpus
        assert int(run["--batch-size"]) * gpus * nodes * int(run.get("--accumulate", 1)) == global_batch
        assert int(run["--batch-size"]) == min(256, global_batch // (gpus * nodes))  # at a time as in the paper
        assert run["--lr"] == expected_rate
        assert "--scale-lr" not in run
        assert run.get("--lr-warmup-epochs") == ("5" if script == "imagenet/train_student.sh" else None)


def test_several_machines_meet_at_the_first_one():
    (launcher, _), *_ = commands("imagenet/train_teacher.sh", NODES="2", NODE_RANK="1", GPUS="4", MASTER="first:29400")
    assert launcher["--nnodes"] == "2"
    assert launcher["--node_rank"] == "1"
    assert (launcher["--rdzv_backend"], launcher["--rdzv_endpoint"]) == ("c10d", "first:29400")
    assert commands("imagenet/train_teacher.sh")[0][0] == {"--standalone": True, "--nproc_per_node": "8"}


def test_lists_paths_seed_and_further_arguments_can_be_set_from_outside():
    runs = commands(
        "cub/train_student.sh",
        "--print-freq",
        "5",
        DATA="/my birds",
        OUTPUT="out",
        STUDENTS="shufflenet_v2_x0_5",
        INIT_WEIGHTS="none.pth",
        TEACHER_WEIGHTS="authors/r50_{alpha}.pth.tar",
        ALPHAS="0.1",
        TEMPERATURES="1.5 4",
        SEED="7",
        WORKERS="3",
        DEVICE="cpu",
    )
    assert [run["--kd-temperature"] for _, run in runs] == ["1.5", "4"]
    assert runs[0][1]["--output-dir"] == "out/student_shufflenet_v2_x0_5_alpha0.1_T1.5"
    for _, run in runs:
        assert run["--data-path"] == "/my birds"
        assert run["--teacher-weights"] == "authors/r50_0.1.pth.tar"
        assert (run["--seed"], run["--workers"], run["--device"], run["--print-freq"]) == ("7", "3", "cpu", "5")


def test_cifar100_is_trained_as_the_literature_does():
    runs = {Path(run["--output-dir"]).name: run for _, run in commands("cifar100/run.sh") if "--test-only" not in run}
    students = [f"student_resnet20_alpha{alpha}_T{t}" for alpha in ALPHAS for t in (1, 4)]
    assert sorted(runs) == sorted([*students, "labels_resnet20", *(f"teacher_resnet56_alpha{a}" for a in ALPHAS)])
    optimization = {
        "--preset": "cifar100",
        "--opt": "sgd",
        "--lr": "0.05",
        "--momentum": "0.9",
        "--weight-decay": "5e-4",
        "--lr-scheduler": "multisteplr",
        "--lr-milestones": "150 180 210",
        "--lr-gamma": "0.1",
        "--epochs": "240",
    }
    for run in runs.values():
        assert optimization.items() <= run.items()
        assert run["--batch-size"] == "64"
        assert "--amp" not in run
    taught = runs["student_resnet20_alpha0.1_T4"]
    assert (taught["--teacher"], taught["--kd-temperature"], taught["--kd-weight"]) == ("resnet56", "4", "0.9")
    assert taught["--teacher-weights"] == "results/cifar100/teacher_resnet56_alpha0.1/checkpoint.pth"


def test_precision_can_be_chosen_and_another_word_is_refused():
    for script in ("imagenet/train_student.sh", "cub/train_teacher.sh", "cub/train_student.sh", "cifar10/run.sh"):
        settings = {"STUDENTS": "resnet18"} if "student" in script else {}
        done = recipe(script, DRY_RUN="1", AMP_DTYPE="bf16", **settings)
        assert "--amp --amp-dtype bf16" in done.stdout
        done = recipe(script, DRY_RUN="1", AMP_DTYPE="none", **settings)
        assert "vision_reference/train.py" in done.stdout
        assert "--amp" not in done.stdout
    done = recipe("cub/train_teacher.sh", AMP_DTYPE="fp8", DEVICE="cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "recipe: AMP_DTYPE is 'fp8'; give fp16, bf16, or none for full precision\n"


def test_a_batch_that_differs_from_the_papers_is_said_and_one_that_cannot_be_shared_is_refused():
    done = recipe("imagenet/train_teacher.sh", DRY_RUN="1", GPUS="2", BATCH="60")
    assert "the global batch is 120, the paper's is 2048" in done.stderr
    done = recipe("imagenet/train_teacher.sh", DRY_RUN="1", GPUS="2", BATCH="64")
    assert "each step adds up 16 batches of 64 (--accumulate 16), so that the global batch stays 2048" in done.stderr
    assert "--batch-size 64 --accumulate 16" in done.stdout
    assert "--require-gpu" in done.stdout
    done = recipe("imagenet/train_teacher.sh", DRY_RUN="1", BATCH="x")
    assert (done.returncode, done.stdout) == (2, "")
    done = recipe("imagenet/train_teacher.sh", DRY_RUN="1", GPUS="3")
    assert done.returncode == 2
    assert "3 processes cannot share the global batch of 2048" in done.stderr


def test_finished_runs_are_skipped_and_begun_ones_would_be_resumed(tmp_path):
    settings = {"OUTPUT": str(tmp_path), "DEVICE": "cpu", "GPUS": "1"}
    dry = recipe("imagenet/train_teacher.sh", DRY_RUN="1", **settings)
    for line in dry.stdout.splitlines():
        words = shlex.split(line)
        folder = Path(words[words.index("--output-dir") + 1])
        folder.mkdir()
        record = {"command": words, "finished": True, "seconds": 1.0, "cpu_seconds": 1.0}
        (folder / "run.json").write_text(json.dumps(record))
    done = recipe("imagenet/train_teacher.sh", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before, skipped") == 2
    # Other processes may share the same global batch; another learning rate is another run.
    assert recipe("imagenet/train_teacher.sh", **settings | {"GPUS": "2"}).returncode == 0
    other = recipe("imagenet/train_teacher.sh", "--lr", "0.2", **settings)
    assert other.returncode == 2
    assert "was made with other settings (then: --lr 0.1; now: --lr 0.2)" in other.stderr
    assert all(run["--resume"] == "auto" for _, run in commands("imagenet/train_teacher.sh"))


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (
            "imagenet/train_student.sh",
            {"TEMPRATURE": "3"},
            "TEMPRATURE is set, which is no setting here; did you mean TEMPERATURES?",
        ),
        (
            "imagenet/train_student.sh",
            {"STUDENT": ""},
            "STUDENT is set, which is no setting here; did you mean STUDENTS?",
        ),
        ("compact/cub_mobilenet_v2.sh", {"INIT_WEIGHT": "x"}, "did you mean INIT_WEIGHTS?"),
        ("cifar10/run.sh", {"TEACHER_EPOCH": "3"}, "did you mean TEACHER_EPOCHS?"),
        ("nmt/train_experts.sh", {"SEEDS": "3"}, "SEEDS is set, which is no setting here; did you mean SEED?"),
        ("nmt/train_student.sh", {"TEMPRATURE": "3"}, "did you mean TEMPERATURE?"),
        ("nmt/train_experts.sh", {"TEMPERATUR": "2"}, "did you mean TEMPERATURE (of another script)?"),
        ("nmt/train_experts.sh", {"TEACHER_OUTPUT": "x"}, "did you mean TEACHER_OUTPUTS (of another script)?"),
        ("imagenet/train_teacher.sh", {"STUDENT": "x"}, "did you mean STUDENTS (of another script)?"),
        ("imagenet/evaluate.sh", {"DALI_DEVIC": "gpu"}, "did you mean DALI_DEVICE (of another script)?"),
        ("imagenet/train_teacher.sh", {"GPUS": "0"}, "GPUS is '0'; give a number from 1"),
        ("imagenet/train_teacher.sh", {"GPUS": "8"}, "GPUS is 8, but this machine has 0; set DEVICE=cpu"),
        ("imagenet/train_teacher.sh", {"ALPHAS": " "}, "nothing to run; give values such as '0.0 0.1'"),
        ("imagenet/train_student.sh", {"TEMPERATURES": " "}, "nothing to run"),
        ("imagenet/train_student.sh", {"DEVICE": "tpu"}, "DEVICE is 'tpu'; give cuda or cpu"),
    ],
)
def test_misspelt_and_impossible_settings_are_refused_in_one_line(script, settings, message):
    done = recipe(script, CUDA_VISIBLE_DEVICES="", **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_recipe_says_what_it_runs_with():
    done = recipe("cifar10/run.sh", DRY_RUN="1", TEMPERATURES="2", STUDENT_EPOCHS="5")
    assert "recipe: run.sh DATA=data/cifar10 " in done.stderr
    assert "TEMPERATURES=2 " in done.stderr
    assert "STUDENT_EPOCHS=5" in done.stderr


def test_a_setting_of_another_script_alone_gets_a_note():
    done = recipe("imagenet/train_teacher.sh", DRY_RUN="1", STUDENTS="resnet18", LOADER="")
    assert done.returncode == 0
    assert "note: STUDENTS is a setting of another script and does nothing here\n" in done.stderr
    assert "LOADER" not in done.stderr


def test_other_variables_of_the_environment_are_nobodys_business():
    environment = {"PATH": "", "HOME": "", "LANG": "", "PWD": "", "USER": "", "TERM": "", "SLURM_JOB_ID": "", "lr": ""}
    own, others = ["DATA", "HEADS", "SEED", "LR", "OUT"], ["NODES", "GPUS", "TEACHERS"]
    check_environment(own + others, environment=environment)
    check_environment(own, others, environment)
    assert [distance("kitten", "sitting"), distance("", "abc"), distance("SEED", "SEED")] == [3, 3, 0]


@pytest.mark.parametrize(
    "script", ["test.sh", "demo.sh", "setup.sh", "lock.sh", "nmt/train_experts.sh", "cifar10/run.sh"]
)
def test_help_runs_and_installs_nothing(script, tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), "--help"], capture_output=True, text=True, timeout=20, cwd=tmp_path
    )
    assert done.returncode == 0
    assert len(done.stdout) > 80
    assert done.stderr == ""


@pytest.mark.parametrize("script", ["imagenet/train_teacher.sh", "nmt/train_experts.sh"])
def test_a_half_made_environment_is_named_with_what_to_do(tmp_path, script):
    for name in (script, "nmt/lib/common.sh", "lib/recipe.sh", "lib/venv.sh"):
        (tmp_path / "scripts" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    done = subprocess.run(["bash", str(tmp_path / "scripts" / script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("/.venv is half made (set-up was interrupted or failed); run: bash scripts/setup.sh\n")
    assert done.stderr.count("\n") == 1


def test_a_student_without_its_teacher_stops_with_the_way_to_get_it(tmp_path):
    done = recipe("imagenet/train_student.sh", OUTPUT=str(tmp_path), DEVICE="cpu")
    assert done.returncode == 1
    assert "teacher_resnet50_alpha0.0/best.pth; train it with scripts/imagenet/train_teacher.sh" in done.stderr
    done = recipe("cub/train_student.sh", OUTPUT=str(tmp_path), STUDENTS="resnet34", DRY_RUN="1")
    assert done.returncode == 2
    assert "set INIT_WEIGHTS to what resnet34 starts from" in done.stderr


RECIPES = sorted(
    f"{folder}/{path.name}"
    for folder in ("imagenet", "cub", "compact")
    for path in (ROOT / "scripts" / folder).glob("*.sh")
)


@pytest.mark.parametrize("script", RECIPES)
def test_every_recipe_tells_what_it_does_and_what_can_be_set(script):
    done = recipe(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "TEMPERATURES=1 2 3 64" in done.stdout or "teacher" in script
    assert done.stdout.startswith(("ImageNet-1K", "CUB-200-2011", "The compact", "Exact accuracy"))


def test_evaluation_covers_every_teacher_and_student_and_leaves_out_what_is_not_there(tmp_path):
    runs = [run for _, run in commands("imagenet/evaluate.sh", STUDENTS="resnet18")]
    assert len(runs) == 2 * (1 + 4)
    assert all(run["--test-only"] and run["--preset"] == "imagenet" for run in runs)
    assert runs[4]["--resume"] == "results/imagenet/student_resnet18_alpha0.0_T64/best.pth"
    done = recipe("imagenet/evaluate.sh", OUTPUT=str(tmp_path), DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr
    assert "no student has been evaluated" in done.stdout


def test_the_table_shows_measured_numbers_with_the_papers_beside_them():
    records = [
        {"role": "teacher", "model": "resnet50", "alpha": 0.1, "temperature": 1, "acc1": 75.0, "acc5": 92.0},
        {"role": "student", "model": "resnet18", "alpha": 0.1, "temperature": 1, "acc1": 70.0, "acc5": 90.0},
        {"role": "student", "model": "resnet18", "alpha": 0.1, "temperature": 1, "acc1": 71.0, "acc5": 91.0},
        {"role": "student", "model": "resnet18", "alpha": 0.0, "temperature": 64.0, "acc1": 60.0, "acc5": 80.0},
    ]
    cells = cells_by_student(records)["resnet18"]
    assert cells["T = 1", 0.1] == (70.5, 90.5)  # two seeds: their mean
    assert format_table(cells, digits=1).splitlines() == [
        "| | alpha = 0 | alpha = 0.1 |",
        "|---|---|---|",
        "| teacher | - | 75.0 / 92.0 |",
        "| T = 1 | - | 70.5 / 90.5 |",
        "| T = 64 | 60.0 / 80.0 | - |",
    ]
    spreads = spreads_by_student(records, digits=1)["resnet18"]
    assert spreads == {("T = 1", 0.1): "2 seeds, 70.0 to 71.0"}
    assert "| T = 1 | - | 70.5 / 90.5 (2 seeds, 70.0 to 71.0) |" in format_table(cells, digits=1, spreads=spreads)
    beside = format_table(cells, PAPER["imagenet"]["resnet18"])
    assert "| T = 64 | 60.000 / 80.000 (paper: 66.194 / 88.706) | - (paper: 64.362 / 87.698) |" in beside
    assert "| T = 2 | - (paper: 71.360 / 90.362) | - (paper: 68.860 / 89.352) |" in beside


def test_the_papers_claim_can_be_read_off_its_recorded_numbers():
    for student, table in PAPER["imagenet"].items():
        assert len(table) == 10
        assert all(50 < top1 < top5 < 100 for top1, top5 in table.values()), student
        assert table["T = 1", 0.1] > table["T = 1", 0.0]  # label smoothing helps at T = 1
        assert table["T = 1", 0.1] > table["T = 2", 0.1] > table["T = 3", 0.1] > table["T = 64", 0.1]
