"""Every mixer has a peer or a reason for none. Peers compute the same function; one that does not is stopped."""

from functools import partial

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cpu import mixers_train
from benchmarks.cpu.peers import fla, loops, scans
from benchmarks.cpu.peers.table import NO_PEER, PEERS, WithForms, our_model, peer_of
from benchmarks.cpu.training import batch
from benchmarks.gate import check_same
from benchmarks.store import load
from exlstm.mixers import MIXERS, mingru

small = partial(our_model, width=32, vocabulary=64, blocks=2)


def test_every_mixer_has_a_peer_or_a_reason():
    assert PEERS.keys() | NO_PEER.keys() == MIXERS.keys()
    assert not PEERS.keys() & NO_PEER.keys()


@pytest.mark.parametrize(
    "name", [n if n in ("mingru", "rglru") else pytest.param(n, marks=pytest.mark.slow) for n in PEERS]
)
def test_a_peer_computes_the_same_function(name):
    """A form in the place of an op, and transformers' model, whose gradients are renamed."""
    if PEERS[name].needs_fla and not fla.is_installed():
        pytest.skip("fla is not installed")
    model = small(name)
    peer = peer_of(name, model)
    found = check_same(model, peer, batch(64, 2, 64), peer.translated)["difference_from_peer"]
    assert max(found.values()) < 1e-3


def test_a_peer_that_computes_something_else_is_stopped():
    def wrong(a_BTE, b_BTE, state=None, **_):
        return scans.associative_scan(a_BTE * 0.99, b_BTE, state)

    model = small("mingru")
    peer = WithForms(model, "mingru", {"scan": wrong})
    with pytest.raises(AssertionError, match="differ from the peer's"):
        check_same(model, peer, batch(64, 2, 64), peer.translated)


def test_ours_is_back_after_a_peer_has_failed():
    def fails(*_, **__):
        raise RuntimeError

    before, peer = mingru.scan, WithForms(small("mingru"), "mingru", {"scan": fails})
    with pytest.raises(RuntimeError):
        peer(batch(64, 2, 64))
    assert mingru.scan is before


@pytest.mark.parametrize("T", [1, 2, 7, 16, 37])
def test_the_associative_scan_is_the_recurrence(T):
    a_BTE, b_BTE = torch.rand(2, T, 3, dtype=torch.float64), torch.rand(2, T, 3, dtype=torch.float64)
    h_BE, steps = torch.zeros(2, 3, dtype=torch.float64), []
    for a_BE, b_BE in zip(a_BTE.unbind(1), b_BTE.unbind(1), strict=True):
        h_BE = a_BE * h_BE + b_BE
        steps.append(h_BE)
    torch.testing.assert_close(scans.associative_scan(a_BTE, b_BTE)[0], torch.stack(steps, 1))


def test_a_length_bound_of_complex_numbers():
    z = torch.tensor([0, 3 + 4j, 0.3j])
    torch.testing.assert_close(loops.bound(z), torch.tensor([0, 0.6 + 0.8j, 0.3j]))


def test_a_mixer_without_an_entry_is_named(monkeypatch):
    monkeypatch.setattr(mixers_train, "NO_PEER", {})
    with pytest.raises(ValueError, match="add each to PEERS, or with a reason to NO_PEER"):
        mixers_train.run(None)


def test_fla_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(fla, "find_spec", lambda _name: None)
    fla.page.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="bench-cpu"):
        fla.page("gla/naive")


def test_one_mixer_is_timed(tmp_path):
    assert main(["case", "--only", "mixers_train/mingru", "--quick", "--out", str(tmp_path)]) == 0
    record = load(tmp_path)[0]["mixers_train"]["mingru"]
    assert record["ratios"].keys() == {"exlstm, plain loop", "exlstm, rows on threads"}
    assert record["accuracy"].keys() == {"error", "error_of_plain_form", "difference_from_peer"}
