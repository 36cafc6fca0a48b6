"""The peer of every mixer: transformers' model where it has one, else a torch form in the place of our op.

A torch form keeps our shell, parameters and the smaller ops around it, some of them kernels of ours. So it is faster
than the code that it stands for, never slower.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu.peers import fla, loops, scans
from benchmarks.cpu.peers.transformers import LikeTransformers, transformers_model
from exlstm.mixers import MIXERS
from exlstm.models.checkpoints.transformers.recurrent_gemma import scale
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One implementation that users have.

    forms: what stands in the place of names in the mixer's module; without any it is transformers' model.
    heads: of our model, whose rounds are how often both are timed. model: fields of our LMConfig, from its width.
    """

    about: str
    forms: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    heads: int = 4
    rounds: int = 7
    model: Callable[[int], dict[str, Any]] = lambda _: {}


def transformers(about: str, **options: Any) -> Peer:
    return Peer(about=f"transformers' {about}", **options)


def form(about: str, *, op: str, run: Callable[..., Any], **options: Any) -> Peer:
    return Peer(about=about, forms={op: run}, **options)


LOOP, JAX, FOURIER = "a loop over time", "an associative scan in torch", "a convolution by torch.fft"
GATED, NORMALIZED = "gated_linear_attention", "normalized_linear_attention"
CHUNK_LINEAR = "fla's naive_chunk_linear_attn"
PEERS: dict[str, Peer] = {
    "attention": transformers("Llama"),
    "lstm": form("torch.nn.LSTM", op="lstm", run=loops.torch_lstm),
    "gru": form("torch.nn.GRU", op="gru", run=loops.torch_gru, heads=1),
    "elman": form("torch.nn.RNN", op="elman", run=loops.torch_elman, heads=1),
    "mult_lstm": form(LOOP, op="mult_lstm", run=loops.loop_mult_lstm),
    "assoc_lstm": form(LOOP, op="assoc_lstm", run=loops.loop_assoc_lstm),
    "matrix_rnn": form(LOOP, op="matrix_rnn", run=loops.loop_matrix_rnn),
    "hgrn": form(JAX, op="scan", run=scans.associative_scan),
    "mingru": form(JAX, op="scan", run=scans.associative_scan),
    "minlstm": form(JAX, op="scan", run=scans.associative_scan),
    "rglru": transformers("RecurrentGemma", model=lambda width: {"logit_cap": 30.0, "embed_scale": scale(width)}),
    "lru": form(JAX, op="rotating_scan", run=scans.complex_scan),
    "s5": form(JAX, op="rotating_scan", run=scans.complex_scan),
    "s4d": form(FOURIER, op="lti", run=scans.fft_lti),
    "gss": form(FOURIER, op="lti", run=scans.fft_lti),
    "bigs": form(FOURIER, op="lti", run=scans.fft_lti),
    "h3": form(FOURIER, op="lti", run=scans.fft_lti),
    "hyena": form(FOURIER, op="long_conv", run=scans.fft_conv),
    "mega": form(FOURIER, op="ema", run=scans.fft_ema),
    "mamba": transformers("Mamba", rounds=3),
    "linear_attention": form(CHUNK_LINEAR, op=NORMALIZED, run=fla.linear_attn),
    "performer": form(CHUNK_LINEAR, op=NORMALIZED, run=fla.linear_attn),
    "based": Peer(about="fla's naive_parallel_based", forms={NORMALIZED: fla.based, "taylor": fla.untouched}),
    "retention": form("fla's naive_retention", op="linear_attention", run=fla.retention),
    "mamba2": transformers("Mamba-2", model=lambda _: {"norm_eps": 1e-5}),
    "mamba3": form("fla's naive_chunk_simple_gla", op="linear_attention", run=fla.simple_gla),
    "gla": form("fla's naive_recurrent_gla", op=GATED, run=fla.gla),
    "hgrn2": form("fla's naive_recurrent_gla", op=GATED, run=fla.gla),
    "abc": form("fla's naive_recurrent_abc", op="averaged_memory", run=fla.abc),
    "gsa": form("fla's naive_recurrent_gsa", op="bounded_memory", run=fla.gsa),
    "rwkv4": transformers("RWKV", model=lambda _: {"norm_bias": True, "embed_norm": True}),
    "rwkv5": form("fla's naive_recurrent_rwkv6", op=GATED, run=fla.rwkv6),
    "rwkv6": form("fla's naive_recurrent_rwkv6", op=GATED, run=fla.rwkv6),
    "rwkv7": form("fla's dplr_chunkwise", op="dplr_rule", run=fla.dplr),
    "deltanet": form("fla's delta_rule_chunkwise", op="delta_rule", run=fla.delta),
    "gated_deltanet": form("fla's naive_chunk_gated_delta_rule", op="delta_rule", run=fla.gated_delta),
}
NO_PEER = {
    "mlstm": "it is no rival; train_step times it beside xlstm",
    "mlstm_large": "it is no rival; train_llama times it beside Llama",
    "slstm": "it is no rival; train_step times it beside xlstm",
    "linformer": "no causal form of it was published",
    "rwkv_channel": "it is the MLP of RWKV's blocks, and is timed within them",
}


@contextmanager
def in_place_of(name: str, forms: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """The mixer's module with other functions under some of its names."""
    module = import_module(MIXERS[name].__module__)
    ours = {op: getattr(module, op) for op in forms}
    for op, run in forms.items():
        setattr(module, op, run)
    try:
        yield
    finally:
        for op, run in ours.items():
            setattr(module, op, run)


class WithForms(nn.Module):
    """Our model with a mixer's ops replaced."""

    def __init__(self, model: LM, name: str, forms: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.model, self.name, self.forms = model, name, forms

    def forward(self, tokens_BT: Tensor) -> Tensor:
        with in_place_of(self.name, self.forms):
            logits_BTC: Tensor = self.model(tokens_BT)[0]
        return logits_BTC

    def translated(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients under the names of ours."""
        return {name.removeprefix("model."): x for name, x in tensors.items()}


def our_model(name: str, *, width: int, vocabulary: int, blocks: int) -> LM:
    """Blocks of the mixer as it is published, with shaken weights."""
    peer = PEERS.get(name)
    config = lm_from_pattern(f"{name}*{blocks}", vocab_size=vocabulary, width=width, heads=peer.heads if peer else 4)
    torch.manual_seed(0)
    return shaken(LM(replace(config, **(peer.model(width) if peer else {}))))


@torch.no_grad()
def shaken(model: LM) -> LM:
    """The model with some noise on every parameter, so that all of them matter: many start at zero."""
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return model


def peer_of(name: str, model: LM) -> WithForms | LikeTransformers:
    """The peer with copies of the model's weights."""
    if PEERS[name].forms:
        return WithForms(copy.deepcopy(model), name, PEERS[name].forms)
    return transformers_model(model)
