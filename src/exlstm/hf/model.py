"""`LM` as a model of transformers: modules have the same names, so each reads what the other saved.

B batch  T columns of input  L columns when packed  D model width  C classes (vocabulary)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from exlstm.data.packing import IGNORE
from exlstm.hf.cache import ExlstmCache
from exlstm.hf.config import ExlstmConfig
from exlstm.hf.padding import Packing, next_tokens, own_targets, packing
from exlstm.mixers.state import LMState
from exlstm.models.lm import LM
from exlstm.train.loss import model_cross_entropy

_PARTS = ("embed", "positions", "embed_norm", "blocks", "norm", "head")


class ExlstmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The `LM` of an `ExlstmConfig` as a model of transformers, with `generate`, `Trainer` and `save_pretrained`.

    `ExlstmForCausalLM(config)` draws fresh weights. `from_pretrained(folder)` reads weights that `save_pretrained` or
    `exlstm.save` wrote. `ExlstmForCausalLM(config, lm)` shares the weights of `lm`.
    """

    config_class = ExlstmConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - an attribute that transformers reads
    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012 - the same

    def __init__(self, config: ExlstmConfig, lm: LM | None = None) -> None:
        super().__init__(config)
        lm = LM(config.lm_config()) if lm is None else lm
        # not a submodule: its parts are submodules here, under the same names
        self.__dict__["_lm"] = lm
        for name in _PARTS:
            setattr(self, name, getattr(lm, name))
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None
        for parameter in self.parameters():
            if not parameter.is_meta:
                parameter._is_hf_initialized = True
        self.post_init()

    @property
    def lm(self) -> LM:
        """The `exlstm.LM` with these weights, for `quantize`, `TokenLoop`, `explain` and all that takes an `LM`."""
        lm: LM = self.__dict__["_lm"]
        for name in _PARTS:
            if getattr(lm, name) is not getattr(self, name):
                setattr(lm, name, getattr(self, name))
        if lm.config.vocab_size != self.config.vocab_size:
            lm.config = replace(lm.config, vocab_size=self.config.vocab_size)
        lm.training = self.training
        return lm

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ExlstmCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool | None = None,
        **more: Tensor | None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, C] for the token after each column, and the loss if there are labels.

        input_ids: [B, T] integers.
        inputs_embeds: [B, T, D], in place of input_ids.
        attention_mask: [B, T] or longer, 0 for padding. Padding may be anywhere and does not change other columns; its
        logits are those of the last token before it.
        past_key_values: the cache that an earlier call returned for these rows.
        position_ids: not used.
        labels: [B, T], -100 where a label does not count; each token is predicted from the tokens before it.
        shift_labels: [B, T], in place of labels, each in the column that predicts it.
        num_items_in_batch: the divisor of the summed loss; None takes the mean.
        skip_logits: whether to leave out the logits; None leaves them out in training with labels.
        logits_to_keep: a number of last columns, or the columns, to make logits for; 0 is all.
        Raises ValueError for input of a wrong shape.
        """
        # not a parameter: a Trainer would take one of this name for a column that every data set has
        shift_labels = more.pop("shift_labels", None)
        if more:
            raise TypeError(f"{next(iter(more))!r} is no argument of an exlstm model; leave it out.")
        cache, inputs = _cache(past_key_values), _one_of(input_ids, inputs_embeds)
        packed = packing(attention_mask, inputs)
        lengths_B = None if packed is None else packed.lengths_B
        x_BLD, position = self._embed(inputs if packed is None else packed.pack(inputs), cache.state, lengths_B)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        x_BLD, state, hidden = self._run(x_BLD, cache.state, packed, bool(wanted))
        state = None if state is None else (*state, *position)
        loss, lm = None, self.lm
        given, align = (labels, next_tokens) if shift_labels is None else (shift_labels, own_targets)
        if given is not None:
            if given.shape != inputs.shape[:2]:
                raise ValueError(f"labels have shape {tuple(given.shape)}; the input has {tuple(inputs.shape[:2])}.")
            targets_BL = align(given, packed)
            count = (targets_BL != IGNORE).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = model_cross_entropy(lm, x_BLD, targets_BL) / count
        show: Callable[[Tensor], Tensor] = (lambda x: x) if packed is None else packed.unpack
        skip = self.training and given is not None if skip_logits is None else skip_logits
        logits = None if skip else lm.read_out(_columns(hidden[-1] if hidden else show(x_BLD), logits_to_keep))
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        after = ExlstmCache(state, cache.length + inputs.shape[1]) if use_cache and state is not None else None
        states = tuple(hidden) or None
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=after, hidden_states=states)
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def _embed(self, inputs: Tensor, state: LMState | None, lengths_B: Tensor | None) -> tuple[Tensor, LMState]:
        """The input of the first block, and the end of the state: see `LM.enter`."""
        lm = self.lm
        if inputs.ndim == 2:
            if lengths_B is not None:
                step_L = torch.arange(inputs.shape[1], device=inputs.device)
                # the token of padding may lie outside the vocabulary
                inputs = inputs.masked_fill(step_L >= lengths_B[:, None], 0)
            lm.check(inputs, state, None, lengths_B)
            x_BLD = self.embed(inputs)
        else:
            if inputs.ndim != 3 or inputs.shape[2] != self.config.width or not inputs.numel():
                raise ValueError(
                    f"inputs_embeds have shape {tuple(inputs.shape)}; pass [batch, time, {self.config.width}]."
                )
            lm.check(torch.zeros(inputs.shape[:2], dtype=torch.long), state, None, None)
            x_BLD = inputs
        return lm.enter(x_BLD, state, lengths_B=lengths_B)

    def _run(
        self, x_BLD: Tensor, before: LMState | None, packed: Packing | None, keep: bool
    ) -> tuple[Tensor, LMState | None, list[Tensor]]:
        """The output of the last norm, the state, and the hidden states if `keep` is true.

        Hidden states are the inputs of all blocks and the output of the last norm, in the columns of the input. With
        gradient checkpointing the state is None: it would keep the memory that checkpointing saves.
        """
        again = self._gradient_checkpointing_func if self.gradient_checkpointing and self.training else None
        lengths_B = None if packed is None else packed.lengths_B
        hidden: list[Tensor] = []
        after = []

        def kept(x_BLD: Tensor) -> Tensor:
            """Keeps x as a hidden state and returns it as the next input, so that it has gradients of the loss."""
            if not keep:
                return x_BLD
            hidden.append(x_BLD if packed is None else packed.unpack(x_BLD))
            return x_BLD if packed is None else packed.pack(hidden[-1])

        x_BLD = kept(x_BLD)
        for index, block in enumerate(self.blocks):
            run = partial(block, state=None if before is None else before[index], lengths_B=lengths_B)
            if again is None:
                x_BLD, state = run(x_BLD)
                after.append(state)
            else:
                # bound now: the function is called again in the backward, when `run` is another one
                x_BLD = again(lambda x_BLD, run=run: run(x_BLD)[0], x_BLD)
            if index == len(self.blocks) - 1 and self.norm is not None:
                x_BLD = self.norm(x_BLD)
            x_BLD = kept(x_BLD)
        return x_BLD, tuple(after) if again is None else None, hidden

    def initialize_weights(self) -> None:
        """Draws the parameters that were not in a file as a fresh model does."""
        # transformers marks a resized head at the module, and parameters from a file at each tensor
        missing = [
            f"{place}.{name}"
            for place, module in self.named_modules()
            if not getattr(module, "_is_hf_initialized", False)
            for name, x in module.named_parameters(recurse=False)
            if not getattr(x, "_is_hf_initialized", False)
        ]
        if missing:
            fresh, own = LM(self.config.lm_config()).state_dict(), self.state_dict()
            with torch.no_grad():
                for name in missing:
                    own[name].copy_(fresh[name])

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False, so that `generate` does not begin with a cache of keys and values."""
        return False


def from_lm(model: LM) -> ExlstmForCausalLM:
    """A model of transformers that shares the weights of `model`.

    Raises ValueError for a quantized model, whose config transformers could not save.
    """
    from exlstm.models.quantized import bits_of

    if (bits := bits_of(model)) is not None:
        raise ValueError(
            f"the model has {bits} weights, which transformers cannot save; pass the one it was made from."
        )
    wrapped = ExlstmForCausalLM(ExlstmConfig.from_lm(model.config), model)
    wrapped.train(model.training)
    return wrapped


def _cache(given: Any) -> ExlstmCache:
    if given is None:
        return ExlstmCache()
    if not isinstance(given, ExlstmCache):
        raise ValueError(
            f"past_key_values is a {type(given).__name__}; pass the ExlstmCache that an earlier call returned, or None."
        )
    return given


def _one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    if input_ids is not None and inputs_embeds is None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids have shape {tuple(input_ids.shape)}; pass [batch, time].")
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise ValueError("input_ids and inputs_embeds are both given or both missing; pass one of them.")


def _columns(x_BTD: Tensor, keep: int | Tensor) -> Tensor:
    """The last `keep` columns, or those that it lists; 0 keeps all."""
    return x_BTD[:, -keep:] if isinstance(keep, int) and keep else x_BTD if isinstance(keep, int) else x_BTD[:, keep]
