"""Every mixer, and its options, with parameters away from their initial values, and what tests of all of them share."""

import pytest
import torch

from exlstm.mixers import MIXERS
from exlstm.mixers.assoc_lstm import AssocLSTMConfig
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.deltanet import DeltaNetConfig
from exlstm.mixers.elman import ElmanConfig
from exlstm.mixers.gated_deltanet import GatedDeltaNetConfig
from exlstm.mixers.gru import GRUConfig
from exlstm.mixers.h3 import H3Config
from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.hyena import HyenaConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mamba import MambaConfig
from exlstm.mixers.mamba2 import Mamba2Config
from exlstm.mixers.mamba3 import Mamba3Config
from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.mixers.mega import MegaConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.mult_lstm import MultLSTMConfig
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.mixers.s4d import S4DConfig
from exlstm.mixers.s5 import S5Config
from exlstm.mixers.slstm import SLSTMConfig

WIDTH = 32
CONFIGS = {name: config() for name, config in MIXERS.items()} | {
    "mlstm sigmoid gate": MLSTMConfig(input_gate="sigmoid"),
    "mlstm no normaliser": MLSTMConfig(input_gate="sigmoid", normalize=False),
    "mlstm relu": MLSTMConfig(input_gate="relu"),
    "mlstm exp forget": MLSTMConfig(input_gate="sigmoid", forget_gate="exp"),
    "mlstm conv of 1": MLSTMConfig(conv_width=1, heads=2, qkv_block=8),
    "mlstm biases": MLSTMConfig(bias=True, up_factor=1.35, up_multiple=4),
    "mlstm_large biases": MLSTMLargeConfig(bias=True),
    "mlstm_large no cap": MLSTMLargeConfig(gate_cap=None, key_factor=0.25, value_factor=2.0),
    "slstm no conv": SLSTMConfig(conv_width=0),
    "slstm no recurrence": SLSTMConfig(recurrence="none", heads=2),
    "slstm dense": SLSTMConfig(heads=1),
    "slstm exp forget": SLSTMConfig(forget_gate="exp", forget_bias="zeros", recurrent_init="uniform"),
    "slstm relu": SLSTMConfig(input_gate="relu2", recurrent_init="uniform"),
    "slstm no normaliser": SLSTMConfig(input_gate="relu", normalize=False, recurrent_init="uniform"),
    "slstm silu": SLSTMConfig(cell_activation="silu"),
    "slstm fewer blocks": SLSTMConfig(recurrence_blocks=2, recurrent_init="uniform"),
    "slstm diagonal": SLSTMConfig(recurrence="diagonal", recurrence_blocks=8),
    "slstm low rank": SLSTMConfig(recurrence="low_rank", recurrence_rank=3, recurrence_blocks=1),
    "slstm sparse": SLSTMConfig(recurrence="sparse", recurrence_degree=3),
    "slstm learned": SLSTMConfig(recurrence="learned", recurrence_blocks=2),
    "lstm heads": LSTMConfig(heads=4),
    "gru heads": GRUConfig(heads=4),
    "elman heads": ElmanConfig(heads=4),
    "mult_lstm heads": MultLSTMConfig(heads=4, forget_bias="power_law"),
    "assoc_lstm one copy": AssocLSTMConfig(copies=1, forget_bias="power_law"),
    "matrix_rnn elman": MatrixRNNConfig(cell="elman", key_width=5),
    "matrix_rnn no mixing": MatrixRNNConfig(mix="none", heads=2),
    "matrix_rnn elman no mixing": MatrixRNNConfig(cell="elman", mix="none"),
    "mamba norms": MambaConfig(norm_dtbc=True, states=5, up_factor=1.1, conv_width=1),
    "attention window": AttentionConfig(window=5),
    "attention window of 1": AttentionConfig(window=1),
    "deltanet fast weights": DeltaNetConfig(conv_width=0, feature_map="elu1", key_norm="sum"),
    "deltanet products": DeltaNetConfig(feature_map="dpfp", dpfp_degree=2, allow_neg_eigval=True),
    "gated_deltanet turning": GatedDeltaNetConfig(heads=2, conv_width=2, allow_neg_eigval=True),
    "attention shared keys": AttentionConfig(kv_heads=2, window=9, rope_base=100.0),
    "rwkv_channel of version 7": RWKVChannelConfig(share="past", receptance=False),
    "hgrn complex": HGRNConfig(form="complex"),
    "s5 gelu": S5Config(activation="gelu", up_factor=1.0),
    "s5 half_glu2": S5Config(activation="half_glu2"),
    "mamba2 groups": Mamba2Config(groups=2, state=6, conv_width=1),
    "mamba3 groups": Mamba3Config(groups=2, state=8),
    "attention without positions": AttentionConfig(rope_base=None),
    "attention biases": AttentionConfig(bias=True),
    "attention of RecurrentGemma": AttentionConfig(
        heads=2, kv_heads=1, head_width=12, rope_share=0.5, window=7, out_bias=True
    ),
    "s4d inverse law": S4DConfig(poles="inv", states=5),
    "h3 heads of 2": H3Config(head_width=2, conv_width=3, states=5),
    "hyena of 8 taps": HyenaConfig(filter_len=8, features=3),
    "mega chunks of 5, laplace": MegaConfig(chunk=5, distances=3, function="laplace", states=3, key_width=6),
    "mega without chunks": MegaConfig(chunk=None, distances=10, value_factor=0.5),
}


def slow(*conditions):
    return pytest.mark.slow if all(conditions) else ()


every = pytest.mark.parametrize("name", [pytest.param(n, marks=slow(n not in MIXERS)) for n in CONFIGS])


def build(name, dtype=torch.float64):
    """The mixer with every parameter away from the zeros and ones it starts from; for evaluation: without chance."""
    torch.manual_seed(1)
    mixer = CONFIGS[name].build(WIDTH, depth=3, index=1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixer.to(dtype).eval()


# float64 runs the definitions, float32 the kernels; how far two orders of summation may be apart in each
PRECISIONS = {torch.float64: 1e-9, torch.float32: 2e-4}
OURS = {name for name in CONFIGS if name in MIXERS or name.startswith(("mlstm", "slstm"))}
FIRST = {"mlstm", "mlstm_large", "slstm", "attention", "lstm"}


# By default the first mixers run through all tests in both precisions, and every other in float32, on its kernels; its
# definition is proven in tests/ops. Options of xLSTM's cells run through the tests of cuts, resets and padding, on
# their kernels; those of the rivals do among the slow tests.
in_every_precision, with_every_option = (
    pytest.mark.parametrize(
        ("name", "dtype"),
        [
            pytest.param(
                name,
                dtype,
                marks=slow(
                    name not in FIRST,
                    dtype == torch.float64 or name not in (OURS if options else MIXERS),
                ),
            )
            for name in CONFIGS
            for dtype in PRECISIONS
        ],
    )
    for options in (False, True)
)


def inputs(B=3, T=24, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def assert_close(got, want):
    tolerance = PRECISIONS[want.dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
