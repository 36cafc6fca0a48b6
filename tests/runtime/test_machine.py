"""What the machine is, and how durations are shown."""

import pytest
import torch

from exlstm.runtime import machine
from exlstm.runtime.machine import clock, commit, pick_device


def test_auto_is_a_device():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "abacus", "cuda:77"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=rf"^--device '{name}' is not on this machine; use 'cpu' or 'auto'\.$"):
        pick_device(name)


def test_commit_is_that_of_exlstm_or_none(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert commit() is None


def test_durations():
    assert [clock(3723), clock(63.4), clock(0)] == ["1:02:03", "1:03", "0:00"]
