"""Whole models under torch's tracers and transforms: the numbers and gradients of plain calls."""

from functools import partial

import pytest
import torch

from exlstm.mixers import MIXERS
from exlstm.mixers.state import leaves
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import configured
from exlstm.runtime.backend import recorded

VOCABULARY, WIDTH, B, T = 11, 16, 2, 2
TOKENS = torch.tensor([[1, 7], [0, 10]])
RESET = torch.tensor([[False, True], [True, False]])
LENGTHS = torch.tensor([2, 1])
BORDERS = {"reset_BT": RESET, "lengths_B": LENGTHS}
OURS = ["mlstm", "mlstm_large", "slstm", "attention", "lstm"]
KINDS = [[name] for name in MIXERS]
EVERY = [
    pytest.param(OURS, id="ours"),
    *(pytest.param(names, id=names[0], marks=pytest.mark.slow) for names in KINDS),
]
# torch's own, on the first use of forward-mode derivatives
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def build(names, dtype=torch.float32):
    """A model with a block of each of these mixers, all of whose weights matter."""
    blocks = tuple(BlockConfig(mixer=configured(name, {"heads": 2}), mlp=MLPConfig(hidden=24)) for name in names)
    model = LM(LMConfig(vocab_size=VOCABULARY, width=WIDTH, blocks=blocks))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval().to(dtype)


def before(model):
    """A state in which something has been seen."""
    with torch.no_grad():
        return model(TOKENS.flip(1))[1]


def everything(result):
    """Logits within the lengths, and the tensors of the state."""
    logits, state = result
    return [logits[0], logits[1, :1], *leaves(state)]


def gradients(model, call):
    """Of every parameter, of a loss that depends on all of the results."""
    model.zero_grad()
    sum(x.float().square().sum() for x in everything(call()) if x.is_floating_point()).backward()
    return [parameter.grad for parameter in model.parameters()]


def assert_near(found, wanted, dtype=torch.float32):
    """Within what forms of an op differ by, of the largest number of each tensor."""
    allowed = 1e-4 if dtype == torch.float32 else 0.1
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        x, y = x.detach().double(), y.detach().double()
        scale = float(y.abs().max()) + 1e-6
        torch.testing.assert_close(x, y, rtol=0, atol=allowed * scale)


@pytest.fixture(autouse=True)
def forget_graphs():
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("names", EVERY)
def test_compiled_without_gradients(names):
    model = build(names)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        state = before(model)
        assert_near(everything(compiled(TOKENS, state, **BORDERS)), everything(model(TOKENS, state, **BORDERS)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, BORDERS], ids=["plain", "borders"])
@pytest.mark.parametrize("names", KINDS, ids=lambda names: names[0])
def test_compiled_with_gradients(names, options, dtype):
    model = build(names, dtype)
    state = before(model) if options else None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(model, lambda: compiled(TOKENS, state, **options))
    assert_near(found, gradients(model, lambda: model(TOKENS, state, **options)), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("names", KINDS, ids=lambda names: names[0])
def test_a_compiled_step(names, dtype):
    """Decoding: one token, with a state."""
    model = build(names, dtype)
    with torch.no_grad():
        state = before(model)
        found = torch.compile(model, fullgraph=True, backend="eager")(TOKENS[:, :1], state)
        assert_near(leaves(found[1]), leaves(model(TOKENS[:, :1], state)[1]), dtype)


@pytest.mark.parametrize("names", EVERY)
def test_exported(names):
    model = build(names)
    with torch.no_grad():
        state = before(model)
        program = torch.export.export(model, (TOKENS, state), BORDERS)
    other = TOKENS.flip(0)
    assert_near(everything(program.module()(other, state, **BORDERS)), everything(model(other, state, **BORDERS)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("names", KINDS, ids=lambda names: names[0])
def test_exported_with_gradients(names, dtype):
    """As for training: gradients are enabled while the graph is made."""
    model = build(names, dtype)
    program = torch.export.export(model, (TOKENS,)).module()
    assert_near(everything(program(TOKENS)), everything(model(TOKENS)), dtype)


def loss(model, parameters, tokens_BT):
    """Of the whole of the results."""
    logits, state = torch.func.functional_call(model, parameters, (tokens_BT,))
    return sum(x.square().sum() for x in (logits, *leaves(state)) if x.is_floating_point())


def test_transforms():
    """torch.func's gradients, directional derivatives in both modes, and gradients of every sequence."""
    model = build(OURS)
    parameters = {name: x.detach() for name, x in model.named_parameters()}
    directions = {name: torch.randn_like(x) for name, x in parameters.items()}

    model.zero_grad()
    loss(model, dict(model.named_parameters()), TOKENS).backward()
    wanted = [x.grad for x in model.parameters()]
    found = torch.func.grad(partial(loss, model))(parameters, TOKENS)
    assert_near(found.values(), wanted)
    _, slope = torch.func.jvp(lambda p: loss(model, p, TOKENS), (parameters,), (directions,))
    along = sum((x * y).sum() for x, y in zip(wanted, directions.values(), strict=True))
    torch.testing.assert_close(slope, along, rtol=1e-3, atol=1e-2)
    each = torch.func.vmap(torch.func.grad(partial(loss, model)), in_dims=(None, 0))(parameters, TOKENS[:, None])
    assert_near([x.sum(0) for x in each.values()], wanted)


def test_vmap_over_tokens_and_over_models():
    """Numbers that vmap has no batching for are not looked at, also in decoding."""
    models = [build(OURS) for _ in range(2)]
    with torch.no_grad():
        found = torch.vmap(lambda tokens_BT: models[0](tokens_BT)[0])(TOKENS[:, None])
        assert_near(found[:, 0], models[0](TOKENS)[0])
        stacked, _ = torch.func.stack_module_state(models)
        call = partial(torch.func.functional_call, models[0])
        steps = torch.vmap(lambda p: call(p, (TOKENS[:, :1],))[0])(stacked)
    assert_near(steps, [model(TOKENS[:, :1])[0] for model in models])
    # what was made inside is not kept
    assert_near(models[0](TOKENS, before(models[0]))[0], models[0](TOKENS, before(models[0]))[0])


def test_fake_tensors_leave_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = build(["mlstm"])
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        logits, state = model(mode.from_tensor(TOKENS))
        assert model(mode.from_tensor(TOKENS[:, :1]), state)[0].shape == (B, 1, VOCABULARY)
    assert logits.shape == (B, T, VOCABULARY)
    model.check(TOKENS, before(model), None, None)
    assert type(leaves(model.shapes(B))[0]) is torch.Tensor


def test_second_derivatives_name_the_backend():
    """Of cells; what else has kernels makes a graph."""
    for name, other in {"mlstm": "'numba' of mlstm", "slstm": "'numba' of slstm"}.items():
        model = build([name])
        total = model(TOKENS)[0].square().sum()
        with pytest.raises(ValueError, match=rf"^create_graph=True asks the backend {other} for second derivatives"):
            torch.autograd.grad(total, list(model.parameters()), create_graph=True)
        model.blocks[0].mixer.backend = "recurrent"
        first = torch.autograd.grad(model(TOKENS)[0].square().sum(), list(model.parameters()), create_graph=True)
        found = torch.autograd.grad(sum(x.square().sum() for x in first), list(model.parameters()))

        def norm(parameters, model=model):
            gradient = torch.func.grad(lambda p: torch.func.functional_call(model, p, (TOKENS,))[0].square().sum())
            return sum(x.square().sum() for x in gradient(parameters).values())

        assert_near(found, torch.func.grad(norm)(dict(model.named_parameters())).values())


def test_eager_calls_run_the_kernels():
    """The other side: where nothing traces, nothing is given up."""
    model = build(OURS)
    with recorded() as choices:
        model(TOKENS)
    assert {c.backend for c in choices if c.op in ("conv", "mlstm", "slstm", "gated_norm", "block_linear")} == {"numba"}
