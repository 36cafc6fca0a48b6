"""Chat over HTTP: templates, parts of messages, structured answers and tools, states of talks."""

import json

import jsonschema
import openai
import pytest

from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY
from serving_tools import serving

TALK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def talking():
    with serving(chat_template="turns", default_max_tokens=8) as found:
        yield found


@pytest.fixture(scope="module")
def client(talking):
    with openai.OpenAI(base_url=f"{talking.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


def expected_of(served, text, **settings):
    (found,) = generate(served.model, [Request(prompt=text, **settings)], tokenizer=served.tokenizer)
    return found.text


def test_messages_become_the_template_s_text(talking, client):
    expected = expected_of(talking, "User: Hi\nAssistant:", max_tokens=8, sampling=GREEDY, stop="\nUser:")
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    for messages in (TALK, parts):
        found = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
        assert found.choices[0].message.content == expected
        assert found.choices[0].message.role == "assistant"
        assert found.usage.completion_tokens <= 8
    assert talking.post("/apply-template", {"messages": TALK}).json() == {"prompt": "User: Hi\nAssistant:"}
    tokens = talking.post("/tokenize", {"messages": TALK}).json()["tokens"]
    assert tokens == [256, *b"User: Hi\nAssistant:"]


def test_streams_begin_with_the_role_and_the_first_text(talking, client):
    frames = talking.stream("/v1/chat/completions", {"messages": TALK, "seed": 2, "max_tokens": 12})
    first, last = frames[0]["choices"][0], frames[-1]["choices"][0]
    assert first["delta"]["role"] == "assistant"
    assert [("role" in frame["choices"][0]["delta"]) for frame in frames] == [True] + [False] * (len(frames) - 1)
    assert last["finish_reason"] == "length"
    text = "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames)
    parts = client.chat.completions.create(model="tiny", messages=TALK, seed=2, max_tokens=12, stream=True, n=2)
    by_index = {0: "", 1: ""}
    for part in parts:
        by_index[part.choices[0].index] += part.choices[0].delta.content or ""
    assert by_index[0] == text
    assert by_index[1] != text


def test_logprobs(client):
    found = client.chat.completions.create(
        model="tiny", messages=TALK, seed=1, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.bytes is not None
        assert entry.logprob <= max(top.logprob for top in entry.top_logprobs)


SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip


def test_structured_answers(client):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    for seed in range(3):
        found = client.chat.completions.create(
            model="tiny", messages=TALK, seed=seed, max_tokens=60, temperature=0.01, response_format=form
        )
        if found.choices[0].finish_reason == "stop":
            jsonschema.validate(json.loads(found.choices[0].message.content), SCHEMA)
    form["json_schema"]["schema"] = {"type": "nothing"}
    with pytest.raises(openai.BadRequestError, match="cannot be built"):
        client.chat.completions.create(model="tiny", messages=TALK, response_format=form)
    found = client.completions.create(
        model="tiny", prompt="a", max_tokens=9, extra_body={"grammar": {"type": "choice", "value": ["yes", "no"]}}
    )
    assert found.choices[0].text in ("yes", "no")
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_have_to_be_called(client, stream):
    schema = {
        "type": "object",
        "properties": {"c": {"enum": ["x", "y"]}},
        "required": ["c"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "pick", "parameters": schema}}]
    named = {"type": "function", "function": {"name": "pick"}}
    for choice, reason in (("required", "tool_calls"), (named, "stop")):
        found = client.chat.completions.create(
            model="tiny", messages=TALK, tools=tools, tool_choice=choice, max_tokens=300, temperature=0.01, seed=1,
            stream=stream, logit_bias={str(byte): -20 for byte in b" \n\r\t"},
        )  # fmt: skip
        if stream:
            parts = list(found)
            (call,) = [call for part in parts for call in part.choices[0].delta.tool_calls or ()]
            assert parts[-1].choices[0].finish_reason == reason
        else:
            (call,) = found.choices[0].message.tool_calls
            assert found.choices[0].message.content is None
            assert found.choices[0].finish_reason == reason
        assert call.function.name == "pick"
        jsonschema.validate(json.loads(call.function.arguments), schema)


def test_what_is_refused(talking, served):
    for body, param in (
        ({"messages": []}, "messages"), ({"messages": [{"role": "other", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         "messages.0.content.0"),
        ({"top_logprobs": 3}, "top_logprobs"), ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"tool_choice": "required"}, "tools"), ({"tools": [{"function": {"name": "f"}}]}, "tool_choice"),
        ({"tools": [{"function": {"name": "a b"}}], "tool_choice": "none"}, "tools.0.function.name"),
        ({"chat_template": "x"}, "chat_template"), ({"chat_template_kwargs": {"messages": "x"}}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
    ):  # fmt: skip
        response = talking.post("/v1/chat/completions", {"messages": TALK, **body})
        assert response.status_code == 400, (body, response.text)
        assert response.json()["error"]["param"] == param, (body, response.text)
    response = served.post("/v1/chat/completions", {"messages": TALK})
    assert response.json()["error"]["code"] == "no_chat_template"


def test_a_talk_goes_on_from_its_state(talking):
    """Only what is new is read, and the answer is that to the whole talk."""
    body = {"messages": TALK, "temperature": 0, "max_tokens": 8, "keep_state": True, "logit_bias": {"256": -100}}
    first = talking.post("/v1/chat/completions", body).json()
    answer, state = first["choices"][0]["message"]["content"], first["choices"][0]["state"]
    more = [{"role": "user", "content": "And?"}]
    second = talking.post("/v1/chat/completions", body | {"messages": more, "state": state["id"]}).json()
    assert second["usage"]["prompt_tokens"] == len("\nUser: And?\nAssistant:")
    if "\ufffd" not in answer:
        text = f"User: Hi\nAssistant:{answer}\nUser: And?\nAssistant:"
        settings = {"sampling": GREEDY, "stop": "\nUser:", "logit_bias": {256: -100.0}}
        assert second["choices"][0]["message"]["content"] == expected_of(talking, text, max_tokens=8, **settings)
    assert second["choices"][0]["state"]["parent"] == state["id"]
    assert state["tokens"] == 1 + len("User: Hi\nAssistant:") + 8
