from typing import Any

import pytest
import torch
from torch import nn

from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import LETTERS, lm_from_pattern
from exlstm.train.config import TrainConfig
from exlstm.train.optimizer import adamw, decay_groups, decays


def model(**changes: object) -> LM:
    base = lm_from_pattern("".join(LETTERS), vocab_size=11, width=64)
    return LM(LMConfig(**{**{name: getattr(base, name) for name in base.__dataclass_fields__}, **changes}))


def test_matrices_decay_and_nothing_else() -> None:
    """Role by role, for every mixer there is: a new parameter must be given a row and a line here."""
    decaying, others = decay_groups(model())
    endings = {name.split(".", 2)[-1] if name.startswith("blocks.") else name for name in decaying}
    assert endings == {
        "head.weight",
        "mixer.up.weight",
        "mixer.down.weight",
        "mixer.q.weight_HVK",
        "mixer.k.weight_HVK",
        "mixer.v.weight_HVK",
        "mixer.i.weight",
        "mixer.f.weight",
        "mixer.w_HGVK",
        "mixer.w_GD",
        "mixer.q.weight",
        "mixer.k.weight",
        "mixer.v.weight",
        "mixer.o.weight",
        "mixer.out.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    endings = {name.split(".", 2)[-1] if name.startswith("blocks.") else name for name in others}
    assert endings == {
        "embed.weight",
        "norm.weight",
        "mixer_norm.weight",
        "mlp_norm.weight",
        "mixer.norm.weight",
        "mixer.conv.weight_DW",
        "mixer.conv.bias_D",
        "mixer.skip",
        "mixer.i.bias",
        "mixer.f.bias",
        "mixer.r_HKGV",
        "mixer.b_HGV",
        "mixer.u_GV",
        "mixer.b_G",
    }


@pytest.mark.parametrize("recurrence", ["diagonal", "low_rank", "sparse", "learned"])
def test_recurrent_weights_do_not_decay_whatever_their_structure(recurrence: Any) -> None:
    mixer = SLSTMConfig(recurrence=recurrence)
    lm = LM(LMConfig(vocab_size=11, width=16, blocks=(BlockConfig(mixer=mixer),)))
    decaying, others = decay_groups(lm)
    assert not [name for name in decaying if "recurrence" in name]
    assert [name for name in others if "recurrence" in name]


def test_groups_keep_the_order_of_the_model() -> None:
    lm = model()
    names = [name for name, _ in lm.named_parameters()]
    for group in decay_groups(lm):
        assert group == [name for name in names if name in group]


def test_a_tied_embedding_is_an_embedding() -> None:
    decaying, others = decay_groups(model(tie_embeddings=True))
    assert "embed.weight" in others
    assert not {"head.weight", "embed.weight"} & set(decaying)


def test_a_parameter_without_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"matches the parameter 'blocks\.0\.mixer\.alpha'"):
        decays("blocks.0.mixer.alpha")


def test_without_gradients_only_the_decaying_group_shrinks() -> None:
    lm = model()
    nn.init.normal_(lm.blocks[0].mixer.skip)  # type: ignore[union-attr,arg-type]
    before = {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}
    optimizer = adamw(lm, TrainConfig(lr=0.5, weight_decay=0.1))
    for parameter in lm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decaying, _ = decay_groups(lm)
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name in decaying else 1.0), msg=name)
