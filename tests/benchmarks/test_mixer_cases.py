"""Every mixer has a peer or a reason for none. Peers compute the same function; one that does not is stopped."""

from functools import partial

import pytest
import torch

from benchmarks import mixers_report
from benchmarks.__main__ import main
from benchmarks.cpu import decode, mixers_beside_mlstm, mixers_decode, mixers_length, mixers_train
from benchmarks.cpu.peers import fla, loops, scans
from benchmarks.cpu.peers.table import NO_PEER, PEERS, WithForms, our_model, peer_of
from benchmarks.cpu.peers.transformers import transformers_model
from benchmarks.cpu.training import batch
from benchmarks.gate import check_same
from benchmarks.harness import Timing
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
    with pytest.raises(ModuleNotFoundError, match="golden"):
        fla.page("gla/naive")


def test_one_mixer_is_timed(tmp_path):
    assert main(["case", "--only", "mixers_train/mingru", "--quick", "--out", str(tmp_path)]) == 0
    record = load(tmp_path)[0]["mixers_train"]["mingru"]
    assert record["ratios"].keys() == {"exlstm, plain loop", "exlstm, rows on threads"}
    assert record["accuracy"].keys() == {"error", "error_of_plain_form", "difference_from_peer"}


def test_mixers_of_constant_state():
    assert MIXERS.keys() - mixers_length.constant_state() == {"attention", "hyena", "linformer"}


def test_time_per_token():
    timings = {"exlstm @64": Timing((1.0,), 1), "exlstm @256": Timing((2.5,), 1)}
    found = mixers_length.derive({64: 4, 256: 2}, timings, {})
    assert found["longest_over_shortest"] == 1.25
    assert found["tokens_per_second"] == {"exlstm @64": 256, "exlstm @256": 205}
    assert set(mixers_length.STEP_BY_STEP) <= set(mixers_length.constant_state())


@pytest.mark.parametrize(
    "name", ["rwkv4", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mamba", "mamba2", "recurrent_gemma"))]
)
def test_a_model_that_decodes_is_checked_beside_transformers(name):
    model = mixers_decode.ours(name, tiny=True)
    peer = transformers_model(model).model.eval()
    assert max(mixers_decode.check(model, peer)["error_of_logits"].values()) < 1e-4
    with torch.no_grad():
        model.blocks[1].mixer_norm.weight *= 1.5
    with pytest.raises(AssertionError, match="the peer computes something else"):
        mixers_decode.check(model, peer)


def test_a_tied_embedding_is_read_in_decoding():
    """As the head; one of its own is not."""
    model = mixers_decode.ours("mamba", tiny=True)
    assert decode.bytes_per_token(model) == sum(p.nbytes for p in model.parameters()) + 2 * model.state_bytes()


def test_shares_of_the_machine():
    models = {"exlstm gla": small("gla")}
    timings = {"exlstm gla": Timing((0.5,), 1)}
    found = mixers_beside_mlstm.derive_decode(models, 8, timings, {"sgemm_gflops": 1.0, "stream_gb_s_1": 1e-3})
    assert found["tokens_per_second"] == {"exlstm gla": 16}
    assert found["share_of_stream"]["exlstm gla"] == pytest.approx(
        16e-6 * decode.bytes_per_token(models["exlstm gla"]), rel=1e-3
    )
    assert found["state_bytes"] == {"exlstm gla": 4 * 4 * 4 * 8}


def test_tables_show_what_was_measured_and_what_was_refused():
    rates = {"exlstm, plain loop": 2000, "exlstm, rows on threads": 3000, "peer": 1000}
    ratios = {ours: {"peer": {"of_medians": rates[ours] / 1000}} for ours in list(rates)[:2]}
    train = {"gla": {"derived": {"tokens_per_second": rates}, "ratios": ratios}, "lru": {"red": "error 1, allowed 0"}}
    rows = mixers_report.train_table(train).splitlines()
    assert "| `gla` | fla's naive_recurrent_gla | 2,000 | 3,000 | 1,000 | 2.00x | 3.00x |" in rows
    assert "refused: error 1, allowed 0" in rows[-1]
    memory = {"s5": {"megabytes": {"512": 10.0, "8192": 10.6}, "largest_over_shortest": 1.06}}
    assert mixers_report.length_table({}, memory).splitlines()[-1] == "| `s5` |  |  |  | 10 | 11 | 1.06x |"
    assert mixers_report.beside_table({}) == mixers_report.NOTHING


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["mixers_length/gla", "mixers_memory/gla", "mixers_decode/mamba", "mixers_beside_mlstm"]
)
def test_the_other_cases_run(tmp_path, case):
    assert main(["case", "--only", case, "--quick", "--out", str(tmp_path)]) == 0
    assert load(tmp_path)[0].keys() == {case.partition("/")[0]}
