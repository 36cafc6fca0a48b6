"""Programs that use torch.nn.LSTM in their own ways, written again; ours takes its place by name only, and they learn.

Each is how a public code base treats the return value: hopsparser, flair, gluonts' DeepAR, CleanRL, sb3-contrib,
neuralhydrology.
"""

import numpy as np
import pytest
import torch
from rnn_cases import NETS
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

kinds = pytest.mark.parametrize("kind", NETS)


def trained(parameters, loss_of, steps, rate=1e-2):
    """First and last losses of some steps of Adam."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[:3]) / 3, sum(losses[-3:]) / 3


@kinds
def test_parser_reads_words_by_their_last_states(kind):
    """Packed without sorting; h_n, layers and directions first, becomes the embedding of a word."""
    lstm = NETS[kind](8, 16, 2, batch_first=True, dropout=0.1, bidirectional=True)
    embed, out = nn.Embedding(10, 8), nn.Linear(2 * 2 * 16, 2)
    lengths = torch.tensor([3, 7, 1, 5])
    letters = torch.randint(0, 10, (4, 7))
    target = torch.tensor([0, 1, 1, 0])

    def loss():
        packed = pack_padded_sequence(embed(letters), lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = lstm(packed)
        return nn.functional.cross_entropy(out(h.transpose(0, 1).reshape(4, -1)), target)

    first, last = trained([*lstm.parameters(), *embed.parameters(), *out.parameters()], loss, 30)
    assert last < 0.3 * first


@kinds
def test_tagger_finds_the_class_by_name(kind):
    """Keywords of torch's constructor; packed in, padded out."""
    place = type("module", (), {"LSTM": NETS[kind]})
    rnn = getattr(place, "LSTM")(  # noqa: B009 - by name, as there
        8, 16, num_layers=1, dropout=0.0, bidirectional=True, batch_first=True
    )
    out, x, tags = nn.Linear(32, 3), torch.randn(4, 6, 8), torch.randint(0, 3, (4, 6))
    lengths = [6, 5, 3, 1]

    def loss():
        y, hidden = rnn(pack_padded_sequence(x, lengths, enforce_sorted=True, batch_first=True))
        y, read = pad_packed_sequence(y, batch_first=True)
        assert read.tolist() == lengths
        return nn.functional.cross_entropy(out(y).flatten(0, 1), tags.flatten())

    first, last = trained([*rnn.parameters(), *out.parameters()], loss, 30)
    assert last < 0.8 * first


@kinds
def test_forecaster_repeats_its_states_for_samples(kind):
    """States repeated along dim 1 and passed on as a list."""
    rnn, out = NETS[kind](1, 16, num_layers=2, batch_first=True), nn.Linear(16, 1)
    wave = torch.sin(torch.arange(40) * 0.4).view(1, -1, 1).repeat(3, 1, 1)

    def loss():
        y, _ = rnn(wave[:, :-1])
        return (out(y) - wave[:, 1:]).square().mean()

    first, last = trained([*rnn.parameters(), *out.parameters()], loss, 60)
    assert last < 0.5 * first
    with torch.no_grad():
        y, state = rnn(wave)
        state = [part.repeat_interleave(repeats=5, dim=1) for part in state]
        x = out(y[:, -1:]).repeat_interleave(repeats=5, dim=0)
        for _ in range(4):
            y, state = rnn(x, state)
            x = out(y)
    assert x.shape == (15, 1, 1)
    assert torch.allclose(x[0], x[4])


@kinds
def test_agent_makes_its_first_state_by_hand_and_clears_it_by_a_mask(kind):
    """Zeros as wide as hidden_size for both; biases 0 and weights orthogonal; a loop over time; rows picked."""
    torch.manual_seed(3)
    lstm, out = NETS[kind](4, 16), nn.Linear(16, 2)
    for name, param in lstm.named_parameters():
        if "bias" in name:
            nn.init.constant_(param, 0)
        elif "weight" in name:
            nn.init.orthogonal_(param, 1.0)
    state = torch.zeros(lstm.num_layers, 6, lstm.hidden_size), torch.zeros(lstm.num_layers, 6, lstm.hidden_size)
    x = torch.randn(8, 6, 4)
    done = torch.zeros(8, 6)
    done[4, :3] = 1
    target = (x[0, :, 0] > 0).long()

    def hidden(x, state, done):
        batch = state[0].shape[1]
        steps = []
        for h, d in zip(x.reshape(-1, batch, 4), done.reshape(-1, batch), strict=True):
            h, state = lstm(h.unsqueeze(0), ((1.0 - d).view(1, -1, 1) * state[0], (1.0 - d).view(1, -1, 1) * state[1]))
            steps += [h]
        return torch.flatten(torch.cat(steps), 0, 1), state

    picked = torch.tensor([1, 4, 5])

    def loss():
        y, _ = hidden(x[:, picked], (state[0][:, picked], state[1][:, picked]), done[:, picked])
        return nn.functional.cross_entropy(out(y.view(8, 3, -1)[-1]), target[picked])

    first, last = trained([*lstm.parameters(), *out.parameters()], loss, 30)
    assert last < 0.5 * first
    with torch.no_grad():
        looped, after = hidden(x, state, done)
        at_once, whole = lstm(x, state, reset=done.bool())
    torch.testing.assert_close(at_once, looped.view(8, 6, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[0], after[0], rtol=0, atol=1e-5)


@kinds
def test_recurrent_policy_loops_over_sequences_that_begin(kind):
    """States kept as float32 arrays of NumPy; sequences by their first steps; a loop where any begins."""
    lstm = NETS[kind](4, 16)
    states = tuple(part.numpy() for part in lstm.zero_state(2))
    with torch.no_grad():
        _, states = lstm(torch.randn(1, 2, 4), tuple(map(torch.as_tensor, states)))
    buffer = [np.asarray(part.numpy(), dtype=np.float32) for part in states]
    features, starts = torch.randn(2 * 5, 4), torch.zeros(2, 5)
    starts[1, 2] = 1

    def process(features, hx, starts):
        n = hx[0].shape[1]
        sequence = features.reshape((n, -1, lstm.input_size)).swapaxes(0, 1)
        steps = []
        for x, start in zip(sequence, starts.reshape((n, -1)).swapaxes(0, 1), strict=True):
            y, hx = lstm(x.unsqueeze(0), tuple((1.0 - start).view(1, n, 1) * part for part in hx))
            steps += [y]
        return torch.flatten(torch.cat(steps).transpose(0, 1), start_dim=0, end_dim=1), hx

    hx = tuple(map(torch.from_numpy, buffer))
    with torch.no_grad():
        looped, _ = process(features, hx, starts)
        at_once, _ = lstm(features.view(2, 5, 4).swapaxes(0, 1), hx, reset=starts.T.bool())
    torch.testing.assert_close(at_once.swapaxes(0, 1).flatten(0, 1), looped, rtol=0, atol=1e-5)


@kinds
def test_hydrologist_sets_the_forget_bias_and_names_the_input(kind):
    """Rows hidden_size to 2 hidden_size of bias_hh are the forget gate's; the input has torch's name."""
    lstm, head = NETS[kind](input_size=3, hidden_size=16), nn.Linear(16, 1)
    if kind != "mlstm":  # which has a bias for both gates of each head
        before = lstm.bias_hh_l0.detach().clone()
        lstm.bias_hh_l0.data[lstm.hidden_size : 2 * lstm.hidden_size] = 3
        changed = (lstm.bias_hh_l0 != before).nonzero().flatten().tolist()
        assert changed == list(range(16, 32))
    rain = torch.rand(30, 8, 3)
    flow = torch.zeros(8)
    for t in range(30):
        flow = 0.9 * flow + rain[t, :, 0]

    def loss():
        y, (h_n, c_n) = lstm(input=rain)
        h_n, c_n = h_n.transpose(0, 1), c_n.transpose(0, 1)
        assert (len(h_n), len(c_n)) == (8, 8)
        return (head(y.transpose(0, 1)[:, -1]).squeeze(-1) - flow).square().mean()

    first, last = trained([*lstm.parameters(), *head.parameters()], loss, 60)
    assert last < 0.5 * first
