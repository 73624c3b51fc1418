"""The JSON schemas describe the documents of flannelctl, and the reference page names everything in them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import ValidationError

from pyflannel.programs.flannelctl import COMMANDS
from testlab.documents import SCHEMAS, read_document

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in SCHEMAS.glob("*.json"))
PAGES = ["docs/reference/flannelctl.md", "docs/reference/network-config.md"]


def test_the_schemas_follow_from_the_types() -> None:
    script = [sys.executable, str(ROOT / "scripts/json-schemas"), "--check"]

    done = subprocess.run(script, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_each_command_has_a_schema() -> None:
    commands = {next((c for c in COMMANDS if f"{name}-".startswith(f"{c}-")), name) for name in NAMES}
    assert commands == {*COMMANDS, "error", "version"} - {"top"}  # top is for people only


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_names_each_value_and_each_schema(name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    text = "".join((ROOT / page).read_text() for page in PAGES)
    named = set(re.findall(r"[A-Za-z_0-9]+", "".join(re.findall(r"```.*?```|`[^`]*`", text, re.DOTALL))))
    values = {value for one in schema["$defs"].values() for value in one.get("properties", ())}

    assert values - named == set()
    assert f"schemas/{name}.json" in text


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1}',
        "{}",
        '{"version": "1", "more": 1}',
        '{"error": {"message": "m", "hint": "", "code": 7}}',
    ],
)
def test_a_document_that_does_not_follow_its_schema_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        read_document(["version"], text)
