"""Models of transformers with our weights, by the layouts in which we read and write theirs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exlstm.models.checkpoints.rules import Rule
from exlstm.models.checkpoints.saving import layout_for
from exlstm.models.lm import LM


class LikeTransformers(nn.Module):
    """transformers' model, and what takes its gradients to ours."""

    def __init__(self, model: nn.Module, rules: Sequence[Rule]) -> None:
        super().__init__()
        self.model, self.rules = model, rules

    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits_BTC: Tensor = self.model(tokens_BT, use_cache=False).logits
        return logits_BTC

    def translated(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients under the names of ours. Rules are linear but for what they add, which is their value at 0."""
        found = {}
        for rule in self.rules:
            theirs = [tensors[f"model.{name}"] for name in rule.theirs]
            offsets = rule.to_ours([torch.zeros_like(x) for x in theirs])
            pairs = zip(rule.ours, rule.to_ours(theirs), offsets, strict=True)
            found |= {name: x - offset for name, x, offset in pairs}
        return found


def transformers_model(ours: LM) -> LikeTransformers:
    """transformers' model of this architecture, in plain torch, with copies of our weights."""
    import transformers

    layout = layout_for("huggingface", ours.config)
    settings, rules = layout.write(ours.config), layout.rules(ours, None)
    # a token for padding would have no gradient in the embedding
    config = transformers.AutoConfig.for_model(**settings, pad_token_id=None)
    peer = getattr(transformers, settings["architectures"][0])(config)
    weights, found = ours.state_dict(), {}
    for rule in rules:
        theirs = rule.to_theirs([weights[name] for name in rule.ours])
        found |= {name: x.clone() for name, x in zip(rule.theirs, theirs, strict=True)}
    lacking = peer.load_state_dict(found, strict=False)
    tied = {"lm_head.weight"} if ours.config.tie_embeddings else set()
    assert set(lacking.missing_keys) <= tied, f"{lacking.missing_keys} of transformers' model have no value"
    assert not lacking.unexpected_keys, f"transformers' model has no {lacking.unexpected_keys}"
    return LikeTransformers(peer, rules)
