"""Models in every layout of checkpoints, and damage to their files."""

import torch
from safetensors.torch import load_file, save_file

from exlstm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern


def build(pattern="ms", **options):
    """A model without zeros and ones; of xLSTM-7B's blocks, with its cap on logits."""
    torch.manual_seed(0)
    if set(pattern) == {"M"}:
        options = {"logit_cap": 30.0, **options}
    model = LM(LMConfig(**{**vars(lm_from_pattern(pattern, vocab_size=11, width=32)), **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return one.config == two.config and a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


PATTERNS = {"exlstm": "msMal", "huggingface": "MM", "xlstm-large": "MM", "classic": "mms"}
# of each foreign layout: the embedding, a gate's bias and a matrix of the first block
NAMES = {
    "huggingface": ("backbone.embeddings.weight", "backbone.blocks.0.mlstm_layer.igate_preact.bias",
                    "backbone.blocks.0.mlstm_layer.out_proj.weight"),
    "xlstm-large": ("embedding.weight", "backbone.blocks.0.mlstm_layer.igate_preact.bias",
                    "backbone.blocks.0.mlstm_layer.out_proj.weight"),
    "classic": ("token_embedding.weight", "xlstm_block_stack.blocks.0.xlstm.mlstm_cell.igate.bias",
                "xlstm_block_stack.blocks.0.xlstm.proj_down.weight"),
}  # fmt: skip


def change(**changed):
    """Damage to the weights: by role, what takes the tensor's place (None: nothing); other names are added."""

    def apply(folder, names):
        tensors = load_file(folder / "model.safetensors")
        for role, x in changed.items():
            name = dict(zip(("embed", "gate", "matrix"), names, strict=True)).get(role, role.replace("__", "."))
            tensors.pop(name, None)
            if x is not None:
                tensors[name] = x
        save_file(tensors, folder / "model.safetensors")

    return apply


def written(name, text):
    def apply(folder, names):
        for config in folder.glob("config.*"):
            config.unlink()
        (folder / name).write_text(text)

    return apply
