"""Bytes of streams, as clients read them: whole frames, cut anywhere; and text that is whole characters."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.infer.requests import Event
from exlstm.serve.choices import ChoiceOptions, ChoiceProgress
from exlstm.serve.formats import DONE, ChatFormat, CompletionFormat, Delta, Heading
from serving_tools import frames

HEADING = Heading(id="x-1", created=7, model="tiny", fingerprint="exlstm-0")
OPENING = '"created":7'


def test_golden_bytes_of_completions():
    form = CompletionFormat(HEADING)
    start = (
        b'data: {"id": "x-1", "object": "text_completion", "created": 7, "model": "tiny", '
        b'"system_fingerprint": "exlstm-0","choices":['
    )
    text = b'{"index":1,"text":"a\\n\\"\xe2\x80\xa8","logprobs":null,"finish_reason":null}]}\n\n'
    assert form.frame(Delta(index=1, text='a\n"\u2028')) == start + text
    end = b'{"index":0,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":256}]}\n\n'
    assert form.frame(Delta(index=0, finish_reason="stop", stop_reason=256)) == start + end
    assert form.usage_frame({"total_tokens": 3}) == start + b'],"usage":{"total_tokens":3}}\n\n'


def test_golden_bytes_of_chat():
    form = ChatFormat(HEADING)
    found = [form.frame(Delta(index=0, text="Hi", first=True)), form.frame(Delta(index=0, text="!"))]
    found.append(form.frame(Delta(index=0, finish_reason="length")))
    deltas = [json.loads(each[6:])["choices"][0]["delta"] for each in found]
    assert deltas == [{"role": "assistant", "content": "Hi"}, {"content": "!"}, {}]
    assert all(each.startswith(b"data: {") and each.endswith(b"}\n\n") and b"\r" not in each for each in found)
    reasons = [json.loads(each[6:])["choices"][0]["finish_reason"] for each in found]
    assert reasons == [None, None, "length"]


def bench_style(reads):
    """The reader of vLLM's benchmark: it strips every read, and keeps what does not end."""
    found, held = [], ""
    for read in reads:
        held += read.decode()
        while "\n\n" in held:
            message, held = held.split("\n\n", 1)
            message = message.strip()
            if message.startswith("data: ") and message != "data: [DONE]":
                found.append(json.loads(message.removeprefix("data: ")))
    return found


def line_style(reads):
    """Readers by lines, as guidellm and httpx's: a line that begins with data:."""
    found, held = [], b""
    for read in reads:
        held += read
        *lines, held = held.split(b"\n")
        found += [json.loads(line[5:]) for line in lines if line.startswith(b"data:") and line[5:].strip() != b"[DONE]"]
    return found


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(max_size=6), min_size=1, max_size=5), st.lists(st.integers(0, 2_000), max_size=12), st.booleans()
)
def test_readers_get_every_frame_however_reads_are_cut(texts, cuts, chat):
    form = ChatFormat(HEADING) if chat else CompletionFormat(HEADING)
    data = b"".join(form.frame(Delta(index=0, text=text, first=not place)) for place, text in enumerate(texts))
    data += form.frame(Delta(index=0, finish_reason="length")) + form.usage_frame({"total_tokens": 1}) + DONE
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    # a read in the middle of a character is joined by every reader before it decodes
    reads = [data[a:b] for a, b in pairwise(places)]
    expected = frames(data)
    assert line_style(reads) == expected
    if all(is_text(read) for read in reads):
        assert bench_style(reads) == expected
    told = [choice["delta"].get("content", "") if chat else choice["text"] for f in expected for choice in f["choices"]]
    assert "".join(told) == "".join(texts)


def is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=12).map(str.encode), st.data())
def test_joined_text_is_the_decoded_tokens(data, choose):
    """However tokens cut characters, and steps cut tokens: no character is broken that was whole."""
    from exlstm.data.tokenizer import ByteTokenizer
    from exlstm.infer.stopping import TextStream

    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer)
    events = [Event(request=0, token=token, text=stream.feed(token)[0]) for token in data]
    events.append(Event(request=0, text=stream.finish()[0], finish_reason="length"))
    progress, form, place, found = (
        ChoiceProgress(0, ChoiceOptions(tokenizer=tokenizer)),
        CompletionFormat(HEADING),
        0,
        b"",
    )
    while place < len(events):
        some = choose.draw(st.integers(1, 4))
        progress.take(events[place : place + some])
        place += some
        delta = progress.delta()
        found += b"" if delta is None else form.frame(delta)
    told = frames(found + DONE)
    text = "".join(frame["choices"][0]["text"] for frame in told)
    assert text == data.decode()
    assert [frame["choices"][0]["finish_reason"] for frame in told] == [None] * (len(told) - 1) + ["length"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_usage_comes_once_and_last(path):
    from serving_tools import serving

    with serving(chat_template="turns") as served:
        body = {"max_tokens": 6, "ignore_eos": True, "seed": 1, "n": 2}
        body |= {"prompt": "Once"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
        plain = served.stream(path, body)
        assert all(frame["choices"] and "usage" not in frame for frame in plain)
        last = served.stream(path, body | {"stream_options": {"include_usage": True}})
        assert ["usage" in frame for frame in last] == [False] * (len(last) - 1) + [True]
        assert last[-1]["choices"] == []
        every = served.stream(path, body | {"stream_options": {"continuous_usage_stats": True}})
        assert all("usage" in frame for frame in every)
        assert sum(frame["choices"][0]["finish_reason"] is not None for frame in every) == 2
