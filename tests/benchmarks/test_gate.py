"""The checks before the clock let right numbers through and stop wrong ones; and the cases run."""

from functools import partial

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cpu import CASES, decode, mlstm_op, slstm_op, train_step, training
from benchmarks.gate import check_same, check_training
from benchmarks.store import load
from exlstm.infer.quantize import quantize
from exlstm.ops.linear.formats import dequantised
from exlstm.ops.mlstm import mlstm
from exlstm.ops.slstm import projected_slstm
from peers import from_paper


def slightly_wrong(op, *args, **kwargs):
    """One element in a thousand is off by one percent; the definition, asked for by name, stays right."""
    h, state = op(*args, **kwargs)
    if kwargs.get("backend", "auto") != "auto":
        return h, state
    wrong = torch.ones_like(h)
    wrong.view(-1)[::1000] = 1.01
    return h * wrong, state


@pytest.fixture
def pair():
    return train_step.pair("ms", 64, 32)


def tokens(T=32):
    return training.batch(train_step.VOCABULARY, 2, T)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_right_models_pass(pair, dtype):
    ours, peer = pair
    found = check_training(ours, tokens(), dtype) | check_same(ours, peer, tokens(), partial(from_paper, gain=0))
    assert found["error"]["gradients"] < (1e-5 if dtype is None else 0.1)
    assert found["difference_from_peer"]["logits"] < 1e-4


@pytest.mark.parametrize(("place", "op"), [("mlstm.mlstm", mlstm), ("slstm.projected_slstm", projected_slstm)])
def test_a_slightly_wrong_kernel_is_stopped(pair, monkeypatch, place, op):
    monkeypatch.setattr(f"exlstm.mixers.{place}", partial(slightly_wrong, op))
    with pytest.raises(AssertionError, match="error of the logits"):
        check_training(pair[0], tokens())


def test_a_wrong_gradient_is_stopped(pair, monkeypatch):
    """Outputs as they should be, and a tenth of one gate's gradient left out."""

    def cut(q, k, v, i, f, *rest, **options):
        fast = options["backend"] == "auto"
        return mlstm(q, k, v, i.detach() * 0.1 + i * 0.9 if fast else i, f, *rest, **options)

    monkeypatch.setattr("exlstm.mixers.mlstm.mlstm", cut)
    with pytest.raises(AssertionError, match="error of the gradients"):
        check_training(pair[0], tokens())


def test_another_job_is_stopped(pair):
    """Weights that differ a little from the peer's."""
    ours, peer = pair
    with torch.no_grad():
        ours.blocks[0].mixer.up.weight[0] *= 1.1
    with pytest.raises(AssertionError, match="differ from the peer's"):
        check_same(ours, peer, tokens(), partial(from_paper, gain=0))


def test_ops_are_checked(monkeypatch):
    slstm_op.check_op(2, 32)
    runs, check, variant = mlstm_op.programs((1, 128, 2, 16, 16), both=True)
    assert runs.keys() == {"exlstm", "mlstm_kernels"}
    assert "native" in variant
    assert check()["difference_from_peer"] < 1e-5
    monkeypatch.setattr(slstm_op, "projected_slstm", partial(slightly_wrong, projected_slstm))
    monkeypatch.setattr(mlstm_op, "mlstm", partial(slightly_wrong, mlstm))
    with pytest.raises(AssertionError, match="output"):
        slstm_op.check_op(8, 256)
    with pytest.raises(AssertionError, match="output"):
        check()


def test_decoding_is_checked():
    size = decode.TINY["tiny"]
    model = decode.xlstm(size)
    official = decode.theirs(model, size)
    errors = decode.check(model, model, official, size)["error_of_logits"]
    assert max(errors.values()) < 1e-4
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0] *= 1.1  # after the peer has taken its copy
    with pytest.raises(AssertionError, match="the peer computes something else"):
        decode.check(model, model, official, size)


def test_quantised_weights_are_checked(monkeypatch):
    """Against the rounded weights: a kernel that is a little wrong is not taken for rounding."""
    size = decode.TINY["tiny"]
    model = decode.xlstm(size)
    small = quantize(model, "int8")
    found = decode.check_quantised(model, small, size)
    assert found["error_of_logits"] < 1e-5 < 1e-3 < found["moved_by_rounding"] < 0.1
    monkeypatch.setattr(decode, "dequantised", lambda weight, dtype: 1.0001 * dequantised(weight, dtype))
    with pytest.raises(AssertionError, match="error of the logits"):
        decode.check_quantised(model, small, size)


def test_the_state_of_a_context_is_that_of_reading_it():
    size = decode.TINY["tiny"]
    model = decode.xlstm(size)
    states = decode.read_contexts(model, size)
    tokens_BT = torch.randint(size.vocabulary, (1, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, want = model(tokens_BT)
    for got, expected in zip(states[64], want, strict=True):
        torch.testing.assert_close(got.c_BHKV, expected.c_BHKV, rtol=1e-4, atol=1e-5)
    assert decode.bytes_per_token(model) == sum(
        p.nbytes for name, p in model.named_parameters() if name != "embed.weight"
    ) + 2 * model.state_bytes(0)


def test_both_ways_to_train_do_the_same_step(monkeypatch):
    """The plain loop, and rows on threads. With plain descent a step shows the gradient itself."""
    monkeypatch.setattr(training, "optimiser", lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    monkeypatch.setattr(training, "default_workers", lambda _device, rows: rows)
    found = []
    for step in (training.plain_step, training.rows_step):
        model, _ = train_step.pair("ms", 64, 32)
        step(model, tokens())()
        found.append(dict(model.named_parameters()))
    for name, parameter in train_step.pair("ms", 64, 32)[0].named_parameters():
        one, two = (parameters[name] - parameter for parameters in found)
        assert one.abs().max() > 0, name
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_a_case_runs(tmp_path, capsys):
    assert main(["case", "--only", "slstm_op/w32_b1_forward", "--quick", "--out", str(tmp_path)]) == 0
    assert list(load(tmp_path)[0]["slstm_op"]) == ["w32_b1_forward"]
    assert "slstm_op/w32_b1_forward" in capsys.readouterr().out


@pytest.mark.slow
def test_every_case_runs(tmp_path):
    assert main(["cpu", "--quick", "--out", str(tmp_path)]) == 0
    assert load(tmp_path)[0].keys() == set(CASES)
