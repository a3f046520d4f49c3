"""Students taught from stored outputs: the same lessons as with the expert at hand, or one line that says why not."""

import json
import logging
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from fairseq_plugins.errors import UserError
from fairseq_plugins.files import unseal
from fairseq_plugins.teachers.expert import Teacher
from fairseq_plugins.teachers.store import FORMAT, Store
from scripts.nmt.lib import store_outputs as teacher_outputs
from scripts.nmt.lib.lang_pair import LangPair
from vision_reference.errors import UserError as SharedUserError

PAIRS = ["en-de", "en-ru", "en-fr"]
MIXED = [0, 61, 121, 5, 70, 130, 3]
VOCABULARY = 36  # of the toy dictionary, with fairseq's own four symbols
FORMATS = {
    "tokens on both sides": ["--encoder-langtok", "tgt", "--decoder-langtok"],
    "in place of end of sentence": ["--encoder-langtok", "tgt", "--decoder-langtok", "--lang-tok-replacing-bos-eos"],
    "target padded left": ["--encoder-langtok", "tgt", "--decoder-langtok", "--left-pad-target", "True"],
    "no tokens at all": [],
}


def store_outputs(toy, teacher, pair, output, **changes):
    settings = {"subset": "train", "top_k": VOCABULARY, "temperatures": [1.0, 2.0], "max_tokens": 60, "workers": 1}
    data = changes.pop("data_bin", toy.data)
    settings |= {"cpu": True, "precision": "fp32", "block": 100}
    teacher_outputs.store(data, LangPair(*pair.split("-")), str(teacher), output, **{**settings, **changes})
    return output


@pytest.fixture(scope="module")
def stores(toy, tmp_path_factory):
    """Whole and top-3 outputs of the toy experts."""
    folder = tmp_path_factory.mktemp("stores")
    logging.disable(logging.INFO)
    made = {
        "de": store_outputs(toy, toy.de, "en-de", folder / "de"),
        "ru": store_outputs(toy, toy.ru, "en-ru", folder / "ru"),
        "de3": store_outputs(toy, toy.de, "en-de", folder / "de3", top_k=3),
    }
    logging.disable(logging.NOTSET)
    return made


def student(toy, *flags):
    return [toy.data, "--lang-pairs", ",".join(PAIRS), *toy.tiny, *toy.training, *toy.task, *flags]


def bilingual(toy, *flags):
    task = ["--task", "translation_kd", "--criterion", "label_smoothed_kd_cross_entropy"]
    return [toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training, *task, *flags]


def loss_of(setup, batch, argv, sentences=MIXED):
    task, model, criterion = setup(argv)
    sample = batch(task, sentences)
    loss, _, logged = criterion(model.eval(), {**sample, "soft_labels": task.soft_labels(sample)})
    return loss.item(), {name: float(logged[name]) for name in ("kd_loss", "kd_ntokens", "kd_agreed")}


def same_lesson(found, expected):
    """Equal to the accuracy of float16 logits."""
    assert found[0] == pytest.approx(expected[0], rel=5e-4)
    assert found[1]["kd_loss"] == pytest.approx(expected[1]["kd_loss"], rel=5e-4)
    assert found[1]["kd_ntokens"] == expected[1]["kd_ntokens"] > 0
    assert found[1]["kd_agreed"] == expected[1]["kd_agreed"]


@pytest.mark.parametrize("tail", ["drop", "uniform", "bucket"])
@pytest.mark.parametrize("flags", FORMATS.values(), ids=FORMATS)
def test_whole_stored_outputs_teach_what_the_experts_teach(toy, stores, setup, batch, flags, tail):
    argv = student(toy, *flags, "--kd-temperature", 2)
    online = loss_of(setup, batch, [*argv, "--teachers", f"en-de={toy.de},en-ru={toy.ru}"])
    stored = ["--teacher-outputs", f"en-de={stores['de']},en-ru={stores['ru']}", "--kd-tail", tail]
    same_lesson(loss_of(setup, batch, [*argv, *stored]), online)


def test_some_pairs_may_have_an_expert_and_others_stored_outputs(toy, stores, setup, batch):
    argv = student(toy, "--decoder-langtok", "--ignore-prefix-size", 1)
    online = loss_of(setup, batch, [*argv, "--teachers", f"en-de={toy.de},en-ru={toy.ru}"])
    mixed = ["--teachers", f"en-ru={toy.ru}", "--teacher-outputs", f"en-de={stores['de']}"]
    same_lesson(loss_of(setup, batch, [*argv, *mixed]), online)


def test_bilingual_student_learns_from_stored_outputs(toy, stores, setup, batch):
    online = loss_of(setup, batch, bilingual(toy, "--teacher", toy.de), range(6))
    same_lesson(loss_of(setup, batch, bilingual(toy, "--teacher-outputs", stores["de"]), range(6)), online)


@pytest.mark.parametrize(("temperature", "told"), [(2, True), (1, False)])
def test_the_store_of_a_smoothed_expert_at_high_temperature_is_told_the_rule_of_thumb(
    toy, stores, setup, caplog, temperature, told
):
    with caplog.at_level("WARNING"):
        setup(bilingual(toy, "--teacher-outputs", stores["de"], "--kd-temperature", temperature))
    said = f"the teacher of en-de was trained with --label-smoothing 0.1 and teaches at --kd-temperature {temperature}"
    assert (said in caplog.text) == told


def test_three_entries_of_each_word_are_the_experts_three_most_probable(toy, stores, setup, batch):
    def labels_of(*flags):
        task, _, _ = setup(bilingual(toy, *flags))
        return task.soft_labels(batch(task, range(6)))[0]

    exact = labels_of("--teacher", toy.de)
    dense = exact.logits if isinstance(exact.logits, torch.Tensor) else exact.logits.dense()
    p = dense.softmax(-1)
    largest, indices = p.topk(3)
    dropped = labels_of("--teacher-outputs", stores["de3"], "--kd-tail", "drop")
    assert torch.equal(dropped.sentences, exact.sentences)
    assert torch.equal(dropped.positions, exact.positions)
    assert torch.equal(dropped.logits.indices, indices)
    expected = torch.zeros_like(p).scatter(1, indices, largest / largest.sum(-1, keepdim=True))
    torch.testing.assert_close(dropped.logits.lprobs(1.0).exp(), expected, atol=1e-3, rtol=0)
    spread = labels_of("--teacher-outputs", stores["de3"])  # uniform is the default
    rest = (1 - largest.sum(-1, keepdim=True)) / (VOCABULARY - 3)
    expected = rest.expand_as(p).scatter(1, indices, largest)
    torch.testing.assert_close(spread.logits.lprobs(1.0).exp(), expected, atol=1e-3, rtol=0)


def test_sentences_too_long_for_the_expert_are_left_to_their_labels(toy, setup, batch, tmp_path, monkeypatch):
    def short_sighted(*arguments, load=teacher_outputs.load_teacher):
        teacher = load(*arguments)
        teacher.max_target = 6
        return teacher

    monkeypatch.setattr(teacher_outputs, "load_teacher", short_sighted)
    folder = store_outputs(toy, toy.de, "en-de", tmp_path / "short")
    task, model, criterion = setup(bilingual(toy, "--teacher", toy.de))
    task.teachers["en-de"].max_target = 6
    sample = batch(task, range(8))
    lengths = sample["target"].ne(1).sum(1)
    assert lengths.ge(6).any()
    assert lengths.lt(6).any()
    loss, _, logged = criterion(model.eval(), {**sample, "soft_labels": task.soft_labels(sample)})
    found = loss_of(setup, batch, bilingual(toy, "--teacher-outputs", folder), range(8))
    assert found[0] == pytest.approx(loss.item(), rel=5e-4)
    assert found[1]["kd_ntokens"] == logged["kd_ntokens"] == lengths[lengths < 6].sum()


def test_ensemble_is_stored_with_its_averaged_probabilities(toy, setup, batch, tmp_path):
    folder = store_outputs(toy, f"{toy.de}:{toy.de2}", "en-de", tmp_path / "both")
    online = loss_of(setup, batch, bilingual(toy, "--teacher", f"{toy.de}:{toy.de2}"), range(6))
    same_lesson(loss_of(setup, batch, bilingual(toy, "--teacher-outputs", folder), range(6)), online)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_processes_store_the_same_bytes_even_if_some_are_killed(toy, stores, tmp_path, monkeypatch):
    assert contents(store_outputs(toy, toy.de, "en-de", tmp_path / "three", workers=3)) == contents(stores["de"])

    def killed_at_first(worker, block, records=teacher_outputs.Worker.records):
        if block.number == 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return records(worker, block)

    monkeypatch.setattr(teacher_outputs.Worker, "records", killed_at_first)
    assert contents(store_outputs(toy, toy.de, "en-de", tmp_path / "two", workers=2)) == contents(stores["de"])
    assert (tmp_path / "killed").exists()

    def always_killed(worker, block, records=teacher_outputs.Worker.records):
        if block.number == 2:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return records(worker, block)

    with monkeypatch.context() as patched:
        patched.setattr(teacher_outputs.Worker, "records", always_killed)
        with pytest.raises(UserError, match="a process was killed .* run the same command again to go on"):
            store_outputs(toy, toy.de, "en-de", tmp_path / "one")
    assert contents(store_outputs(toy, toy.de, "en-de", tmp_path / "one")) == contents(stores["de"])


@pytest.mark.parametrize("deadly", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(toy, stores, tmp_path, monkeypatch, deadly):
    def slow(worker, block, records=teacher_outputs.Worker.records):
        if block.number == 1:
            (tmp_path / f"{os.getpid()}.pid").touch()
            time.sleep(60)
        return records(worker, block)

    monkeypatch.setattr(teacher_outputs.Worker, "records", slow)
    command = os.fork()
    if command == 0:
        torch.set_num_threads(1)  # the threads of its parent are not here
        try:
            store_outputs(toy, toy.de, "en-de", tmp_path / "out", workers=2)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    wait(lambda: list(tmp_path.glob("*.pid")), 20)
    (mark,) = tmp_path.glob("*.pid")
    os.kill(command, deadly)
    began = time.monotonic()
    status = os.waitpid(command, 0)[1]
    assert time.monotonic() - began < 3
    assert (os.WEXITSTATUS(status) == 130) if deadly == signal.SIGINT else (os.WTERMSIG(status) == deadly)
    wait(lambda: not ends_not(int(mark.stem)), 3)
    monkeypatch.undo()
    assert contents(store_outputs(toy, toy.de, "en-de", tmp_path / "out", workers=2)) == contents(stores["de"])


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ends_not(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] not in "ZX"
    except FileNotFoundError:
        return False


def test_finished_store_is_left_as_it_is_and_never_mixed_with_another(toy, stores, capsys):
    before = (stores["de"] / "labels.bin").stat().st_mtime_ns
    store_outputs(toy, toy.de, "en-de", stores["de"])
    assert "is already stored with these settings" in capsys.readouterr().out
    assert (stores["de"] / "labels.bin").stat().st_mtime_ns == before
    for changes, said in (
        ({"top_k": 2}, "labels.top_k 36, not 2"),
        ({"temperatures": [1.0]}, "labels.temperatures [1.0, 2.0], not [1.0]"),
    ):
        with pytest.raises(SharedUserError, match="holds a store with") as error:
            store_outputs(toy, toy.de, "en-de", stores["de"], **changes)
        assert said in str(error.value)
    with pytest.raises(SharedUserError, match=r"holds a store with teacher.weights_sha256"):
        store_outputs(toy, toy.de2, "en-de", stores["de"])


def test_what_cannot_be_stored_is_one_line(toy, tmp_path):
    for changes, said in (
        ({"top_k": 37}, "--top-k 37 is more than the 36 entries"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
    ):
        with pytest.raises(teacher_outputs.UserError, match=said):
            store_outputs(toy, toy.de, "en-de", tmp_path / "out", **changes)
    with pytest.raises(UserError, match="holds no nosuch set of en-de"):
        store_outputs(toy, toy.de, "en-de", tmp_path / "out", subset="nosuch")


def test_disk_that_fills_while_storing_is_one_line_and_the_next_run_goes_on(toy, stores, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("vision_reference.soft_labels.writer.write_through", full)
        with pytest.raises(UserError, match=r"\(No space left on device\): make room and run the same command again"):
            store_outputs(toy, toy.de, "en-de", tmp_path / "out")
    assert contents(store_outputs(toy, toy.de, "en-de", tmp_path / "out")) == contents(stores["de"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_teacher_whose_weights_are_no_numbers_is_refused_before_anything_is_stored(toy, tmp_path, value):
    state = torch.load(toy.de, weights_only=False)
    state["model"]["decoder.layers.0.fc1.weight"][3, 2] = value
    torch.save(state, tmp_path / "expert.pt")
    with pytest.raises(UserError, match="not finite|no numbers"):
        store_outputs(toy, tmp_path / "expert.pt", "en-de", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_teacher_whose_logits_overflow_is_refused(toy, tmp_path, monkeypatch):
    def overflowing(teacher, *arguments, ask=Teacher.soft_labels):
        labels = ask(teacher, *arguments)
        with torch.inference_mode():
            labels.logits.features[-1] = torch.inf
        return labels

    monkeypatch.setattr(Teacher, "soft_labels", overflowing)
    with pytest.raises(UserError, match="the teacher's logits are not finite"):
        store_outputs(toy, toy.de, "en-de", tmp_path / "out")


def refusal(setup, argv, then=lambda task: None):
    """The one line that a user reads."""
    with pytest.raises(UserError) as error:
        then(setup(argv)[0])
    (line,) = str(error.value).splitlines()
    return line


def test_mistakes_on_the_command_line_are_one_line(toy, stores, setup, tmp_path):
    de, both = ["--teacher-outputs", f"en-de={stores['de']}"], f"{toy.data}:{tmp_path}"
    refused = {
        "--kd-temperature 3: stored teacher outputs": student(toy, *de, "--kd-temperature", 3),
        "hold temperatures 1, 2": student(toy, *de, "--kd-temperature", 3),
        "is in both --teachers and --teacher-outputs": student(toy, *de, "--teachers", f"en-de={toy.de}"),
        "--kd-strategy adaptive compares": student(toy, *de, "--kd-strategy", "adaptive"),
        "--truncate-source": student(toy, *de, "--truncate-source"),
        "give one folder": [both, *student(toy, *de)[1:]],
        "are of en-de, not en-ru": student(toy, "--teacher-outputs", f"en-ru={stores['de']}"),
        "write PAIR=PATH": student(toy, "--teacher-outputs", stores["de"]),
        "names en-xx, which is not among": student(toy, "--teacher-outputs", "en-xx=out"),
        "names en-de twice": student(toy, "--teacher-outputs", "en-de=a,en-de=b"),
        "stored teacher outputs nowhere are missing: make them with": bilingual(toy, "--teacher-outputs", "nowhere"),
        "--teacher and --teacher-outputs are both given": bilingual(
            toy, "--teacher-outputs", stores["de"], "--teacher", toy.de
        ),
        "does not learn from one": bilingual(
            toy, "--teacher-outputs", stores["de"], "--criterion", "label_smoothed_cross_entropy"
        ),
    }
    for said, argv in refused.items():
        assert said in refusal(setup, argv)


def test_data_added_to_a_pair_with_stored_outputs_are_refused(toy, stores, setup):
    extra = ["--extra-data", f"{{'mined': '{toy.data}'}}", "--extra-lang-pairs", "{'mined': 'en-de'}"]
    line = refusal(setup, student(toy, "--teacher-outputs", f"en-de={stores['de']}", *extra))
    assert "--extra-lang-pairs adds data" in line


def test_store_of_other_data_is_refused_before_training(toy, stores, setup, tmp_path):
    def other_data(name, split="train", copies=()):
        folder = shutil.copytree(toy.data, tmp_path / name)
        for path in toy.data.glob(f"{split}.en-de.*"):
            for copy in copies:
                shutil.copy(path, folder / path.name.replace(split, copy, 1))
        return folder

    def load_all(task):
        task.datasets.clear()
        task.load_dataset("train", combine=True)

    longer = other_data("longer", copies=["train1"])
    changed = other_data("changed", split="valid", copies=["train"])
    for argv in (
        bilingual(toy, "--teacher-outputs", stores["de"]),
        student(toy, "--teacher-outputs", f"en-de={stores['de']}"),
    ):
        assert "are about other data" in refusal(setup, [changed, *argv[1:]])
        # as fairseq-train loads them; --upsample-primary has no usable default in stock `translation`
        several = [longer, *argv[1:], "--upsample-primary", 1]
        line = refusal(setup, several, load_all)
        assert "(train, 60 sentence pairs) than" in line
        assert "(train, 120)" in line


def test_store_of_another_vocabulary_is_refused(toy, stores, setup, tmp_path):
    folder = shutil.copytree(toy.data, tmp_path / "data")
    lines = (folder / "dict.de.txt").read_text().splitlines(keepends=True)
    for lang in ("en", "de", "ru", "fr"):
        (folder / f"dict.{lang}.txt").write_text("".join([lines[1], lines[0], *lines[2:]]))
    argv = student(toy, "--teacher-outputs", f"en-de={stores['de']}")
    assert "another vocabulary" in refusal(setup, [folder, *argv[1:]])


def test_store_of_an_expert_that_has_changed_since_is_refused_and_of_one_that_is_gone_is_not(toy, setup, tmp_path):
    expert = shutil.copy(toy.de, tmp_path / "expert.pt")
    folder = store_outputs(toy, expert, "en-de", tmp_path / "out", top_k=2)
    argv = bilingual(toy, "--teacher-outputs", folder)
    setup(argv)
    shutil.copy(toy.de2, expert)
    assert f"by another expert than {expert} is now" in refusal(setup, argv)
    expert.unlink()
    setup(argv)


def test_other_numbers_of_words_than_stored_stop_training(toy, stores, setup, batch):
    task, _, _ = setup(bilingual(toy, "--teacher-outputs", stores["de"]))
    sample = batch(task, range(4))
    sample["id"] = sample["id"].flip(0)
    with pytest.raises(UserError, match="do not fit the batch"):
        task.soft_labels(sample)


def losses(logs):
    return [[float(line[name]) for name in ("loss", "nll_loss", "kd_loss", "gnorm")] for line in logs["train_inner"]]


def test_training_from_stored_outputs_follows_online_training_and_resumes(toy, stores, train, tmp_path):
    sampling = ["--sampling-method", "temperature", "--sampling-temperature", 5, "--update-freq", 2]
    argv = [*student(toy, *FORMATS["tokens on both sides"]), *sampling, "--clip-norm", 1, "--max-update", 8]
    online = train([*argv, "--teachers", f"en-de={toy.de},en-ru={toy.ru}", "--no-save", "--save-dir", tmp_path])
    argv += ["--teacher-outputs", f"en-de={stores['de']},en-ru={stores['ru']}"]
    stored = train([*argv, "--save-interval-updates", 4, "--save-dir", tmp_path / "stored"])
    np.testing.assert_allclose(losses(stored), losses(online), rtol=2e-3, atol=2e-3)
    halfway = next((tmp_path / "stored").glob("checkpoint_*_4.pt"))
    resumed = train([*argv, "--restore-file", halfway, "--save-dir", tmp_path / "resumed"])
    assert losses(resumed) == losses(stored)[4:]


def test_two_processes_of_fairseq_train_learn_two_pairs_without_any_expert(toy, train, command_line, request, tmp_path):
    experts = {lang: shutil.copy(getattr(toy, lang), tmp_path / f"{lang}.pt") for lang in ("de", "ru")}
    folders = [store_outputs(toy, path, f"en-{lang}", tmp_path / lang, top_k=4) for lang, path in experts.items()]
    for path in experts.values():
        path.unlink()
    argv = [*student(toy, *FORMATS["tokens on both sides"]), "--max-update", 4, "--no-save", "--save-dir", tmp_path]
    argv += ["--teacher-outputs", "en-de={},en-ru={}".format(*folders)]
    expected = train([*argv, "--update-freq", 2])
    workers = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    plugin = ["--user-dir", request.config.rootpath / "fairseq_plugins"]
    launch = ["--standalone", "--nproc_per_node", 2, "-m", "fairseq_cli.train"]
    run = command_line("torchrun", *launch, *argv, *workers, *plugin)
    assert run.returncode == 0, run.stdout
    lines = [json.loads(line) for line in re.findall(r" train_inner \| (\{.*\})", run.stdout)]
    np.testing.assert_allclose(losses({"train_inner": lines}), losses(expected), rtol=1e-3, atol=2e-3)


def test_flipped_bit_ends_fairseq_train_with_one_line(toy, stores, setup, tmp_path):
    folder = shutil.copytree(stores["de"], tmp_path / "damaged")
    content = bytearray((folder / "labels.bin").read_bytes())
    content[1000] ^= 4
    (folder / "labels.bin").write_bytes(content)
    assert "are not as they were written" in refusal(setup, bilingual(toy, "--teacher-outputs", folder))


def test_store_says_what_it_was_made_of(toy, stores):
    made_of = unseal(stores["de3"] / "manifest.json", FORMAT)
    assert (made_of["data"]["lang_pair"], made_of["data"]["split"], made_of["labels"]["top_k"]) == ("en-de", "train", 3)
    assert made_of["paths"] == [str(toy.de)]
    whole = unseal(stores["de"] / "manifest.json", FORMAT)
    assert all(made_of[name] == whole[name] for name in ("format", "teacher", "data", "block", "versions"))
    assert Store(stores["de3"]).damage() is None


@pytest.mark.parametrize("name", ["dkd", "dist", "standardized", "ttm"])
def test_whole_stored_outputs_teach_by_every_loss_what_the_expert_teaches(toy, stores, setup, batch, name):
    flags = ["--kd-loss", name, "--kd-temperature", 2]
    online = loss_of(setup, batch, bilingual(toy, "--teacher", toy.de, *flags), range(6))
    same_lesson(loss_of(setup, batch, bilingual(toy, "--teacher-outputs", stores["de"], *flags), range(6)), online)


def test_few_stored_entries_teach_by_losses_of_softmaxes_alone(toy, stores, setup, batch):
    few = ["--teacher-outputs", stores["de3"]]
    loss, logged = loss_of(setup, batch, bilingual(toy, *few, "--kd-loss", "dkd", "--kd-tail", "drop"), range(6))
    assert np.isfinite(loss)
    assert logged["kd_loss"] > 0
    with pytest.raises(UserError, match=f"standardized needs all logits .* the 3 largest; .* --top-k {VOCABULARY}, or"):
        setup(bilingual(toy, *few, "--kd-loss", "standardized"))
    with pytest.raises(UserError, match="--kd-tail bucket changes the entries .* which --kd-loss kl alone knows of"):
        setup(bilingual(toy, *few, "--kd-loss", "dkd", "--kd-tail", "bucket"))
