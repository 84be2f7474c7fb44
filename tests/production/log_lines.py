"""The two formats of the log, read back."""

import json
import re

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
_VALUE = r'"(?:[^"\\]|\\.)*"|[^\s"\\=]+'
_FIELD = re.compile(rf" ([a-z_]+)=({_VALUE})")
_LINE = re.compile(
    rf"({_TIME}) (INFO|WARNING|ERROR) (.*?)((?: [a-z_]+=(?:{_VALUE}))*)")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)")


def _unescape(match):
    what = match[1]
    if what[0] == "x" and len(what) == 3:
        return chr(int(what[1:], 16))
    return "\n" if what == "n" else what


def _value(text):
    if text.startswith('"'):
        return _ESCAPE.sub(_unescape, text[1:-1])
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def parse_text(line):
    match = _LINE.fullmatch(line)
    assert match, f"no line of the log: {line!r}"
    time, level, message, fields = match.groups()
    return {"time": time, "level": level.lower(), "message": message,
            **{name: _value(value) for name, value in _FIELD.findall(fields)}}


def parse_json(line):
    record = json.loads(line)
    assert isinstance(record, dict) and re.fullmatch(_TIME, record["time"])
    assert record["level"] in ("info", "warning", "error"), line
    assert isinstance(record["message"], str) and record["message"], line
    return record


PARSERS = {"text": parse_text, "json": parse_json}
