"""fairseq's own commands, run as a user runs them, from training a student to scoring its translations."""

import json
import re
import shutil

import pytest
import torch
from fairseq import checkpoint_utils

from fairseq_plugins.tasks.multilingual_translation_kd import MultilingualTranslationKDTask


@pytest.fixture(scope="module")
def plugin(request):
    return request.config.rootpath / "fairseq_plugins"


@pytest.fixture(scope="module")
def student(toy, command_line, plugin, tmp_path_factory):
    """A student trained by fairseq-train; its experts' files are deleted afterwards."""
    folder = tmp_path_factory.mktemp("student")
    experts = [shutil.copy(path, folder / name) for name, path in (("de.pt", toy.de), ("ru.pt", toy.ru))]
    teachers = ["--teachers", "en-de={},en-ru={}".format(*experts), "--save-dir", folder, "--max-update", 10]
    teachers += ["--tensorboard-logdir", folder / "tensorboard"]
    run = command_line(
        "fairseq-train", *toy.multilingual, "--user-dir", plugin, *toy.task, *teachers, *toy.tiny, *toy.training
    )
    assert run.returncode == 0, run.stdout
    for expert in experts:
        expert.unlink()
    return folder / "checkpoint_last.pt", run.stdout


def generation(toy, student, *task):
    languages = [*toy.multilingual[1:], "--langs", "de,en,fr,ru", "-s", "en", "-t", "de"]
    return [toy.data, *task, *languages, "--path", student[0], "--cpu", "--beam", 2, "--max-len-b", 10]


def hypotheses(output):
    return re.findall(r"^H-.*$", output, flags=re.MULTILINE)


def test_training_logs_what_the_student_learns_from_its_teachers(student):
    lines = [json.loads(line) for line in re.findall(r"train_inner \| (\{.*\})", student[1])]
    assert len(lines) == 10
    assert {"loss", "nll_loss", "kd_loss", "kd_agreement", "ppl"} <= lines[-1].keys()
    assert float(lines[-1]["kd_loss"]) < float(lines[0]["kd_loss"])


def test_fairseqs_own_tensorboard_shows_the_plugins_figures(student):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(student[0].parent / "tensorboard" / "train_inner"))
    events.Reload()
    lines = [json.loads(line) for line in re.findall(r"train_inner \| (\{.*\})", student[1])]
    for name in ("loss", "kd_loss", "kd_agreement"):
        shown = [scalar.value for scalar in events.Scalars(name)]
        assert shown == pytest.approx([float(line[name]) for line in lines], abs=2e-3)


def test_checkpoint_holds_nothing_of_the_teachers(toy, student):
    state = torch.load(student[0], weights_only=False)
    stock = torch.load(toy.de, weights_only=False)
    assert state["model"].keys() == stock["model"].keys()
    assert len(state["last_optimizer_state"]["state"]) == len(stock["last_optimizer_state"]["state"])
    assert state["criterion"] is None


def test_student_opens_with_its_own_task_after_its_teachers_are_deleted(student):
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(student[0])])
    assert isinstance(task, MultilingualTranslationKDTask)
    assert task.teachers == {}
    assert sum(weight.numel() for weight in model.parameters()) > 0


def test_student_translates_in_stock_tasks_with_nothing_but_the_workaround_and_the_same_with_the_plugin(
    toy, student, command_line, generate, plugin, capsys, tmp_path
):
    stock = ["--task", "translation_multi_simple_epoch", "--user-dir", plugin / "inference_only"]
    bare = command_line("fairseq-generate", *generation(toy, student, *stock))
    assert bare.returncode == 0, bare.stdout
    assert len(hypotheses(bare.stdout)) == 6
    # this process has imported the plugin
    generate(generation(toy, student, "--task", "multilingual_translation_kd"))
    assert hypotheses(capsys.readouterr().out) == hypotheses(bare.stdout)

    typed = command_line("fairseq-interactive", *generation(toy, student, *stock), input="e1 e2 e3\n")
    assert typed.returncode == 0, typed.stdout
    assert len(hypotheses(typed.stdout)) == 1

    for kind, name in (("D", "sys"), ("T", "ref")):
        column = 2 if kind == "D" else 1
        lines = re.findall(rf"^{kind}-.*$", bare.stdout, flags=re.MULTILINE)
        (tmp_path / name).write_text("".join(line.split("\t")[column] + "\n" for line in lines))
    score = command_line("fairseq-score", "--sys", tmp_path / "sys", "--ref", tmp_path / "ref")
    assert "BLEU4 =" in score.stdout


def test_without_the_workaround_stock_fairseq_cannot_translate_on_this_torch(toy, student, command_line):
    run = command_line("fairseq-generate", *generation(toy, student, "--task", "translation_multi_simple_epoch"))
    assert run.returncode != 0
    assert "Mask Type should be defined" in run.stdout


def test_two_workers_train_as_one_does_on_the_same_global_batches(toy, train, command_line, plugin, tmp_path):
    selective = ["--kd-strategy", "adaptive", "--kd-threshold", 8, "--eval-bleu-args", '{"beam": 1, "max_len_b": 8}']
    argv = [*toy.multilingual, *toy.task, "--teachers", f"en-de={toy.de},en-ru={toy.ru}", *selective, *toy.tiny]
    argv += [*toy.training, "--max-update", 5, "--save-interval-updates", 3, "--clip-norm", 1]
    one = train([*argv, "--update-freq", 2, "--save-dir", tmp_path / "one"])
    workers = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--user-dir", plugin]
    launch = ["--standalone", "--nproc_per_node", 2, "-m", "fairseq_cli.train"]
    two = command_line("torchrun", *launch, *argv, *workers, "--save-dir", tmp_path / "two")
    assert two.returncode == 0, two.stdout

    for tag in ("train_inner", "valid"):
        lines = [json.loads(line) for line in re.findall(rf" {tag} \| (\{{.*\}})", two.stdout)]
        assert len(lines) == len(one[tag]) > 0
        for line, expected in zip(lines, one[tag], strict=True):
            assert line.keys() == expected.keys()
            for name in expected:
                # rounded to three digits; BLEU and the weights that follow from it are sums of counts, so exact
                if not name.endswith(("wps", "ups", "wall", "wpb", "bsz")):
                    assert float(line[name]) == pytest.approx(float(expected[name]), rel=1e-4, abs=2e-3), name
    states = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)["model"] for name in ("one", "two")
    ]
    for name, weight in states[0].items():
        if not name.endswith("_float_tensor"):
            torch.testing.assert_close(states[1][name], weight, rtol=1e-3, atol=1e-5)


HYDRA = """\
# @package _group_
common: {{user_dir: {plugin}, cpu: true, log_format: json, log_interval: 1, seed: 5}}
task:
  _name: multilingual_translation_kd
  data: {data}
  lang_pairs: en-de,en-ru,en-fr
  encoder_langtok: tgt
  decoder_langtok: true
  sampling_method: temperature
  sampling_temperature: 2.0
  kd_strategy: threshold
  eval_bleu_args: '{{"beam": 1, "max_len_b": 8}}'
  teachers: en-de={de},en-ru={ru}
criterion: {{_name: label_smoothed_kd_cross_entropy, label_smoothing: 0.1, kd_temperature: 2, kd_weight: 0.7}}
dataset: {{max_tokens: 120, num_workers: 0}}
optimization: {{lr: [0.005], max_update: 4}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
checkpoint: {{no_save: true}}
model:
  _name: transformer
  share_all_embeddings: true
  dropout: 0
  base_layers: 0
  encoder_layers: 1
  encoder_embed_dim: 16
  encoder_ffn_embed_dim: 16
  encoder_attention_heads: 2
  decoder_layers: 1
  decoder_embed_dim: 16
  decoder_input_dim: 16
  decoder_output_dim: 16
  decoder_ffn_embed_dim: 16
  decoder_attention_heads: 2
"""


def test_hydra_and_argparse_give_the_same_run(toy, train, command_line, plugin, tmp_path):
    (tmp_path / "student.yaml").write_text(HYDRA.format(plugin=plugin, data=toy.data, de=toy.de, ru=toy.ru))
    run = command_line("fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "student", cwd=tmp_path)
    assert run.returncode == 0, run.stdout
    logged = [json.loads(line) for line in re.findall(r"\[train_inner\]\[INFO\] - (\{.*\})", run.stdout)]

    argv = [*toy.multilingual, *toy.task, *toy.tiny, *toy.training, "--teachers", f"en-de={toy.de},en-ru={toy.ru}"]
    heads = ["--decoder-embed-dim", 16, "--encoder-attention-heads", 2, "--decoder-attention-heads", 2]
    kd = [
        "--kd-temperature",
        2,
        "--kd-weight",
        0.7,
        "--kd-strategy",
        "threshold",
        "--eval-bleu-args",
        '{"beam": 1, "max_len_b": 8}',
    ]
    sampling = ["--sampling-method", "temperature", "--sampling-temperature", 2]
    expected = train(
        [*argv, "--arch", "transformer", *heads, *kd, *sampling, "--max-update", 4, "--no-save", "--save-dir", tmp_path]
    )

    def numbers(line):
        return {key: value for key, value in line.items() if not key.endswith(("wps", "ups", "wall"))}

    assert [numbers(line) for line in logged] == [numbers(line) for line in expected["train_inner"]]


def test_hostile_teacher_ends_training_with_one_line_and_is_not_executed(toy, command_line, plugin, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"model": {}, "cfg": Hostile()}, tmp_path / "evil.pt")
    teacher = ["--task", "translation_kd", "--teacher", tmp_path / "evil.pt"]
    argv = [toy.data, "-s", "en", "-t", "de", *teacher, "--criterion", "label_smoothed_kd_cross_entropy"]
    run = command_line("fairseq-train", *argv, "--user-dir", plugin, *toy.tiny, *toy.training, "--save-dir", tmp_path)
    assert run.returncode == 2
    assert "Traceback" not in run.stdout
    assert run.stdout.splitlines()[-1].startswith(f"fairseq-train: error: checkpoint {tmp_path / 'evil.pt'} holds")
    assert not (tmp_path / "executed").exists()


def test_bilingual_student_resumes_and_translates_like_any_fairseq_model(toy, train, generate, tmp_path):
    argv = [toy.data, "-s", "en", "-t", "de", "--task", "translation_kd", "--teacher", f"{toy.de}:{toy.de2}"]
    argv += ["--criterion", "label_smoothed_kd_cross_entropy", *toy.tiny, *toy.training, "--dropout", 0.2]
    straight = train([*argv, "--max-update", 6, "--save-interval-updates", 3, "--save-dir", tmp_path / "straight"])
    halfway = ["--restore-file", tmp_path / "straight" / "checkpoint_1_3.pt", "--save-dir", tmp_path / "resumed"]
    resumed = train([*argv, "--max-update", 6, *halfway])
    for line, expected in zip(resumed["train_inner"], straight["train_inner"][3:], strict=True):
        assert [line[name] for name in ("loss", "kd_loss", "gnorm")] == [
            expected[name] for name in ("loss", "kd_loss", "gnorm")
        ]
    path = ["--path", tmp_path / "resumed" / "checkpoint_last.pt", "--gen-subset", "test", "--beam", 2]
    assert generate([toy.data, "-s", "en", "-t", "de", "--task", "translation", *path]) >= 0
