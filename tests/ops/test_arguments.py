"""What ops are given beside their input, the same for all of them: resets, lengths, states, padding, and no rows."""

from functools import partial

import pytest
import torch
from op_cases import OPS, results

from exlstm.ops.block_linear import block_linear
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.linear import linear
from exlstm.ops.norm import layer_norm
from exlstm.runtime.cpu.kernel import address

every = pytest.mark.parametrize("name", OPS)
in_every_dtype = pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, op in OPS.items() for dtype in op.dtypes]
)


def same(got, want):
    """Bit for bit, also where there are no numbers."""
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key], value), key


def refused(error, *words):
    """One sentence, which says these words."""
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert ". " not in text
    assert all(word in text for word in words), text


def rows_for(B, T):
    """Resets and lengths of every kind: rows of no steps, of some, and of all."""
    reset = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.3
    return {"reset_BT": reset, "lengths_B": torch.tensor([T, 0, T // 2][:B], dtype=torch.long)}


@in_every_dtype
@pytest.mark.parametrize("T", [1, 7])
def test_narrow_states_are_widened(name, dtype, T):
    """bfloat16, float16 and, beside float64, float32: what they hold is read as what it is."""
    op = OPS[name]
    inputs, state = op.make(T=T, dtype=dtype)
    for narrow in (torch.bfloat16, torch.float16, torch.float32):
        short = type(state)(*(s.to(narrow) if s.is_floating_point() else s for s in state))
        wide = type(state)(*(s.to(dtype) if s.is_floating_point() else s for s in short))
        with torch.no_grad():
            (y, after), (want, end) = (op.run(inputs, s) for s in (short, wide))
        same({"y": y, **after._asdict()}, {"y": want, **end._asdict()})


@every
def test_states_that_do_not_fit(name):
    """float64 beside float32, whole numbers, another device, a tuple: refused, and never read as something else."""
    op = OPS[name]
    inputs, state = op.make()
    field = state._fields[0]
    for wrong, words in (
        (state[0].double(), "torch.float64 of"), (state[0].long(), "torch.int64 of"), (state[0].to("meta"), "on meta"),
        (state[0][1:], "shape"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{field} of the state is torch") as error:
            op.run(inputs, state._replace(**{field: wrong}))
        refused(error, words, "it must be torch.float32")
    with pytest.raises(ValueError, match=r"^the state is a tuple; it must be the \w+State of an earlier call") as error:
        op.run(inputs, tuple(state))
    refused(error)


@every
def test_resets_are_bools(name):
    """A kernel would read the bytes of anything else."""
    op = OPS[name]
    inputs, state = op.make()
    reset = rows_for(3, 7)["reset_BT"]
    for wrong in (*(reset.to(dtype) for dtype in (torch.uint8, torch.int64, torch.float32)), reset.tolist(), reset[:2]):
        with pytest.raises(ValueError, match=r"^reset_BT is .* must be torch.bool of shape \(3, 7\) on cpu") as error:
            op.run(inputs, state, reset_BT=wrong)
        refused(error)


@every
def test_lengths_are_whole_numbers(name):
    """Of any size; beyond the end is the end. Nothing is rounded to one."""
    op = OPS[name]
    inputs, state = op.make()
    want = results(op, inputs, state, lengths_B=torch.tensor([7, 2, 0]))
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        same(results(op, inputs, state, lengths_B=torch.tensor([9, 2, 0], dtype=dtype)), want)
    for wrong in (torch.tensor([7.0, 2.0, 0.0]), torch.ones(3, dtype=torch.bool), [7, 2, 0], torch.tensor([7, 2])):
        with pytest.raises(ValueError, match=r"^lengths_B is .* must be torch.int64 of shape \(3,\) on cpu") as error:
            op.run(inputs, state, lengths_B=wrong)
        refused(error)


@every
def test_masks_on_another_device(name):
    op = OPS[name]
    inputs, state = op.make()
    for key, rows in rows_for(3, 7).items():
        with pytest.raises(ValueError, match=f"^{key} is .* on meta; .* on cpu") as error:
            op.run(inputs, state, **{key: rows.to("meta")})
        refused(error)


@every
def test_no_steps(name):
    op = OPS[name]
    with pytest.raises(ValueError, match=r"shape \(3, 0, .*at least one step|must be \[B, T >= 1, H, 4, V\]") as error:
        op.run(*op.make(T=0))
    refused(error)


@in_every_dtype
@pytest.mark.parametrize("noise", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_padding_may_be_anything(name, dtype, noise):
    """Neither outputs, nor states, nor any gradient see it; its own gradients are zero."""
    op, rows = OPS[name], rows_for(3, 7)
    inputs, state = op.make(dtype=dtype)
    padding = torch.arange(7) >= rows["lengths_B"][:, None]
    found = []
    for fill in (0.0, noise):
        for x in inputs[: len(op.ragged)]:
            x[padding] = fill
        found.append(results(op, inputs, state, **rows))
    assert all(x.isfinite().all() for x in found[0].values())
    for number in range(len(op.ragged)):
        assert not found[1][f"gradient of input {number}"][padding].any()
    same(found[1], found[0])


@in_every_dtype
@pytest.mark.parametrize("T", [1, 7])
def test_no_rows(name, dtype, T):
    """Results are empty, in the shapes and dtypes that one row has; gradients of weights are zero."""
    op = OPS[name]
    none, one = (results(op, *op.make(B, T, dtype=dtype), **rows_for(B, T)) for B in (0, 1))
    assert none.keys() == one.keys()
    for key, x in none.items():
        assert x.dtype == one[key].dtype, key
        weight = key.startswith("gradient of input") and int(key.rsplit(" ", 1)[1]) >= len(op.ragged)
        assert x.shape == (one[key].shape if weight else (0, *one[key].shape[1:])), key
        assert not x.any(), key
    with torch.no_grad():
        y, _ = op.run(*op.make(0, T, dtype=dtype))
    assert y.shape == none["output"].shape


def changed_in_place(op, number, dtype, kinds):
    """Gradients when input `number` changes between forward and backward; None where torch refuses to make them."""
    inputs, state = op.make(dtype=dtype)
    rows = {key: value for key, value in rows_for(3, 7).items() if key in kinds}
    given = [*inputs, *state, *rows.values()]
    wanted = [x.requires_grad_() for x in given if x.is_floating_point()]
    y, after = op.run(inputs, state, **rows)
    if number is not None:
        with torch.no_grad():
            given[number].logical_not_() if given[number].dtype == torch.bool else given[number].add_(1)
    outputs = [out for out in (y, *after) if out.requires_grad]
    try:
        return torch.autograd.grad(outputs, wanted, [torch.ones_like(out) for out in outputs], allow_unused=True)
    except RuntimeError as refusal:
        return None if "modified" in str(refusal) and "inplace" in str(refusal) else pytest.fail(str(refusal))


@in_every_dtype
@pytest.mark.parametrize("kinds", [(), ("reset_BT",), ("reset_BT", "lengths_B")], ids=len)
def test_what_changes_before_the_backward_is_noticed(name, dtype, kinds):
    """torch says so, or the gradient did not need it: never another gradient without a word."""
    op = OPS[name]
    want = changed_in_place(op, None, dtype, kinds)
    for number in range(len(op.ragged) + len(op.weights) + len(op.kind._fields) + len(kinds)):
        got = changed_in_place(op, number, dtype, kinds)
        for a, b in zip(want if got is None else got, want, strict=True):
            assert (a is None) == (b is None), number
            assert a is None or torch.equal(a, b), number


B, T, H, V = 2, 5, 3, 4
WITHOUT_STATE = {
    "block_linear": (partial(block_linear, backend="numba"), (B, T, H * V), (H, V, V)),
    "block_linear torch": (partial(block_linear, backend="torch"), (B, T, H * V), (H, V, V)),
    "gated_norm": (
        lambda h, gain, z, skip, c, bias: gated_norm(h, gain, z, skip_E=skip, c_BTE=c, bias_E=bias, backend="numba"),
        (B, T, H, V), (H * V,), (B, T, H * V), (H * V,), (B, T, H * V), (H * V,),
    ),
    "linear": (linear, (B, T, 6), (3, 6), (3,)),
    "layer_norm": (lambda x, gain, bias: layer_norm(x, gain, 1e-5, bias), (B, T, 6), (6,), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_what_changes_is_noticed_by_ops_without_a_state_too(name):
    run, *shapes = WITHOUT_STATE[name]

    def gradients(number):
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        y = run(*inputs)
        if number is not None:
            with torch.no_grad():
                inputs[number].add_(1)
        return torch.autograd.grad(y.square().sum(), inputs)

    want = gradients(None)
    for number in range(len(shapes)):
        try:
            got = gradients(number)
        except RuntimeError as refusal:
            if "modified by an inplace operation" not in str(refusal):
                raise
            continue
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), number


@pytest.mark.parametrize(
    ("x", "count", "dtype"),
    [
        (torch.zeros(4, dtype=torch.float64), 4, torch.float32), (torch.zeros(4, dtype=torch.int32), 4, torch.float32),
        (torch.zeros(4), 5, torch.float32), (torch.zeros(4), 3, torch.float32),
        (torch.zeros(4, device="meta"), 4, torch.float32), (torch.zeros(2, 4)[:, :2], 4, torch.float32),
        (torch.zeros(4), 4, torch.bool),
    ],
)  # fmt: skip
def test_addresses_in_tables(x, count, dtype):
    """A kernel reads what it was compiled for, so many numbers, one after another, in memory of this process."""
    said = rf"^a tensor in a table is {x.dtype} .* a kernel reads {count} numbers of {dtype}"
    with pytest.raises(ValueError, match=said) as error:
        address(x, count, dtype)
    refused(error)


def test_addresses_of_what_fits():
    numbers = torch.zeros(3, 4)
    assert address(numbers, 12, torch.float32) == numbers.data_ptr()
    assert address(None, 12, torch.float32) == 0
