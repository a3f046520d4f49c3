"""Checkpoints of strangers: the image half refuses each in one line and runs none of them. A canary shows execution."""

import argparse
import builtins
import contextlib
import functools
import io
import os
import pickle
import subprocess
import types
from pathlib import Path

import pytest
import torch

from vision_reference.errors import UserError
from vision_reference.networks.by_name import load_network


class Call:
    """Pickled, it is a call of ``function`` when the file is read."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def shell(canary):
    return Call(os.system, f"touch {canary}")


def program(canary):
    return f"__import__('pathlib').Path({str(canary)!r}).touch()"


def weight_with(attribute):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.attribute = attribute
    return weight


PLACES = {
    "the file": lambda call: call,
    "the weights": lambda call: {"model": call},
    "one weight": lambda call: {"model": {"fc.bias": call}},
    "a weight's name": lambda call: {"model": {(1, call): 1}},
    "a weight's attribute": lambda call: {"model": {"fc.bias": weight_with(call)}},
    "authors' weights": lambda call: {"arch": "resnet8", "state_dict": {"module.fc.bias": call}},
    "the average": lambda call: {"model": {}, "model_ema": call},
    "the flags": lambda call: {"model": {}, "args": argparse.Namespace(model="resnet8", hook=call)},
    "the description": lambda call: {"model": {}, "description": {"classes": [call]}},
    "the optimizer": lambda call: {"model": {}, "optimizer": {"state": {0: call}}},
    "the schedule": lambda call: {"model": {}, "lr_scheduler": [call]},
    "the generators": lambda call: {"model": {}, "rng": [{"python": (3, call)}]},
    "the best result": lambda call: {"model": {}, "best": {"acc1": call}},
    "the checksum": lambda call: {"model": {}, "content_sha256": call},
    "an entry of its own": lambda call: {"model": {}, "more": (1, [call])},
    "a set": lambda call: {"model": {}, "more": {call, 1}},
    "deep inside": lambda call: {"model": {}, "more": functools.reduce(lambda inner, _: [inner], range(40), call)},
}
CALLS = {
    "a shell": shell,
    "eval": lambda canary: Call(eval, program(canary)),
    "exec": lambda canary: Call(exec, program(canary)),
    "a process": lambda canary: Call(subprocess.check_call, ["touch", str(canary)]),
    "another process": lambda canary: Call(subprocess.Popen, ["touch", str(canary)]),
    "a file opened": lambda canary: Call(open, str(canary), "w"),
    "another way to open": lambda canary: Call(io.open, str(canary), "w"),
    "a folder made": lambda canary: Call(os.makedirs, str(canary)),
    "a link": lambda canary: Call(os.symlink, "/nowhere", str(canary)),
    "a path's method": lambda canary: Call(Path.touch, Path(canary)),
    "a pickle": lambda canary: Call(pickle.loads, pickle.dumps(shell(canary))),
    "map": lambda canary: Call(list, Call(map, os.system, [f"touch {canary}"])),
    "reduce": lambda canary: Call(functools.reduce, os.system, [], f"touch {canary}"),
    "an attribute": lambda canary: Call(Call(getattr, os, "system"), f"touch {canary}"),
    "a builtin": lambda canary: Call(Call(getattr, builtins, "eval"), program(canary)),
    "torch's own unpickler": lambda canary: Call(torch.load, io.BytesIO(pickle.dumps(shell(canary)))),
    "a namespace of another module": lambda canary: Call(types.SimpleNamespace, state={"x": shell(canary)}),
    "state that is set": lambda canary: Call(argparse.Namespace, state={"x": shell(canary)}),
}
KINDS = {f"a shell in {place}": (put, shell) for place, put in PLACES.items()}
KINDS |= {f"{call} in an entry": (PLACES["an entry of its own"], make) for call, make in CALLS.items()}
WRITERS = {
    "zip": lambda state, path: torch.save(state, path),
    "before torch 1.6": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda state, path: path.write_bytes(pickle.dumps(state)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_run_something_are_refused_and_nothing_runs(tmp_path, kind, writer):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    put, make = KINDS[kind]
    try:
        WRITERS[writer](put(make(canary)), path)
    except (pickle.PicklingError, TypeError, AttributeError):
        pytest.skip("cannot be written so")
    with pytest.raises(UserError) as refused:
        load_network(str(path), "resnet8")
    assert len(refused.value.line.splitlines()) == 1
    assert str(path) in refused.value.line
    assert not canary.exists()
    assert not canary.is_symlink()


def test_the_kinds_are_many_and_dangerous(tmp_path):
    """Read without protection, most of them leave the canary; else they would show nothing."""
    executed = 0
    for number, (put, make) in enumerate(KINDS.values()):
        canary, path = tmp_path / f"canary{number}", tmp_path / "evil.pth"
        with contextlib.suppress(Exception):
            torch.save(put(make(canary)), path)
            torch.load(path, weights_only=False)
        executed += canary.exists() or canary.is_symlink()
    assert executed >= 25
    assert len(KINDS) * len(WRITERS) >= 90
