"""Instructor against InferHub, in an environment of its own. Prints one JSON object."""

import json
import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class City(BaseModel):
    city: Literal["Paris", "Rome"]


class Said(BaseModel):
    text: str


openai = OpenAI(base_url=f"{os.environ['HUB']}/v1", api_key=os.environ["KEY"], max_retries=0)
out = {}
by_tool = instructor.from_openai(openai, mode=instructor.Mode.TOOLS)
out["tools"] = by_tool.create(
    model="echo", response_model=Said, messages=[{"role": "user", "content": "hello"}], max_retries=0
).text
by_schema = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
out["schema"] = by_schema.create(
    model="smollm2-135m",
    response_model=City,
    messages=[{"role": "user", "content": "Name a city."}],
    max_tokens=100,
    temperature=0,
    max_retries=0,
).city in ("Paris", "Rome")
print(json.dumps(out))
