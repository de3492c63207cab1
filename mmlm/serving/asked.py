"""Bodies of requests, in the form of OpenAI where one exists. What a client sends that would have no effect is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from mmlm.serving.errors import RequestError

SILENT = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key"}  # change no answer
NEUTRAL: dict[str, Any] = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False}
MOST_STOPS = 16
MOST_FIELDS = 20  # of a form
Stop = Annotated[str, Field(max_length=200)]  # each is looked for behind every token


class Asked(BaseModel):
    """Base of the bodies. model: a name of /v1/models; left out where there is only one."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: str | None = Field(None, max_length=200)

    def check_rest(self) -> None:
        """Raises RequestError for a key that is not known and asks for something."""
        for key, value in (self.model_extra or {}).items():
            if key not in SILENT and value is not None and not (key in NEUTRAL and NEUTRAL[key] == value):
                raise RequestError(f"{key[:60]!r} is not supported here; leave it out.", code="unsupported_parameter", param=key[:60])


class Address(BaseModel):
    """A picture as data:...;base64,..."""

    url: str
    detail: str | None = None


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Address | None = None


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class ChatMessage(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        """Its words."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text or "" for part in self.content if part.type == "text")

    @property
    def pictures(self) -> list[str]:
        """Its pictures."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if part.image_url is not None]


class Chat(Asked):
    """POST /v1/chat/completions. temperature: 0, the default, always takes the likeliest token. stream_options: of streams alone."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**31)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


class Speech(Asked):
    """POST /v1/audio/speech. stream_format: the sound while it is written, as bytes or as events; left out, it comes whole."""

    input: str
    voice: str = "default"
    response_format: Literal["wav", "pcm", "flac"] = "wav"
    speed: float = Field(1.0, ge=0.25, le=4)
    seed: int = Field(0, ge=0, lt=2**31)
    stream_format: Literal["audio", "sse"] | None = None


class Transcription(Asked):
    """POST /v1/audio/transcriptions, whose body is a form of texts beside a file. What a task has no input for is refused."""

    response_format: Literal["json", "text"] = "json"
    stream: bool = Field(False, strict=False)
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = Field(None, strict=False)
    seed: int | None = Field(None, strict=False)

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the inputs of a task. Raises RequestError for one that it does not have, but for a temperature of 0."""
        found = {name: value for name in ("language", "prompt", "temperature", "seed") if (value := getattr(self, name)) is not None}
        for name, value in found.items():
            if name not in inputs and (name, value) != ("temperature", 0):
                raise RequestError(f"{name}: has no effect on this model; leave it out.", code="unsupported_parameter", param=name)
        return {name: value for name, value in found.items() if name in inputs}


async def transcription_of(request: Request) -> tuple[Transcription, bytes | None]:
    """A form, and what its file holds, None without one. Raises RequestValidationError, and HTTPException for a body that is no form."""
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        file = form.get("file")
        data = await file.read() if isinstance(file, UploadFile) else None
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
    try:
        return Transcription.model_validate(texts), data
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from None


class Embeddings(Asked):
    """POST /v1/embeddings. input: SMILES or sequences for a run of molecules; else sounds or pictures as data:...;base64,..."""

    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"


class Predict(Asked):
    """POST /v1/tabular/predict. examples: rows with the target.   rows: those to predict."""

    examples: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    target: str


class AnyTask(Asked):
    """POST /v1/tasks/{name}. inputs: those that GET /v1/tasks declares."""

    inputs: dict[str, Any]
    stream: bool = False
