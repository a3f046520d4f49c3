"""A machine that claims AMX and cannot do it is found out before it ends a run."""

import os
import signal

import pytest
import torch

from vision_reference import machine


@pytest.fixture
def claims_amx(monkeypatch):
    monkeypatch.setattr(machine, "_claims_amx", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


def test_where_a_product_ends_the_process_amx_is_left_alone(claims_amx, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: os.kill(os.getpid(), signal.SIGILL))
    assert machine.avoid_broken_amx()
    assert os.environ.pop("ONEDNN_MAX_CPU_ISA") == "AVX512_CORE_FP16"


def test_where_it_works_nothing_is_changed(claims_amx, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: None)
    assert not machine.avoid_broken_amx()
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_a_choice_of_the_user_stands(claims_amx, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("nothing is left to find out"))
    assert not machine.avoid_broken_amx()
