"""/v1/responses with openai's client: an answer's id is its state, and the next request reads only what is new."""

import json

import jsonschema
import openai
import pytest

from serving_tools import serving


@pytest.fixture(scope="module")
def talking():
    with serving(chat_template="turns") as found:
        yield found


@pytest.fixture(scope="module")
def client(talking):
    with openai.OpenAI(base_url=f"{talking.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


def test_a_response_is_the_chat_s_answer(talking, client):
    found = client.responses.create(model="tiny", input="Hi", temperature=0, max_output_tokens=10)
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 10}
    expected = talking.post("/v1/chat/completions", body).json()
    assert found.output_text == expected["choices"][0]["message"]["content"]
    assert found.usage.output_tokens == expected["usage"]["completion_tokens"]
    assert (found.status, found.error) == ("incomplete", None)
    assert found.incomplete_details.reason == "max_output_tokens"


def test_it_goes_on_from_an_earlier_one(talking, client):
    first = client.responses.create(model="tiny", input="Hi", temperature=0, max_output_tokens=10)
    second = client.responses.create(
        model="tiny", input="And?", previous_response_id=first.id, temperature=0, max_output_tokens=10
    )
    assert second.usage.input_tokens == len("\nUser: And?\nAssistant:")
    state = f"st_{first.id.removeprefix('resp_')}"
    info = talking.get(f"/v1/states/{state}").json()
    assert info["tokens"] == first.usage.total_tokens
    body = {"messages": [{"role": "user", "content": "And?"}], "state": state, "temperature": 0, "max_tokens": 10}
    expected = talking.post("/v1/chat/completions", body).json()
    assert second.output_text == expected["choices"][0]["message"]["content"]
    unkept = client.responses.create(model="tiny", input="Hi", store=False, max_output_tokens=3)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="x", previous_response_id=unkept.id)


def test_streams(client):
    whole = client.responses.create(model="tiny", input="Hi", temperature=0, max_output_tokens=12)
    events = list(client.responses.create(model="tiny", input="Hi", temperature=0, max_output_tokens=12, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.id == events[0].response.id
    again = client.responses.create(
        model="tiny", input="x", previous_response_id=events[0].response.id, max_output_tokens=2
    )
    assert again.previous_response_id == events[0].response.id


def test_messages_instructions_and_forms(talking, client):
    messages = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
    found = client.responses.create(model="tiny", instructions="Be brief.", input=messages, max_output_tokens=2)
    assert found.usage.input_tokens == 1 + len("Be brief.\nUser: Hi\nAssistant:")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    found = client.responses.create(model="tiny", input="Hi", text=form, temperature=0, max_output_tokens=60)
    if found.status == "completed":
        jsonschema.validate(json.loads(found.output_text), schema)
    for body, param in (
        ({"input": []}, "input"), ({"tools": [{}]}, "tools"), ({"text": {"format": {"type": "x"}}}, "text.format"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"max_output_tokens": 10**8}, "max_completion_tokens"),
    ):  # fmt: skip
        response = talking.post("/v1/responses", {"input": "Hi", **body})
        assert response.status_code == 400, (body, response.text)
        assert response.json()["error"]["param"] == param, (body, response.text)
