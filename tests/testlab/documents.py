"""Documents that flannelctl prints with --json, validated against docs/reference/schemas."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

SCHEMAS = Path(__file__).parents[2] / "docs/reference/schemas"


def read_document(arguments: Sequence[str], text: str) -> Any:
    """Return the document that flannelctl printed for these arguments.

    Raises:
        AssertionError: the document has no schema.
        ValidationError: the document does not follow its schema, or contains a name that the schema does not
            list.
    """
    document = json.loads(text)
    name = "error" if isinstance(document.get("error"), dict) else _name_of(arguments)
    _validator(name).validate(document)
    return document


def _name_of(arguments: Sequence[str]) -> str:
    """Return the name of the schema: `config-get` for `config get`."""
    names = [path.stem for path in SCHEMAS.glob("*.json")]
    words = {part for word in arguments if not word.startswith("-") for part in word.split("-")}
    found = [name for name in names if set(name.split("-")) <= words]
    assert found, f"no schema for {arguments}"
    return max(found, key=len)


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    for one in schema["$defs"].values():
        if "properties" in one:
            one["additionalProperties"] = False
    return Draft202012Validator(schema, format_checker=FormatChecker())
