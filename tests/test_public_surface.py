"""The public names and signatures. Users notice a change here, so CHANGELOG.md has to say it."""

import inspect
import re

import pytest

import exlstm
from exlstm.ops import attention, conv, linear, lstm, mlstm, norm, rope, slstm

MODULES_AND_VALUES = ["MIXERS", "PRESETS", "__version__", "mixers", "ops"]
SURFACE = {
    # models
    "LM": "(config: LMConfig) -> None",
    "LM.forward": (
        "(self, tokens_BT: Tensor, state: tuple[Any, ...] | None = None, *, reset_BT: Tensor | None = None, "
        "lengths_B: Tensor | None = None) -> tuple[Tensor, tuple[Any, ...]]"
    ),
    "LM.zero_state": "(self, batch: int) -> tuple[Any, ...]",
    "LM.state_bytes": "(self, length: int = 0) -> int",
    "LM.summary": "(self, length: int = 2048) -> str",
    "LMConfig": (
        "(*, vocab_size: int, width: int, blocks: tuple[BlockConfig, ...], norm: Literal['layer', 'rms'] = 'layer', "
        "norm_eps: float = 1e-05, tie_embeddings: bool = False, logit_cap: float | None = None, dropout: float = "
        "0.0, norm_bias: bool = False, out_norm: bool = True, embed_scale: float | None = None, positions: int | "
        "None = None, embed_norm: bool = False, residual: bool = True) -> None"
    ),
    "BlockConfig": "(*, mixer: MixerConfig, mlp: MLPConfig | None = None) -> None",
    "MLPConfig": (
        "(*, hidden: int, activation: Literal['gelu', 'gelu_tanh', 'silu', 'relu', 'relu2', 'sigmoid', 'selu'] = "
        "'gelu', bias: bool = False, gated: bool = True) -> None"
    ),
    "preset": "(name: str, *, vocab_size: int | None = None) -> LMConfig",
    "xlstm_pattern": "(ratio: str, depth: int, *, slstm_at: tuple[int, ...] | None = None) -> str",
    "lm_from_pattern": "(pattern: str, *, vocab_size: int, width: int, heads: int = 4) -> LMConfig",
    # encoders
    "XLSTM": (
        "(input_size: int, hidden_size: int, num_layers: int | None = None, *, pattern: str = 'ms', num_heads: int = "
        "4, dropout: float = 0.0, bidirectional: bool = False, config: EncoderConfig | None = None, device: device | "
        "str | None = None, dtype: dtype | None = None) -> None"
    ),
    "XLSTM.forward": (
        "(self, x_BTI: Tensor, state: tuple[Any, ...] | None = None, *, lengths: Any = None, reset: Tensor | None = "
        "None) -> tuple[Tensor, tuple[Any, ...]]"
    ),
    "XLSTM.zero_state": "(self, batch: int) -> tuple[Any, ...]",
    "XLSTM.state_bytes": "(self, length: int = 0) -> int",
    "EncoderConfig": (
        "(*, input_size: int, width: int, blocks: tuple[BlockConfig, ...], norm: Literal['layer', 'rms'] = 'layer', "
        "norm_eps: float = 1e-05, norm_bias: bool = False, dropout: float = 0.0, out_norm: bool = True, residual: "
        "bool = True, bidirectional: bool = False) -> None"
    ),
    "VisionXLSTM": "(config: VisionConfig) -> None",
    "VisionXLSTM.forward": "(self, images_BIHW: Tensor) -> Tensor",
    "VisionConfig": (
        "(*, height: int, breadth: int, channels: int, classes: int, width: int, blocks: tuple[BlockConfig, ...], "
        "patch: int = 16, pool: Literal['mean', 'ends'] = 'mean', norm: Literal['layer', 'rms'] = 'layer', norm_eps: "
        "float = 1e-06, norm_bias: bool = True, dropout: float = 0.0) -> None"
    ),
    "lengths_of": "(src_key_padding_mask: Tensor) -> Tensor",
    # checkpoints
    "load": (
        "(path: str | PathLike[str], *, dtype: dtype | None = None, device: str | device = 'cpu', weights: "
        "Optional[Literal['int8', 'int4']] = None) -> Any"
    ),
    "save": (
        "(model: LM | XLSTM | Forecaster, folder: str | PathLike[str], *, layout: str = 'exlstm', overwrite: bool = "
        "False) -> None"
    ),
    "convert": (
        "(source: str | PathLike[str], folder: str | PathLike[str], *, layout: str = 'exlstm', dtype: dtype | None = "
        "None, weights: Optional[Literal['int8', 'int4']] = None, shard_bytes: int = 2147483648, overwrite: bool = "
        "False) -> Checkpoint"
    ),
    "quantize": "(model: LM, weights: Literal['int8', 'int4']) -> LM",
    "keep_freed_memory": "() -> Iterator[None]",
    "export": (
        "(model: Module | str | Path, path: str | Path, *, format: Literal['onnx', 'torch'] = 'onnx', part: "
        "Literal['step', 'chunk', 'sequence'] = 'step', steps: int = 16, context: int | None = None, int8: bool = "
        "False, overwrite: bool = False) -> Exported"
    ),
    "explain": "(model: Module, batch: int = 1, length: int = 128) -> Table",
    "TokenLoop": "(model: Module, state: tuple[Any, ...] | None = None, *, replay: bool = True) -> None",
    "StepLoop": "(net: RecurrentNet | XLSTM, state: Any = None, *, replay: bool = True) -> None",
    "StepLoop.__call__": "(self, x_BD: Tensor, reset: Tensor | None = None) -> Tensor",
    # generation
    "generate": (
        "(model: LM, prompts: Sequence[str | Sequence[int] | Tensor | Snapshot | Request], *, max_tokens: int = 256, "
        "sampling: SamplingConfig | Sequence[SamplingConfig] | None = None, seeds: Sequence[int] | None = None, "
        "stop_tokens: Collection[int] = (), stop: str | Sequence[str] = (), logprobs: int | None = None, "
        "keep_snapshots: bool = False, tokenizer: Tokenizer | None = None, cache: PrefixCache | None = None, slots: "
        "int = 16) -> list[Completion]"
    ),
    "stream": (
        "(model: LM, prompts: Sequence[str | Sequence[int] | Tensor | Snapshot | Request], *, max_tokens: int = 256, "
        "sampling: SamplingConfig | Sequence[SamplingConfig] | None = None, seeds: Sequence[int] | None = None, "
        "stop_tokens: Collection[int] = (), stop: str | Sequence[str] = (), logprobs: int | None = None, "
        "keep_snapshots: bool = False, tokenizer: Tokenizer | None = None, cache: PrefixCache | None = None, slots: "
        "int = 16) -> Iterator[Event]"
    ),
    "Request": (
        "(*, prompt: str | Sequence[int] | Tensor = (), after: Snapshot | None = None, max_tokens: int = 256, "
        "sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, "
        "repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0), seed: int = 0, stop_tokens: "
        "Collection[int] = (), stop: str | Sequence[str] = (), stop_at_boundary: bool = True, min_tokens: int = 0, "
        "logit_bias: Mapping[int, float] = <factory>, constraint: Constraint | None = None, logprobs: int | None = "
        "None, prompt_logprobs: int | None = None, logprobs_from: int = 0, keep_snapshot: bool = False, cache: "
        "'PrefixCache | None' = None, cache_at: Collection[int] = (), cache_completion: bool = False) -> None"
    ),
    "Event": (
        "(*, request: int, token: int | None = None, text: str = '', logprob: float | None = None, top_logprobs: "
        "tuple[tuple[int, float], ...] | None = None, finish_reason: Optional[Literal['stop', 'length', 'error']] = "
        "None, stop: int | str | None = None, error: str | None = None, cause: BaseException | None = None, "
        "cached_tokens: int = 0, prompt_logprobs: tuple[PromptLogprob, ...] = (), snapshot: Snapshot | None = None, "
        "completion: tuple[int, ...] = ()) -> None"
    ),
    "Completion": (
        "(*, tokens: tuple[int, ...], text: str | None, finish_reason: Literal['stop', 'length', 'error'], stop: int "
        "| str | None, error: str | None, prompt_tokens: int, cached_tokens: int, logprobs: tuple[float, ...] | None,"
        " top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None, prompt_logprobs: tuple[PromptLogprob, ...],"
        " snapshot: Snapshot | None) -> None"
    ),
    "SamplingConfig": (
        "(*, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0, "
        "repetition_penalty: float = 1.0, frequency_penalty: float = 0.0, presence_penalty: float = 0.0) -> None"
    ),
    "Engine": (
        "(model: LM, *, slots: int = 16, cache: PrefixCache | None = None, tokenizer: Tokenizer | None = None, "
        "prefill_tokens: int = 256) -> None"
    ),
    "Engine.submit": "(self, request: Request) -> int",
    "Engine.step": "(self) -> list[Event]",
    "Engine.run": "(self) -> Iterator[Event]",
    "Engine.cancel": "(self, number: int) -> bool",
    "PrefixCache": "(max_bytes: int, *, min_tokens: int = 16) -> None",
    # states
    "rows": "(state: Any, index: Tensor) -> Any",
    "detach": "(state: Any) -> Any",
    "LM.read": (
        "(self, prompts: 'Tokens | Sequence[Tokens]', after: 'Snapshot | None' = None, *, chunk_len: int = 512) -> "
        "'Snapshot'"
    ),
    "Snapshot": (
        "(*, state: tuple[Any, ...], logits_BC: Tensor, seen_BC: Tensor, counts: tuple[int, ...], weights: Weights) "
        "-> None"
    ),
    "Snapshot.rows": "(self, index: int | Sequence[int]) -> 'Snapshot'",
    "Snapshot.fork": "(self, n: int) -> 'Snapshot'",
    "Snapshot.join": "(parts: 'Sequence[Snapshot]') -> 'Snapshot'",
    "save_state": "(snapshot: Snapshot, file: str | PathLike[str], *, tokenizer_digest: str | None = None) -> None",
    "load_state": "(file: str | PathLike[str], model: LM, *, tokenizer_digest: str | None = None) -> Snapshot",
    # drop-ins for torch.nn.LSTM
    "SLSTM": (
        "(input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = "
        "False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: device | str |"
        " None = None, dtype: dtype | None = None, *, num_heads: int | None = None, forget_bias: "
        "Literal['power_law', 'linspace', 'zeros'] = 'power_law', recurrent_init: Literal['uniform', 'zeros']"
        " = 'uniform', backend: str = 'auto') -> None"
    ),
    "SLSTM.forward": (
        "(self, input: Tensor | PackedSequence, hx: Any = None, *, lengths: Any = None, reset: Tensor | None "
        "= None) -> tuple[Any, tuple[Tensor, Tensor]]"
    ),
    "SLSTM.zero_state": "(self, batch: int) -> tuple[Tensor, Tensor]",
    "SLSTM.unpack_state": "(self, hx: tuple[Tensor, Tensor]) -> Any",
    "MLSTM": (
        "(input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = "
        "False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: device | str |"
        " None = None, dtype: dtype | None = None, *, num_heads: int | None = None, qk_size: int | None = "
        "None, gate_soft_cap: float | None = 15.0, backend: str = 'auto') -> None"
    ),
    "LSTM": (
        "(input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = "
        "False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: device | str |"
        " None = None, dtype: dtype | None = None, *, backend: str = 'auto') -> None"
    ),
    "SLSTMCell": (
        "(input_size: int, hidden_size: int, bias: bool = True, device: device | str | None = None, dtype: "
        "dtype | None = None, *, num_heads: int | None = None, forget_bias: Literal['power_law', 'linspace', "
        "'zeros'] = 'power_law', recurrent_init: Literal['uniform', 'zeros'] = 'uniform', backend: str = "
        "'auto') -> None"
    ),
    "SLSTMCell.forward": "(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]",
    "MLSTMCell": (
        "(input_size: int, hidden_size: int, bias: bool = True, device: device | str | None = None, dtype: "
        "dtype | None = None, *, num_heads: int | None = None, qk_size: int | None = None, gate_soft_cap: "
        "float | None = 15.0, backend: str = 'auto') -> None"
    ),
    "LSTMCell": (
        "(input_size: int, hidden_size: int, bias: bool = True, device: device | str | None = None, dtype: "
        "dtype | None = None, *, backend: str = 'auto') -> None"
    ),
    "replace_lstm": "(model: Module, kind: Literal['slstm', 'mlstm', 'lstm'] = 'slstm', **options: Any) -> Module",
    "warm_up": "(*models: Module) -> None",
    "flat_state": "(model: FixedSizeModel, state: tuple[Any, ...]) -> Tensor",
    "unflat_state": "(model: FixedSizeModel, flat_BW: Tensor) -> tuple[Any, ...]",
    # mixers
    "MLSTMConfig": (
        "(*, heads: int = 4, up_factor: float = 2.0, conv_width: int = 4, qkv_block: int = 4, input_gate: "
        "Literal['exp', 'sigmoid', 'softplus', 'relu', 'relu2'] = 'exp', normalize: bool = True, norm_eps: float = "
        "1e-05, bias: bool = False, up_multiple: int = 64, forget_gate: Literal['sigmoid', 'exp'] = 'sigmoid', "
        "input_gate_sees: Literal['input', 'bias', 'start'] = 'input', forget_gate_sees: Literal['input', 'bias', "
        "'start'] = 'input') -> None"
    ),
    "MLSTMLargeConfig": (
        "(*, heads: int = 4, key_factor: float = 0.5, value_factor: float = 1.0, gate_cap: float | None = 15.0, "
        "input_gate: Literal['exp', 'sigmoid', 'softplus', 'relu', 'relu2'] = 'exp', normalize: bool = True, "
        "norm_eps: float = 1e-06, bias: bool = False) -> None"
    ),
    "SLSTMConfig": (
        "(*, heads: int = 4, conv_width: int = 4, forget_gate: Literal['sigmoid', 'exp'] = 'sigmoid', "
        "cell_activation: Literal['tanh', 'identity', 'silu', 'gelu', 'sin', 'softsign'] = 'tanh', recurrence: "
        "Literal['block', 'none', 'diagonal', 'low_rank', 'sparse', 'learned'] = 'block', recurrence_blocks: int | "
        "None = None, recurrence_rank: int = 4, recurrence_degree: int = 4, recurrence_seed: int = 0, "
        "recurrent_init: Literal['zeros', 'uniform'] = 'zeros', forget_bias: Literal['power_law', 'linspace', "
        "'zeros'] = 'power_law', norm_eps: float = 1e-05, input_gate: Literal['exp', 'sigmoid', 'softplus', 'relu', "
        "'relu2'] = 'exp', normalize: bool = True) -> None"
    ),
    "AttentionConfig": (
        "(*, heads: int = 4, kv_heads: int | None = None, window: int | None = None, rope_base: float | None = "
        "10000.0, rope_share: float = 1.0, head_width: int | None = None, bias: bool = False, out_bias: bool | None = "
        "None) -> None"
    ),
    "LSTMConfig": "(*, heads: int = 1, forget_bias: Union[float, Literal['power_law']] = 1.0) -> None",
    # ops
    "ops.mlstm.mlstm": (
        "(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState | None = "
        "None, /, *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, cu_seqlens: Tensor | None = "
        "None, input_gate: Literal['exp', 'sigmoid', 'softplus', 'relu', 'relu2'] = 'exp', forget_gate: "
        "Literal['sigmoid', 'exp'] = 'sigmoid', normalize: bool = True, eps: float = 1e-06, chunk_len: int | None = "
        "None, backend: str = 'auto') -> tuple[Tensor, MLSTMState]"
    ),
    "ops.mlstm.zero_state": "(k_BTHK: Tensor, v_BTHV: Tensor, /) -> MLSTMState",
    "ops.mlstm.MLSTMState": "(c_BHKV: Tensor, n_BHK: Tensor, m_BH: Tensor)",
    "ops.slstm.slstm": (
        "(x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState | None = None, /, *, reset_BT: Tensor | None = "
        "None, lengths_B: Tensor | None = None, input_gate: Literal['exp', 'sigmoid', 'softplus', 'relu', 'relu2'] = "
        "'exp', forget_gate: Literal['sigmoid', 'exp'] = 'sigmoid', cell_activation: Literal['tanh', 'identity', "
        "'silu', 'gelu', 'sin', 'softsign'] = 'tanh', normalize: bool = True, backend: str = 'auto') -> "
        "tuple[Tensor, SLSTMState]"
    ),
    "ops.slstm.zero_state": "(x_BTHGV: Tensor, /) -> SLSTMState",
    "ops.slstm.SLSTMState": "(h_BHV: Tensor, c_BHV: Tensor, n_BHV: Tensor, m_BHV: Tensor)",
    "ops.attention.attention": (
        "(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, state: AttentionState | WindowState | None = None, /, "
        "*, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, window: int | None = None, rope_base: "
        "float | None = 10000.0, rope_share: float = 1.0, backend: str = 'auto') -> tuple[Tensor, AttentionState | "
        "WindowState]"
    ),
    "ops.attention.AttentionState": "(k_BSGK: Tensor, v_BSGK: Tensor, position_BS: Tensor, next_B: Tensor)",
    "ops.attention.WindowState": "(k_BSGK: Tensor, v_BSGK: Tensor, next_B: Tensor)",
    "ops.lstm.lstm": (
        "(x_BTD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /, *, reset_BT: Tensor | None = "
        "None, lengths_B: Tensor | None = None, backend: str = 'auto') -> tuple[Tensor, LSTMState]"
    ),
    "ops.lstm.LSTMState": "(h_BV: Tensor, c_BV: Tensor)",
    "ops.conv.causal_conv": (
        "(x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, state: ConvState, /, *, reset_BT: Tensor | None = None, "
        "lengths_B: Tensor | None = None, activation: Literal['none', 'silu'] = 'none', backend: str = 'auto') -> "
        "tuple[Tensor, ConvState]"
    ),
    "ops.conv.ConvState": "(past_BSD: Tensor)",
    "ops.linear.linear": (
        "(x: Tensor, weight: Tensor | Int8Weight | Int4Weight, bias: Tensor | None = None, /, *, backend: str = "
        "'auto') -> Tensor"
    ),
    "ops.rope.rope": "(x_BTHK: Tensor, position_BT: Tensor, *, base: float = 10000.0, share: float = 1.0) -> Tensor",
    "ops.norm.layer_norm": "(x: Tensor, gain_D: Tensor, eps: float, bias_D: Tensor | None = None) -> Tensor",
    "ops.norm.rms_norm": "(x: Tensor, gain_D: Tensor, eps: float, bias_D: Tensor | None = None) -> Tensor",
    "ops.norm.head_norm": (
        "(x_BTHV: Tensor, gain_HV: Tensor, eps: float, bias_HV: Tensor | None = None, *, norm: Literal['layer', 'rms'] "
        "= 'layer') -> Tensor"
    ),
}
OPS = {
    "attention": attention,
    "conv": conv,
    "linear": linear,
    "lstm": lstm,
    "mlstm": mlstm,
    "norm": norm,
    "rope": rope,
    "slstm": slstm,
}


def named(path):
    """The object of a dotted name below `exlstm`."""
    first, *rest = path.split(".")
    found = OPS[rest.pop(0)] if first == "ops" else getattr(exlstm, first)
    for name in rest:
        found = getattr(found, name)
    return found


def signature(thing):
    """As Python prints it, without the modules of the types and the ranges of the fields."""
    if isinstance(thing, type) and hasattr(thing, "_fields"):
        thing = thing.__new__
        text = str(inspect.signature(thing)).replace("(_cls, ", "(")
    else:
        text = str(inspect.signature(thing))
    text = re.sub(r"Annotated\[(\w+), Range\([^()]*\)\]", r"\1", re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text))
    return re.sub(r"Optional\[(\w+)\]", r"\1 | None", text)


def test_the_names():
    top = [name for name in SURFACE if "." not in name]
    assert sorted(exlstm.__all__) == sorted([*top, *MODULES_AND_VALUES])
    assert len(set(exlstm.__all__)) == len(exlstm.__all__)


@pytest.mark.parametrize("path", SURFACE)
def test_the_signatures(path):
    assert signature(named(path)) == SURFACE[path]


@pytest.mark.parametrize("path", SURFACE)
def test_everything_public_says_what_it_is(path):
    thing = named(path)
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{thing.__name__}("), "Python made this docstring"


def test_the_mixers_have_these_names():
    """Saved models hold them."""
    assert {name: config.__name__ for name, config in exlstm.MIXERS.items()} == {
        "mlstm": "MLSTMConfig",
        "mlstm_large": "MLSTMLargeConfig",
        "slstm": "SLSTMConfig",
        "attention": "AttentionConfig",
        "lstm": "LSTMConfig",
        "gru": "GRUConfig",
        "elman": "ElmanConfig",
        "mult_lstm": "MultLSTMConfig",
        "assoc_lstm": "AssocLSTMConfig",
        "matrix_rnn": "MatrixRNNConfig",
        "hgrn": "HGRNConfig",
        "mingru": "MinGRUConfig",
        "minlstm": "MinLSTMConfig",
        "rglru": "RGLRUConfig",
        "lru": "LRUConfig",
        "s5": "S5Config",
        "s4d": "S4DConfig",
        "gss": "GSSConfig",
        "bigs": "BiGSConfig",
        "h3": "H3Config",
        "hyena": "HyenaConfig",
        "mega": "MegaConfig",
        "mamba": "MambaConfig",
        "linear_attention": "LinearAttentionConfig",
        "performer": "PerformerConfig",
        "based": "BasedConfig",
        "retention": "RetentionConfig",
        "mamba2": "Mamba2Config",
        "mamba3": "Mamba3Config",
        "gla": "GLAConfig",
        "hgrn2": "HGRN2Config",
        "rwkv4": "RWKV4Config",
        "rwkv5": "RWKV5Config",
        "rwkv6": "RWKV6Config",
        "rwkv7": "RWKV7Config",
        "rwkv_channel": "RWKVChannelConfig",
        "deltanet": "DeltaNetConfig",
        "gated_deltanet": "GatedDeltaNetConfig",
        "abc": "ABCConfig",
        "gsa": "GSAConfig",
        "linformer": "LinformerConfig",
    }


def test_the_presets_have_these_names():
    papers = [f"xlstm-{size}-{ratio}" for size in ("125m", "350m", "760m", "1.3b", "2.7b") for ratio in ("1:0", "7:1")]
    synthetic = [f"synthetic-{ratio}" for ratio in ("1:0", "0:1", "1:1")]
    laptop = [f"laptop-{size}" for size in ("tiny", "small", "medium", "large")]
    rivals = ["gpt3-356m", "llama-407m", "hgrn-411m", "hgrn2-411m", "gla-412m", "mamba-423m"]
    rivals += ["rwkv4-430m", "rwkv5-456m", "rwkv6-442m", "h3-420m", "hyena-435m", "retnet-431m"]
    rivals += [f"mamba-{size}" for size in ("130m", "370m", "790m", "1.4b", "2.8b")]
    rivals += [f"mamba2-{size}" for size in ("130m", "370m", "780m", "1.3b", "2.7b")]
    rivals += [f"rwkv4-{size}" for size in ("169m", "1.5b", "3b", "7b", "14b")]
    rivals += ["rwkv5-0.4b", "rwkv6-1.6b", "gla-340m", "hyena-153m", "recurrentgemma-2b", "recurrentgemma-9b"]
    assert sorted(exlstm.PRESETS) == sorted([*papers, "xlstm-7b", *synthetic, *laptop, *rivals])


def test_the_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", exlstm.__version__)
