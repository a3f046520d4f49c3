"""Checkpoints of people one need not trust: fairseq with our user-dir refuses each in one line and runs none of them.

Every kind goes through train (--restore-file), generate, interactive and validate. A canary file shows execution.
"""

import copy
import importlib.util
import io
import os
import pickle
import sys
import tarfile
import time
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq", reason="the translation part needs fairseq 0.12.2 and Python 3.10")

import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import generate, interactive, train, validate

from fairseq_plugins.errors import UserError
from fairseq_plugins.inference_only import literals, reading

_SPEC = importlib.util.spec_from_file_location(
    "toy_translation", Path(__file__).parents[1] / "fairseq_plugins" / "conftest.py"
)
toy_translation = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy_translation)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A hardly trained model and its data."""
    folder = tmp_path_factory.mktemp("model")
    words = [f"{prefix}{w}" for prefix in "ed" for w in range(8)]
    dictionary = folder / "dict.txt"
    dictionary.write_text("".join(f"{word} 1\n" for word in words))
    toy_translation.write_corpus(folder, "de", {"train": 8, "valid": 2, "test": 2})
    prefixes = [arg for split in ("train", "valid", "test") for arg in (f"--{split}pref", folder / f"{split}.en-de")]
    pair = ["-s", "en", "-t", "de", "--srcdict", dictionary, "--tgtdict", dictionary, "--destdir", folder / "data"]
    toy_translation.run_preprocess(*pair, *prefixes, "--workers", 1)
    argv = [folder / "data", "-s", "en", "-t", "de", "--task", "translation", *toy_translation.TINY]
    argv += [*toy_translation.TRAINING, "--criterion", "label_smoothed_cross_entropy", "--no-progress-bar"]
    toy_translation.train_in_process([*argv, "--max-update", 1, "--no-epoch-checkpoints", "--save-dir", folder])
    (folder / "input").write_text("e1 e2\n")
    return SimpleNamespace(
        path=folder / "checkpoint_last.pt",
        commands=commands(folder / "data", folder / "input", argv),
        state=torch.load(folder / "checkpoint_last.pt", weights_only=False),
    )


def run(command, model, path, folder):
    """One of fairseq's commands with the checkpoint at `path`, in this process."""
    main, cfg, args = model.commands[command]
    cfg = copy.deepcopy(cfg)
    if command == "train":
        cfg.checkpoint.restore_file, cfg.checkpoint.save_dir = str(path), str(folder / "saved")
    else:
        cfg.common_eval.path = str(path)
    main(cfg, args) if command == "validate" else main(cfg)


def commands(data, text, training):
    """By name: what the command calls, its options, and these as argparse gives them."""
    search = [str(data), "--path", "x", "--cpu", "--beam", "1", "--max-len-b", "5"]
    pair = ["-s", "en", "-t", "de", "--task", "translation"]
    validation = [str(data), "--path", "x", "--cpu", "--task", "translation", "--max-tokens", "99"]
    parsed = {
        "train": (train.main, toy_translation.parse([*training, "--max-update", 1, "--no-save"])),
        "generate": (
            generate.main,
            options.parse_args_and_arch(options.get_generation_parser(), [*search, *pair]),
        ),
        "interactive": (
            interactive.main,
            options.parse_args_and_arch(
                options.get_interactive_generation_parser(), [*search, *pair, "--input", str(text)]
            ),
        ),
        "validate": (validate.main, options.parse_args_and_arch(options.get_validation_parser(), validation)),
    }
    # validation takes what is not given from the checkpoint
    given = options.parse_args_and_arch(options.get_validation_parser(), validation, suppress_defaults=True)
    del given.task
    return {name: (main, convert_namespace_to_omegaconf(args), given) for name, (main, args) in parsed.items()}


COMMANDS = ("generate", "interactive", "validate", "train")


def refusal(command, model, path, folder):
    with pytest.raises(UserError) as refused:
        run(command, model, path, folder)
    assert refused.value.code == 2
    (line,) = str(refused.value).splitlines()
    return line


class Call:
    """Pickled, it is a call of `function` when the file is read."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def program(canary):
    return f"__import__('pathlib').Path({str(canary)!r}).touch() or 1"


def shell(canary):
    return Call(os.system, f"touch {canary}")


PICKLES = {
    "weights": lambda canary: {"model": shell(canary)},
    "one weight": lambda canary: {"model": {"encoder.version": shell(canary)}},
    "options": lambda canary: {"cfg": shell(canary)},
    "options of older versions": lambda canary: {"args": shell(canary), "cfg": None},
    "one option": lambda canary: {"cfg": {"model": Namespace(arch=shell(canary))}},
    "state of the run": lambda canary: {"extra_state": {"train_iterator": shell(canary)}},
    "state of the optimizer": lambda canary: {"last_optimizer_state": [shell(canary)]},
    "history": lambda canary: {"optimizer_history": [{"criterion_name": shell(canary)}]},
    "state of the task": lambda canary: {"task_state": {"x": shell(canary)}},
    "an entry of its own": lambda canary: {"anything": (1, [shell(canary)])},
    "a key": lambda canary: {"anything": {1: shell(canary)}},
    "eval": lambda canary: {"anything": Call(eval, program(canary))},
    "exec": lambda canary: {"anything": Call(exec, program(canary))},
    "a file opened": lambda canary: {"anything": Call(open, str(canary), "w")},
    "a pickle in it": lambda canary: {"anything": Call(pickle.loads, pickle.dumps(shell(canary)))},
    "a function by its name": lambda canary: {"anything": Call(getattr(os, "system"), f"touch {canary}")},  # noqa: B009
    "a folder made": lambda canary: {"anything": Call(os.makedirs, str(canary))},
    "state that is set": lambda canary: {"anything": Call(Namespace, state={"x": shell(canary)})},
}


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_pickles_that_run_something_are_refused_by_every_command(model, tmp_path, make):
    canary = tmp_path / "canary"
    paths = [tmp_path / "zip.pt", tmp_path / "as_before_torch_1.6.pt"]
    for path in paths:
        torch.save({**model.state, **make(canary)}, path, _use_new_zipfile_serialization=path is paths[0])
    for command, path in [*((command, paths[0]) for command in COMMANDS), ("generate", paths[1])]:
        line = refusal(command, model, path, tmp_path)
        assert str(path) in line
        assert "fairseq does not write; nothing of it was executed" in line
        assert not canary.exists(), command
    torch.load(paths[0], weights_only=False)
    assert canary.exists(), "the file was harmless, so the test shows nothing"


def model_options(**changes):
    def change(state):
        vars(state["cfg"]["model"]).update(changes)

    return change


def fconv(canary, **changes):
    def change(state):
        layers = "[(16, 3)] * 2"
        plain = {"encoder_layers": layers, "decoder_layers": layers, "decoder_attention": "True", "dropout": 0.1}
        plain |= {"max_source_positions": 99, "max_target_positions": 99}
        plain |= {
            "encoder_embed_dim": 16,
            "decoder_embed_dim": 16,
            "decoder_out_embed_dim": 16,
            "share_input_output_embed": 0,
        }
        state["cfg"]["model"] = Namespace(_name="fconv", arch="fconv", **{**plain, **changes})

    return change


# kind: (change of the state, given a program that makes the canary; what is said)
OPTIONS = {
    "adaptive softmax": (lambda run: model_options(adaptive_softmax_cutoff=run), "nothing of it was executed"),
    "layers of fconv": (lambda run: fconv(run, encoder_layers=run), "nothing of it was executed"),
    "attention of fconv": (lambda run: fconv(run, decoder_attention=run), "nothing of it was executed"),
    "a list of any length": (
        lambda run: fconv(run, encoder_layers="[(16, 3)] * 10 ** 9 * 10000000"),
        "nothing of it was executed",
    ),
    "self-attention of fconv": (
        lambda run: model_options(_name="fconv_self_att", arch="fconv_self_att", pretrained=run),
        "may open other files or run options",
    ),
    "speech": (
        lambda run: model_options(_name="wav2vec2", arch="wav2vec2", conv_feature_layers=run),
        "may open other files or run options",
    ),
    "another file": (
        lambda run: model_options(_name="hf_gpt2", arch="hf_gpt2", load_hf_gpt2_from=run),
        "may open other files or run options",
    ),
    "unknown architecture": (lambda run: model_options(_name="mine", arch="mine"), "--arch mine, which is not known"),
    "architecture that is no name": (lambda run: model_options(_name=[1], arch=[1]), "which is not known"),
}


def write(model, path, change):
    state = torch.load(model.path, weights_only=False)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(("change", "said"), OPTIONS.values(), ids=OPTIONS)
def test_options_are_values_and_architectures_are_known(model, tmp_path, change, said):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    write(model, path, change(program(canary)))
    for command in ("generate", "interactive", "validate"):
        assert said in refusal(command, model, path, tmp_path), command
    assert not canary.exists()


def task_options(**changes):
    def change(state):
        state["cfg"]["task"] = Namespace(**{**vars(Namespace(**state["cfg"]["task"])), **changes})

    return change


VALIDATED = {
    "unknown task": (lambda run: task_options(_name="mine"), "--task mine; allowed are translation,"),
    "task that opens other files": (lambda run: task_options(_name="audio_pretraining"), "--task audio_pretraining"),
    "criterion": (
        lambda run: lambda state: state["cfg"].update(criterion={"_name": "ctc", "wer_args": run}),
        "nothing of it was executed",
    ),
}


@pytest.mark.parametrize(("change", "said"), VALIDATED.values(), ids=VALIDATED)
def test_task_and_criterion_of_a_checkpoint_run_nothing_in_validation(model, tmp_path, change, said):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    write(model, path, change(program(canary)))
    assert said in refusal("validate", model, path, tmp_path)
    assert not canary.exists()


LAYERS = {"encoder_layers": 10**6, "decoder_layers": 10**6}
SIZES = {
    "a million layers": LAYERS,
    "wide": {"encoder_embed_dim": 10**6, "decoder_embed_dim": 10**6, "encoder_ffn_embed_dim": 10**6},
    "wide inside": {"encoder_ffn_embed_dim": 10**9},
    "positions": {"max_source_positions": 10**11, "max_target_positions": 10**11},
    "learned positions": {"max_source_positions": 10**10, "encoder_learned_pos": True},
    "a million layers of lstm": {"_name": "lstm", "arch": "lstm", **LAYERS},
    "convolutions": {"_name": "lightconv", "arch": "lightconv", **LAYERS, "encoder_kernel_size_list": "[3]"},
}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES)
def test_sizes_that_the_files_tensors_do_not_show_are_not_built(model, tmp_path, changes):
    path, begin = tmp_path / "huge.pt", time.process_time()
    write(model, path, model_options(**changes))
    line = refusal("generate", model, path, tmp_path)
    assert "far larger than the weights it holds" in line or "asks for" in line
    assert time.process_time() - begin < 60


def layered_lists():
    lists = [1]
    for _ in range(40):
        lists = [lists, lists]
    return lists


def weights(change):
    def changed(state):
        name = "encoder.layers.0.fc1.weight"
        state["model"][name] = change(state["model"][name])

    return changed


STATES = {
    "not a number": (weights(lambda w: w.fill_(float("nan"))), "that are not finite"),
    "infinite": (weights(lambda w: w.index_fill(0, torch.tensor([0]), float("inf"))), "that are not finite"),
    "int8": (weights(lambda w: w.to(torch.int8)), "torch.int8 weights"),
    "a tensor of nothing": (weights(lambda w: torch.zeros(1).expand(10**6, 10**6)), "made of 4 bytes"),
    "sparse": (weights(lambda w: w.to_sparse()), "plain tensors are allowed"),
    "a text": (weights(lambda w: "text"), "which is no tensor"),
    "lists of lists": (lambda state: state["cfg"].update(x=layered_lists()), "more than 10,000,000 entries"),
    "weights in a list": (lambda state: state.update(model=[1]), "must hold tensors by name"),
    "no weights": (lambda state: state.pop("model"), "not a fairseq checkpoint"),
    "no options": (lambda state: state.update(cfg=None, args=None), "not a fairseq checkpoint"),
    "options in a list": (lambda state: state.update(cfg=[1]), "not a fairseq checkpoint"),
    "no history": (lambda state: state.update(optimizer_history=[]), "not as fairseq writes them"),
}


@pytest.mark.parametrize(("change", "said"), STATES.values(), ids=STATES)
def test_states_that_are_no_models_are_told_in_one_line(model, tmp_path, change, said):
    path = tmp_path / "odd.pt"
    write(model, path, change)
    for command in COMMANDS:
        assert said in refusal(command, model, path, tmp_path), command


def flipped(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def compressed(content):
    """The same archive, with a member of zeros that hardly takes any room."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/999", bytes(40 << 20))
    return file.getvalue()


def in_a_tar(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def torchscript(content):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return file.getvalue()


FILES = {
    "a flipped bit": (flipped, "has changed since it was written"),
    "cut short": (lambda content: content[: len(content) // 2], "cannot read checkpoint"),
    "empty": (lambda content: b"", "is an empty file"),
    "text": (lambda content: b"weights\n", "no plain checkpoint"),
    "inflating": (compressed, "would grow to"),
    "tar": (in_a_tar, "is a tar archive"),
    "TorchScript": (torchscript, "is a TorchScript program"),
}


@pytest.mark.parametrize(("change", "said"), FILES.values(), ids=FILES)
def test_files_that_are_no_checkpoints_are_told_in_one_line(model, tmp_path, change, said):
    path = tmp_path / "odd.pt"
    path.write_bytes(change(model.path.read_bytes()))
    for command in COMMANDS:
        assert said in refusal(command, model, path, tmp_path), command


def test_honest_checkpoints_pass_through_every_command(model, tmp_path, capsys):
    for command in COMMANDS:
        run(command, model, model.path, tmp_path)
    assert "H-0" in capsys.readouterr().out


def test_a_checkpoint_of_another_architecture_cannot_be_gone_on_from(model, tmp_path):
    main, cfg, args = model.commands["train"]
    larger = copy.deepcopy(cfg)
    larger.model.encoder_layers = 2
    other = SimpleNamespace(commands={"train": (main, larger, args)})
    line = refusal("train", other, model.path, tmp_path)
    assert "cannot go on from checkpoint" in line
    assert "architectures match" in line


def modules_that(calls):
    """Modules of fairseq, its examples apart, whose source calls a name such as `eval` or `torch.load`."""
    root = Path(checkpoint_utils.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        text = "".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines(keepends=True))
        if "examples" not in path.parts and any(calls in f" {part}" for part in text.split("\n")):
            found.add(".".join(["fairseq", *path.relative_to(root).with_suffix("").parts]))
    return found


@pytest.mark.parametrize("call", [" eval(", "=eval(", "(eval("])
def test_every_module_of_fairseq_that_evaluates_options_takes_them_as_values(call):
    for name in modules_that(call):
        if name in sys.modules:
            assert vars(sys.modules[name]).get("eval") is literals.evaluate, name


def test_every_module_of_fairseq_that_unpickles_files_reads_them_safely():
    trusted = {"fairseq.distributed.utils"}  # processes of one run, among themselves
    for name in modules_that("torch.load(") - trusted:
        if name in sys.modules:
            assert isinstance(sys.modules[name].torch, reading._SafeTorch), name
    assert isinstance(checkpoint_utils.torch, reading._SafeTorch)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[(512, 3)] * 2 + [(1024, 3)]", [(512, 3), (512, 3), (1024, 3)]),
        ("(0.9, 0.98)", (0.9, 0.98)),
        ("0.1,0.2", (0.1, 0.2)),
        (" {'main': ('src', None)}", {"main": ("src", None)}),
        ("-1e-3", -0.001),
        ("True", True),
    ],
)
def test_options_keep_their_values(text, value):
    assert literals.evaluate(text) == value == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    ["a", "f()", "[].append", "[x for x in (1,)]", "lambda: 1", "'a' * 10 ** 9", "[1] * 10001", "1 +", "(" * 500],
)
def test_whatever_is_more_than_a_value_is_refused(text):
    with pytest.raises(UserError, match="nothing of it was executed"):
        literals.evaluate(text)


def test_the_kinds_of_hostile_files_are_many():
    assert len(PICKLES) + len(OPTIONS) + len(VALIDATED) + len(SIZES) + len(STATES) + len(FILES) >= 50
