"""A small FastAPI application."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Greeting(BaseModel):
    text: str


@app.get("/", response_model=Greeting)
def greet() -> Greeting:
    return Greeting(text="Hello from FastAPI")
