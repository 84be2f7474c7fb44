"""A checkpoint's chat template, rendered as transformers renders it."""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any, Dict, List, Optional, Sequence

from training.errors import UserError
from training.json_file import read_json

MAX_TEMPLATE_BYTES = 4 << 20
MAX_CONFIG_BYTES = 64 << 20
# Names of tokenizer_config.json that templates may use.
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token",
           "cls_token", "mask_token")


def read_file(path: pathlib.Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size > max_bytes:
            raise UserError(f"{path}: is larger than {max_bytes} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def read_object(path: pathlib.Path) -> Dict[str, Any]:
    value = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(value, dict):
        raise UserError(f"{path}: the top level must be a JSON object")
    return value


class ChatTemplate:
    def __init__(self, source: str, origin: pathlib.Path,
                 tokens: Dict[str, str], now: datetime.datetime) -> None:
        self._origin = origin
        self._tokens = tokens
        environment = _environment(now)
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # a template is code from outside
            raise UserError(f"{origin}: chat template: {error}") from None

    def render(self, messages: Sequence[Dict[str, Any]],
               add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, **self._tokens)
        except Exception as error:
            raise UserError(f"{self._origin}: chat template: {error}") from None


def load(folder: pathlib.Path, now: datetime.datetime) -> ChatTemplate:
    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    tokens = {name: text for name in _TOKENS
              if (text := _token_text(config.get(name))) is not None}
    own = folder / "chat_template.jinja"
    if own.is_file():
        data = read_file(own, MAX_TEMPLATE_BYTES)
        try:
            return ChatTemplate(data.decode("utf-8"), own, tokens, now)
        except UnicodeDecodeError:
            raise UserError(f"{own}: not valid UTF-8") from None
    source = _named_template(config.get("chat_template"))
    if source is None:
        raise UserError(f"{folder}: has no chat template (neither "
                        "chat_template.jinja nor tokenizer_config.json's "
                        "chat_template)")
    return ChatTemplate(source, config_path, tokens, now)


def _token_text(value: Any) -> Optional[str]:
    """A token's text, or a dictionary that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named_template(value: Any) -> Optional[str]:
    """The template, or the one called "default" of a list of them."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template")
                 for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _environment(now: datetime.datetime) -> Any:
    try:
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError:
        raise UserError("chat templates need the package python3-jinja2"
                        ) from None

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the assistant's part and adds no text."""
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"],
                                           drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False,
               indent: Optional[int] = None,
               separators: Optional[List[str]] = None,
               sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                          separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment
