"""The cases themselves at tiny sizes, with peers made up: on a CPU through Triton's interpreter, on a GPU compiled."""

from functools import partial

import pytest
import torch

from benchmarks.bench import Bench
from benchmarks.gpu import attention, decode, mlstm_op, slstm_op
from benchmarks.gpu.device import SAME, here, machine
from benchmarks.gpu.work import Setup, Stage
from benchmarks.store import Store, load
from exlstm.ops.mlstm import mlstm
from exlstm.ops.slstm import slstm

pytest.importorskip("triton", reason="Triton has no wheel for this system")
SETUP = Setup(here(), torch.float32, True)


def done(folder, case, *names):
    """The records of a case, by measurement."""
    store = Store(folder, case.__name__.rpartition(".")[2], machine(), SAME)
    bench = Bench(store.path.stem, store, commit="c", quick=True, only=names, say=lambda _text: None)
    stage = Stage(bench=bench, setup=SETUP, marker=folder / "m")
    for work in case.works(SETUP):
        stage.measure(work)
    return bench.red, load(folder)[0][store.path.stem]


def peer(inputs, factor=1.0):
    """The mLSTM with heads first, as mlstm_kernels has it."""

    def op(*x):
        h_BTHV, _ = mlstm(*(y.transpose(1, 2) for y in x), backend="chunkwise")
        return factor * h_BTHV.transpose(1, 2)

    return op, inputs.heads_first, inputs.heads_first_grad


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.setattr(mlstm_op, "PEERS", {
        "mlstm_kernels good": (peer, mlstm_op.like_exp),
        "mlstm_kernels wrong": (partial(peer, factor=1.1), mlstm_op.like_exp),
        "mlstm_kernels other gate": (peer, mlstm_op.like_sigmoid),
    })  # fmt: skip


@pytest.mark.slow
def test_mlstm(tmp_path, peers):
    red, found = done(tmp_path, mlstm_op, "tiny_forward")
    record = found["tiny_forward"]
    assert red == 0
    assert record["milliseconds"].keys() == {"exlstm", "mlstm_kernels good"} == record["derived"]["roofline_ms"].keys()
    assert record["absent"].keys() == {"mlstm_kernels wrong", "mlstm_kernels other gate"}
    assert "its rows differ from the plain form's" in record["absent"]["mlstm_kernels wrong"]
    assert record["accuracy"]["exlstm"]["row_median"] < 1e-5
    assert "gradients within" in record["accuracy"]["exlstm"]["rule"]


@pytest.mark.slow  # as the mLSTM's case, whose test stays
def test_slstm(tmp_path):
    red, found = done(tmp_path, slstm_op, "h2v8_forward_backward")
    record = found["h2v8_forward_backward"]
    assert red == 0
    assert record["derived"]["us_per_step"].keys() >= {"exlstm", "exlstm with projection", "nn.LSTM"}
    assert record["ratios"]["exlstm with projection"]["nn.LSTM"]["of_medians"] > 0


def test_attention(tmp_path):
    red, found = done(tmp_path, attention, "t16_forward")
    assert red == 0
    assert "flash attention" in found["t16_forward"]["ratios"]["exlstm"]


def test_decode(tmp_path):
    red, found = done(tmp_path, decode)
    record = found["7b"]
    assert red == 0
    assert record["absent"] == {}
    assert record["derived"]["longest_over_shortest_context"] > 0
    assert record["accuracy"]["exlstm @24"]["difference_from_call"] < 1e-4


@pytest.mark.parametrize("page", [mlstm_op, slstm_op], ids=lambda page: page.__name__)
def test_a_slightly_wrong_kernel_is_refused(monkeypatch, page):
    op = {mlstm_op: mlstm, slstm_op: slstm}[page]

    def wrong(*x, backend):
        h, state = op(*x, backend=backend if backend == "recurrent" else "auto")
        return (h * 1.001 if backend == "triton" else h), state

    monkeypatch.setattr(page, op.__name__, wrong)
    page.rule.cache_clear()
    widths = (None,) if page is mlstm_op else ()
    with pytest.raises(AssertionError, match="output: relative error"):
        page.rule((16, 64) if page is mlstm_op else 8, *widths, SETUP)


def test_decoding_that_is_wrong_is_refused(tmp_path, monkeypatch):
    class Wrong(decode.TokenLoop):
        def __call__(self, tokens_B):
            return super().__call__(tokens_B) * 1.05

    monkeypatch.setattr(decode, "TokenLoop", Wrong)
    decode.check_few.cache_clear()
    red, found = done(tmp_path, decode)
    assert red == 1
    assert "its logits differ from the model's by" in found["7b"]["absent"]["exlstm @0"]
    with pytest.raises(AssertionError, match="error of the logits"):
        decode.check_few(SETUP)


def test_least_work():
    """By hand: of B 1, T 1, H 1, K 2, V 3; of attention with one head and four steps; of an sLSTM with one unit."""
    assert mlstm_op.cost((1, 1, 1, 2, 3), False) == (2 * 10 + 8, 24 + 64 * 5)
    assert mlstm_op.cost((1, 1, 1, 2, 3), True) == (2 * (12 + 15) + 24, 3 * (24 + 64 * 5))
    assert attention.cost(1, 1, 4, False) == (2 * 4 * 128 * 4, 2 * 4 * 4 * 128)
    assert slstm_op.cost(1, 1, 1, 1, False) == (2 * (5 + 4), 8)
    model = decode.Decoding(SETUP)
    weights = sum(p.numel() for name, p in model.model.named_parameters() if name != "embed.weight")
    assert model.cost() == (3 * (4 * weights + 2 * model.model.state_bytes()), 6 * weights)


def test_the_state_of_a_context_is_that_of_reading_it():
    made = decode.Decoding(SETUP)
    with torch.no_grad():
        _, want = made.model(made.tokens_T(24)[None])
    for got, expected in zip(made.state(24), want, strict=True):
        torch.testing.assert_close(got.c_BHKV, expected.c_BHKV, rtol=1e-4, atol=1e-5)
