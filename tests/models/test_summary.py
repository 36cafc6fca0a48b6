"""What a model says about itself: summary, costs and backends."""

from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exlstm.infer.quantize import quantize
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.presets import preset
from exlstm.models.summary import flops_per_token, readable
from exlstm.ops.block_linear import reference as block_linear


def build(pattern, vocab=64, width=128):
    return LM(lm_from_pattern(pattern, vocab_size=vocab, width=width))


def test_summary_text():
    """Counted by hand for a width of 32: see the layers' formulas."""
    mlstm = 32 + 32 * 128 + 64 * 5 + 3 * 64 * 4 + 2 * (192 * 4 + 4) + 64 + 64 + 64 * 32
    slstm = 32 + 32 * 5 + 4 * 4 * 8 * 8 * 2 + 4 * 32 + 32 + 32 + 32 * 2 * 64 + 64 * 32
    mlstm_state, slstm_state = 4 * (3 * 64 + 4 * 16 * 16 + 4 * 16 + 4), 4 * (3 * 32 + 4 * 32)
    lines = LM(preset("laptop-tiny")).summary().splitlines()
    assert lines[0].split() == ["block", "mixer", "parameters", "state", "bytes"]
    assert lines[1].split() == ["0", "MLSTM", f"{mlstm:,}", f"{mlstm_state:,}"]
    assert lines[2].split() == ["1", "SLSTM", "+", "MLP", "64", "gelu", f"{slstm:,}", f"{slstm_state:,}"]
    assert lines[3].startswith("embedding 257 x 32 = 8,224 parameters, and as many in the head")
    assert lines[4] == f"total {mlstm + slstm + 2 * 8224 + 32:,} parameters"
    assert lines[5] == f"weights float32, {4 * (mlstm + slstm + 2 * 8224 + 32):,} bytes"
    assert all(word in lines[6] for word in ("FLOPs per token at 2,048 tokens", "train", "prefill", "decode"))
    assert f"{mlstm_state + slstm_state:,} after 32,768" in lines[7]


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_summary_of_quantised_weights(bits):
    """They count as before, and in bytes as they are stored; no line says float32 of them."""
    model = build("mms", width=128)
    small = quantize(model, bits)
    before, after = model.summary().splitlines(), small.summary().splitlines()
    stored = sum(x.numel() * x.itemsize for x in small.state_dict().values())
    assert [line for line in after if line not in before] == [f"weights {bits} and float32, {stored:,} bytes"]
    assert len(after) == len(before)


def test_summary_folds_equal_blocks():
    with torch.device("meta"):
        text = LM(preset("xlstm-7b")).summary()
    assert "   each, to block 31" in text
    assert "total 6,865,424,896 parameters" in text
    assert len(text.splitlines()) == 7
    assert (
        "tied to the head"
        in LM(type(preset("laptop-tiny"))(**{**vars(preset("laptop-tiny")), "tie_embeddings": True})).summary()
    )


def test_summary_of_a_state_that_grows():
    """A key, a value and a position for each step, beside the count of steps."""
    model = build("a")
    after = [2048 * (2 * 128 * 4 + 8) + 8, 16 * 2048 * (2 * 128 * 4 + 8) + 8]
    assert f"{after[0]:,} after 2,048 tokens, {after[1]:,} after 32,768" in model.summary()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1.23e6, "1.23 M"), (4.5e9, "4.5 G"), (1e12, "1 T")]
)
def test_readable(count, text):
    assert readable(count) == text


def counted(model, T, state=None):
    """FLOPs of all matrix products of one call, as torch counts them: in float64, where every op is torch's own."""
    model.double()
    with (
        mock.patch.object(block_linear, "MERGED_WIDTH", 1),  # merged blocks also multiply the zeros between them
        sdpa_kernel(SDPBackend.MATH),  # the fused attention of CPUs is unknown to the counter
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(torch.zeros(1, T, dtype=torch.long), state)
    return counter.get_total_flops()


def elementwise(model):
    """What the formulas count beyond matrix products, per token: the taps of the convolutions."""
    return sum(2 * p.numel() for name, p in model.named_parameters() if name.endswith("conv.weight_DW"))


@pytest.mark.parametrize("pattern", ["m", "M", "mM"])
@pytest.mark.parametrize("T", [64, 256])
def test_prefill_flops_of_the_mlstm(pattern, T):
    """Of all the products with the memory, only those with its n, a vector, are left out of the formula."""
    model = build(pattern)
    want = T * (flops_per_token(model, "prefill", T) - elementwise(model))
    assert want == pytest.approx(counted(model, T), rel=0.02)
    assert want <= counted(model, T)


def test_prefill_flops_of_attention():
    """torch counts the whole square of scores, the formula the half that a causal step sees."""
    model, T = build("a"), 64
    half = 2 * T * 128
    assert T * (flops_per_token(model, "prefill", T) + half) == pytest.approx(counted(model, T), rel=0.01)


def test_decode_flops_of_attention():
    """One step with T - 1 cached ones sees T."""
    model, T = build("a"), 200
    _, state = model(torch.zeros(1, T - 1, dtype=torch.long))
    assert flops_per_token(model, "decode", T) == pytest.approx(counted(model, 1, state), rel=0.01)


def test_decode_flops_of_the_mlstm():
    """A third of 6 K V per head is the product q C; the update, C f + i k v, is elementwise."""
    model = build("M")
    products = flops_per_token(model, "decode", 1) - 4 * 4 * 16 * 32
    assert products == pytest.approx(counted(model, 1), rel=0.01)


def test_recurrent_weights_are_counted_and_biases_are_not():
    model = build("s").double()  # float64: the plain form, whose products torch can count
    pointwise = 30 * 128 + elementwise(model)
    assert 8 * (flops_per_token(model, "prefill", 8) - pointwise) == pytest.approx(counted(model, 8), rel=1e-9)


@pytest.mark.parametrize("recurrence", ["diagonal", "low_rank", "sparse", "learned"])
@pytest.mark.parametrize("blocks", [None, 1])
def test_structured_recurrent_weights_are_counted_as_they_are_run(recurrence, blocks):
    """As dense ones; what puts them together once a call is not counted."""
    mixer = SLSTMConfig(recurrence=recurrence, recurrence_blocks=blocks)
    dense = SLSTMConfig(recurrence_blocks=blocks)
    flops = [
        flops_per_token(LM(LMConfig(vocab_size=64, width=32, blocks=(BlockConfig(mixer=each),))), "prefill", 8)
        for each in (mixer, dense)
    ]
    assert flops[0] == flops[1]


def test_blocks_of_an_lstm_are_counted_without_the_zeros_between_them():
    """Of U, a fourth of the numbers is there."""
    flops = [
        flops_per_token(LM(LMConfig(vocab_size=64, width=32, blocks=(BlockConfig(mixer=each),))), "prefill", 8)
        for each in (LSTMConfig(), LSTMConfig(heads=4))
    ]
    assert flops[0] - flops[1] == 2 * 4 * 32 * (32 - 8)


def test_training_is_three_times_the_forward():
    for pattern in ("m", "s", "a"):
        model = build(pattern)
        assert flops_per_token(model, "train", 100) == 3 * flops_per_token(model, "prefill", 100)
