"""Fields of requests, as OpenAI, vLLM and llama.cpp name them; the OpenAPI page is made of these."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from exlstm.serve.grammar import GrammarSpec

Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = list[Id]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
StateId = Annotated[str, Field(min_length=1, max_length=80)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class StrictFields(BaseModel):
    """Base of all bodies. Fields that are not listed are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(StrictFields):
    """What a stream tells besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(StrictFields):
    """Fields that completions and chat share."""

    model: str = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    n: Annotated[int, Field(ge=1)] = 1
    max_tokens: Count | None = None
    min_tokens: Count = 0
    stop: str | list[str] = []
    stop_token_ids: Ids = []
    ignore_eos: bool = False
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    timeout: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds until the request is given up, at most the server's own limit."
    )
    return_token_ids: bool = False
    certificate: bool = Field(False, description="The answer brings what `exlstm replay` needs to repeat it.")
    state: StateId | None = Field(None, description="State to go on from: the prompt then holds only what is new.")
    keep_state: bool = Field(False, description="Keep the state after prompt and answer; each choice brings its id.")
    session: StateId | None = Field(None, description="Session to go on from, whose head becomes the new state.")
    if_state: StateId | None = Field(None, description="Refuse with 412 unless this is the head of the session.")


class Grammar(StrictFields):
    """A grammar that the answer follows."""

    type: Literal["json_object", "json_schema", "regex", "lark", "choice"]
    value: str | dict[str, Any] | list[str] = ""


class CompletionBody(SamplingFields):
    """POST /v1/completions."""

    prompt: str | list[str] | Ids | list[Ids] = ""
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Count | None = None
    echo: bool = False
    logprobs_from: Count = Field(0, description="With echo: the first token of the prompt whose logprob is wanted.")
    suffix: str | None = None
    add_special_tokens: bool = Field(True, description="Whether a text begins with the boundary of documents.")
    return_tokens_as_token_ids: bool = False
    grammar: Grammar | None = None


class TextPart(StrictFields):
    """A part of a message."""

    type: str
    text: str | None = None


class FunctionCall(StrictFields):
    """A call in an earlier answer."""

    name: str
    arguments: str


class ToolCall(StrictFields):
    """A tool call of an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(StrictFields):
    """A message of a chat."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class JsonSchema(StrictFields):
    """A schema by name."""

    name: str = "answer"
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictFields):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ToolFunction(StrictFields):
    """A function that the answer may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] = {}


class Tool(StrictFields):
    """A tool."""

    type: Literal["function"] = "function"
    function: ToolFunction


class NamedFunction(StrictFields):
    """The name of a function."""

    name: str


class NamedTool(StrictFields):
    """A tool that has to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatBody(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Count | None = None
    response_format: ResponseFormat | None = None
    grammar: Grammar | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, str | int | bool | None] = {}


class TokenizeBody(StrictFields):
    """POST /tokenize: `prompt` as vLLM has it, `content` as llama.cpp, or messages."""

    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_special: bool = False
    parse_special: bool = False
    with_texts: bool = Field(False, alias="with_pieces")
    return_token_strs: bool = False


class DetokenizeBody(StrictFields):
    """POST /detokenize."""

    tokens: Ids


class TemplateBody(StrictFields):
    """POST /apply-template."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] = []
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, str | int | bool | None] = {}


class StateBody(StrictFields):
    """POST /v1/states: text to read into a state, without an answer."""

    prompt: str | Ids | None = None
    messages: list[Message] | None = None
    from_: StateId | None = Field(None, alias="from")
    add_special_tokens: bool = True
    pinned: bool = False
    model: str = ""


class InspectBody(StrictFields):
    """POST /v1/inspect: text of which the gates of a block are shown."""

    tokens: Annotated[list[Id], Field(min_length=1)]
    block: Count
    state: StateId | None = None


def grammar_spec(grammar: Grammar) -> GrammarSpec:
    """The grammar that the field `grammar` asks for."""
    value = grammar.value if isinstance(grammar.value, str) else json.dumps(grammar.value)
    return GrammarSpec(kind=grammar.type, text=value)


# fields that change answers and are not supported: a silent wrong answer would be the worst
REFUSED = {
    "functions": "send tools instead",
    "function_call": "send tool_choice instead",
    "audio": "only text is offered",
    "prompt_embeds": "send text or ids",
    "chat_template": "the server's own template is used; start it with --chat-template",
    "guided_json": "send response_format",
    "guided_regex": "send grammar",
    "guided_choice": "send grammar",
    "guided_grammar": "send grammar",
    "structured_outputs": "send response_format or grammar",
    "json_schema": "send response_format",
    "use_beam_search": "only sampling is offered",
    "include_stop_str_in_output": "add the stop string yourself",
    "length_penalty": "only sampling is offered",
    "bad_words": "send logit_bias",
    "truncate_prompt_tokens": "shorten the prompt yourself",
    "prompt_logprobs": "send echo and logprobs",
    "priority": "requests are served in fair order",
    "web_search_options": "nothing is fetched",
}
HARMLESS = {
    "store",
    "metadata",
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "verbosity",
    "reasoning_effort",
    "cache_salt",
    "request_id",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "modalities",
    "prediction",
    "prompt_cache_retention",
    "cache_prompt",
}
