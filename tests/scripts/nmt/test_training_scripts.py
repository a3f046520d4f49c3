"""The commands that the training scripts would run, against the recipe of Tan et al. (2019) and what may change it."""

import shlex

import pytest

# The experts' recipe; --stop-min-lr is fairseq's name of the least learning rate.
RECIPE = {
    "--arch": "transformer_iwslt_de_en",
    "--encoder-layers": "6",
    "--decoder-layers": "6",
    "--encoder-embed-dim": "512",
    "--decoder-embed-dim": "512",
    "--encoder-ffn-embed-dim": "1024",
    "--decoder-ffn-embed-dim": "1024",
    "--encoder-attention-heads": "4",
    "--decoder-attention-heads": "4",
    "--optimizer": "adam",
    "--adam-betas": "(0.9, 0.98)",
    "--lr": "5e-4",
    "--lr-scheduler": "inverse_sqrt",
    "--warmup-updates": "4000",
    "--warmup-init-lr": "1e-7",
    "--stop-min-lr": "1e-9",
    "--dropout": "0.3",
    "--label-smoothing": "0.1",
    "--max-tokens": "4096",
    "--clip-norm": "0",
}
# Variable, another value, the options that take it.
OVERRIDES = [
    ("ARCH", "transformer", ["--arch"]),
    ("ENCODER_LAYERS", "3", ["--encoder-layers"]),
    ("DECODER_LAYERS", "2", ["--decoder-layers"]),
    ("EMBED_DIM", "256", ["--encoder-embed-dim", "--decoder-embed-dim"]),
    ("FFN_DIM", "600", ["--encoder-ffn-embed-dim", "--decoder-ffn-embed-dim"]),
    ("HEADS", "8", ["--encoder-attention-heads", "--decoder-attention-heads"]),
    ("DROPOUT", "0.1", ["--dropout"]),
    ("LABEL_SMOOTHING", "0.0", ["--label-smoothing"]),
    ("LR", "1e-3", ["--lr"]),
    ("WARMUP_UPDATES", "10", ["--warmup-updates"]),
    ("WARMUP_INIT_LR", "1e-8", ["--warmup-init-lr"]),
    ("MIN_LR", "1e-8", ["--stop-min-lr"]),
    ("ADAM_BETAS", "(0.9, 0.999)", ["--adam-betas"]),
    ("CLIP_NORM", "1", ["--clip-norm"]),
    ("MAX_TOKENS", "1000", ["--max-tokens"]),
    ("UPDATE_FREQ", "2", ["--update-freq"]),
    ("MAX_EPOCH", "7", ["--max-epoch"]),
    ("SEED", "5", ["--seed"]),
    ("KEEP_CHECKPOINTS", "5", ["--keep-last-epochs"]),
]


def option(command, name):
    return command[command.index(name) + 1]


@pytest.fixture
def commands(run_script, tmp_path):
    """The commands of a script for prepared data of en-de and en-ru."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"pairs": ["en-de", "en-ru"]}')

    def run(name, *arguments, **variables):
        variables = {"DATA": tmp_path / "data", "OUT": tmp_path / "out", "DRY_RUN": 1} | variables
        done = run_script(name, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "out").exists()
        return [shlex.split(line) for line in done.stdout.splitlines()]

    return run


def test_each_expert_follows_the_recipe_by_fairseqs_own_task(commands, tmp_path):
    german, russian = commands("train_experts.sh")
    for command, target in ((german, "de"), (russian, "ru")):
        assert command[:2] == ["fairseq-train", f"{tmp_path}/data/data-bin"]
        assert {name: option(command, name) for name in RECIPE} == RECIPE
        assert "--share-all-embeddings" in command
        assert option(command, "--task") == "translation"
        assert option(command, "--criterion") == "label_smoothed_cross_entropy"
        assert (option(command, "--source-lang"), option(command, "--target-lang")) == ("en", target)
        assert option(command, "--save-dir") == f"{tmp_path}/out/en-{target}"
        assert option(command, "--user-dir").endswith("/fairseq_plugins")  # for its way of saving


def test_a_distilled_student_follows_the_recipe_with_the_papers_weight(commands, tmp_path):
    (command,) = commands("train_student.sh", EXPERTS="experts")
    assert {name: option(command, name) for name in RECIPE} == RECIPE
    assert option(command, "--user-dir").endswith("/fairseq_plugins")
    assert option(command, "--task") == "multilingual_translation_kd"
    assert option(command, "--criterion") == "label_smoothed_kd_cross_entropy"
    assert option(command, "--kd-temperature") == "1"
    assert option(command, "--kd-weight") == "0.9"
    teachers = "en-de=experts/en-de/checkpoint_best.pt,en-ru=experts/en-ru/checkpoint_best.pt"
    assert option(command, "--teachers") == teachers
    assert option(command, "--lang-pairs") == "en-de,en-ru"
    assert option(command, "--langs") == "en,de,ru"
    assert option(command, "--encoder-langtok") == "tgt"
    assert "--decoder-langtok" in command


def test_temperature_weight_teachers_and_pairs_of_a_student_can_be_set(commands):
    teachers = "en-de=a.pt:b.pt"
    (command,) = commands("train_student.sh", TEACHERS=teachers, TEMPERATURE=2, KD_WEIGHT=0.5, PAIRS="en-de")
    assert option(command, "--teachers") == teachers
    assert (option(command, "--kd-temperature"), option(command, "--kd-weight")) == ("2", "0.5")
    assert (option(command, "--lang-pairs"), option(command, "--langs")) == ("en-de", "en,de")


def test_stored_outputs_are_made_first_and_take_the_experts_place(commands, tmp_path):
    german, russian, command = commands("train_student.sh", EXPERTS="my experts", TEACHER_OUTPUTS="outputs", CPU=1)
    for storing, pair in ((german, "en-de"), (russian, "en-ru")):
        assert storing[1].endswith("scripts/nmt/store_teacher_outputs.py")
        assert option(storing, "--data-bin") == f"{tmp_path}/data/data-bin"
        assert option(storing, "--lang-pair") == pair
        assert option(storing, "--teacher") == f"my experts/{pair}/checkpoint_best.pt"
        assert option(storing, "--output") == f"outputs/{pair}"
        assert option(storing, "--top-k") == "8"
        assert "--cpu" in storing
    assert option(command, "--teacher-outputs") == "en-de=outputs/en-de,en-ru=outputs/en-ru"
    assert "--teachers" not in command
    assert option(command, "--criterion") == "label_smoothed_kd_cross_entropy"
    assert {name: option(command, name) for name in RECIPE} == RECIPE

    teachers = {"TEACHERS": "en-ru=a.pt:b.pt", "TEACHER_OUTPUTS": "outputs", "TOP_K": 3, "CPU": 0}
    storing, command = commands("train_student.sh", "--kd-tail", "drop", **teachers)
    assert (option(storing, "--teacher"), option(storing, "--top-k")) == ("a.pt:b.pt", "3")
    assert "--cpu" not in storing
    assert option(command, "--teacher-outputs") == "en-ru=outputs/en-ru"
    assert command[-2:] == ["--kd-tail", "drop"]

    (command,) = commands("train_student.sh", TEACHER_OUTPUTS="outputs")
    assert option(command, "--teacher-outputs") == "en-de=outputs/en-de,en-ru=outputs/en-ru"


def test_the_papers_scripts_are_followed_on_request(commands, refused, tmp_path):
    """Tan et al.: 2 + 2 layers of 256, the 4 largest renormalized, T = 0.6; what is set beside counts."""
    theirs = {"--encoder-layers": "2", "--decoder-layers": "2", "--encoder-embed-dim": "256"}
    for command in commands("train_experts.sh", PAPER=1):
        assert {name: option(command, name) for name in RECIPE} == RECIPE | theirs | {"--decoder-embed-dim": "256"}
    storing, _, command = commands("train_student.sh", PAPER=1, EXPERTS="experts", TEACHER_OUTPUTS="outputs")
    assert (option(storing, "--top-k"), option(storing, "--temperatures")) == ("4", "0.6,1,2,3,64")
    assert {name: option(command, name) for name in theirs} == theirs
    assert (option(command, "--kd-temperature"), option(command, "--kd-tail")) == ("0.6", "drop")
    (command,) = commands("train_student.sh", PAPER=1, EXPERTS="experts", TEMPERATURE=1, KD_LOSS="dkd:beta=2")
    assert (option(command, "--kd-temperature"), option(command, "--kd-loss")) == ("1", "dkd:beta=2")
    assert "--kd-tail" not in command  # nothing is left out where the experts run along
    data = {"DATA": tmp_path / "data", "OUT": tmp_path / "out"}
    assert "PAPER is 'yes'; give 1" in refused("train_experts.sh", PAPER="yes", **data)
    assert "KD_TAIL is about what TEACHER_OUTPUTS left out" in refused("train_student.sh", KD_TAIL="drop", **data)
    assert "TEMPERATURE was given without a teacher; set EXPERTS" in refused(
        "train_student.sh", TEMPERATURE="2", **data
    )
    assert "KD_TAIL is 'none'; give one of uniform, drop, bucket" in refused("train_student.sh", KD_TAIL="none", **data)


def test_a_student_without_experts_follows_the_recipe_by_fairseqs_own_task(commands):
    (command,) = commands("train_student.sh")
    assert option(command, "--task") == "translation_multi_simple_epoch"
    assert option(command, "--criterion") == "label_smoothed_cross_entropy"
    assert option(command, "--user-dir").endswith("/fairseq_plugins")
    assert {name: option(command, name) for name in RECIPE} == RECIPE


@pytest.mark.parametrize("script", ["train_experts.sh", "train_student.sh"])
def test_every_hyper_parameter_can_be_set_from_the_environment(commands, script):
    changed = commands(script, **{variable: value for variable, value, _ in OVERRIDES})
    for command in changed:
        for _, value, options in OVERRIDES:
            assert [option(command, name) for name in options] == [value] * len(options)


def test_further_arguments_go_to_fairseq_as_they_are(commands):
    (command,) = commands("train_student.sh", "--sampling-method", "temperature", "--kd-x", "a b")
    assert command[-4:] == ["--sampling-method", "temperature", "--kd-x", "a b"]


def test_the_cpu_can_be_asked_for(commands):
    assert all("--cpu" in command for command in commands("train_experts.sh", CPU=1))
    assert not any("--cpu" in command for command in commands("train_experts.sh", CPU=0))


@pytest.mark.parametrize("script", ["train_experts.sh", "train_student.sh"])
def test_help_names_every_variable(run_script, script):
    done = run_script(script, "--help")
    assert done.returncode == 0
    for variable, _, _ in OVERRIDES:
        assert variable in done.stdout
    for variable in ("DATA", "OUT", "PAIRS", "DRY_RUN=1", "CPU=1"):
        assert variable in done.stdout
    assert "source" not in done.stdout.splitlines()[-1]  # the text ends where the program begins


@pytest.mark.parametrize("script", ["train_experts.sh", "train_student.sh"])
def test_missing_data_and_output_are_one_line(refused, commands, run_script, script, tmp_path):
    line = refused(script, DATA=tmp_path / "none", OUT=tmp_path)
    assert f"DATA='{tmp_path}/none' is no prepared folder" in line
    assert "OUT is not set" in refused(script, DATA=tmp_path / "data", OUT="")


def test_a_misspelled_pair_and_two_sources_of_teachers_are_one_line(refused, commands, tmp_path):
    data = {"DATA": tmp_path / "data", "OUT": tmp_path / "out"}
    assert "PAIRS: pair en-fr is not in" in refused("train_experts.sh", PAIRS="en-de,en-fr", **data)
    assert "both EXPERTS and TEACHERS are set" in refused("train_student.sh", EXPERTS="a", TEACHERS="b", **data)
