"""Loss, gradients, checkpointing and a Trainer's steps."""

import pytest
import torch
import transformers
from hf_cases import VOCAB, both, build, padded, tokens
from torch.testing import assert_close

from exlstm.hf import from_lm

# the new name of these settings is younger than the oldest transformers that is supported
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")
ROWS = [tokens(length, seed=length) for length in (7, 4, 2)]


def mean_loss(logits_BTC, labels_BT):
    """The definition: cross entropy of each next label, those of -100 left out."""
    return torch.nn.functional.cross_entropy(logits_BTC[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_mean_over_labels_that_count(training):
    _, model = both(logit_cap=5.0)
    model.train(training)
    input_ids = tokens(2, 9)
    labels = input_ids.clone()
    labels[0, 3:5] = -100
    expected = mean_loss(model(input_ids).logits, labels)
    output = model(input_ids, labels=labels)
    assert_close(output.loss, expected)
    # nobody reads logits in training; who does says so
    assert (output.logits is None) == training
    assert model(input_ids, labels=labels, skip_logits=False).logits.shape == (2, 9, VOCAB)
    # 16 labels have a token before them, 2 of them do not count
    assert_close(model(input_ids, labels=labels, num_items_in_batch=7).loss, expected * 14 / 7)


@pytest.mark.parametrize("columns", [[range(7), range(3, 7), range(5, 7)], [range(7), (0, 2, 3, 6), (1, 4)]])
def test_padding_changes_no_loss_and_no_gradient(columns):
    _, model = both()
    input_ids, mask = padded(ROWS, columns)
    model(input_ids, mask, labels=input_ids, num_items_in_batch=1).loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total = sum(model(line[None], labels=line[None], num_items_in_batch=1).loss for line in ROWS)
    total.backward()
    for name, p in model.named_parameters():
        assert_close(found.pop(0), p.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant, dtype):
    _, model = both(dtype=dtype, tie_embeddings=True)
    input_ids, mask = padded(ROWS, [range(7), range(3, 7), range(5, 7)])
    kept = []

    def gradients():
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            output = model(input_ids, mask, labels=input_ids)
        output.loss.backward()
        return output, [p.grad.clone() for p in model.parameters()]

    model.train()
    plain, expected = gradients()
    plain_kept = sum(kept)
    kept.clear()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    output, found = gradients()
    # a forward without gradients may take other kernels than the one that is run again with them
    assert_close(output.loss, plain.loss)
    for one, two in zip(found, expected, strict=True):
        assert_close(one, two)
    assert sum(kept) < plain_kept / 2
    assert output.past_key_values is None
    model.gradient_checkpointing_disable()
    kept.clear()
    gradients()
    assert sum(kept) == plain_kept


@pytest.mark.parametrize("place", [None, [range(7), range(3, 7), (0, 5)]], ids=["whole", "padded"])
def test_labels_that_are_shifted_already(place):
    """shift_labels stand in the column that predicts them, so the last column has one too."""
    _, model = both()
    input_ids, mask = (tokens(3, 7), None) if place is None else padded(ROWS, place)
    targets = tokens(3, 7, seed=9)
    output = model(input_ids, mask, shift_labels=targets, labels=input_ids, skip_logits=False)
    counted = slice(None) if mask is None else mask.bool()
    expected = torch.nn.functional.cross_entropy(output.logits[counted].view(-1, VOCAB), targets[counted].flatten())
    assert_close(output.loss, expected)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match=r"^'fast' is no argument of an exlstm model; leave it out\.$"):
        both("m")[1](tokens(1, 2), fast=True)


class Rows(torch.utils.data.Dataset):
    """Sixteen rows that count upwards: easy to learn."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        row = (torch.arange(12) + index) % VOCAB
        return {"input_ids": row, "labels": row.clone()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trainer_lowers_the_loss(tmp_path, accumulation):
    model = from_lm(build("ms", torch.float32, tie_embeddings=True)).train()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation, learning_rate=1e-2, logging_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, gradient_checkpointing=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=Rows(), eval_dataset=Rows())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # a fresh model is as good as a guess, and what is logged is a mean per token also where steps are added up
    assert before == pytest.approx(torch.tensor(float(VOCAB)).log().item(), rel=0.1)
    assert logged[0] == pytest.approx(before, rel=0.05)
    assert after < before / 2
    trainer.save_model(str(tmp_path / "saved"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.embed.weight, model.embed.weight)
    assert again.head.weight is again.embed.weight
