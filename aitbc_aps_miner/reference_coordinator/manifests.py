"""What is plainly wrong with a submitted manifest, in words; nodes check the rest."""

import re
from collections.abc import Callable
from typing import Any

_JOB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_Check = tuple[Callable[[Any], bool], str]


def complaints(manifest: Any) -> list[str]:
    """Give every complaint as `field: expected …`; none for a manifest that may go."""
    if not isinstance(manifest, dict):
        return [f"expected a JSON object, given a {type(manifest).__name__}"]
    wrong = [
        f"{name}: expected {expected}, given {manifest[name]!r:.80}"
        for name, (is_right, expected) in _CHECKS.items()
        if name in manifest and not is_right(manifest[name])
    ]
    needed = ["runner", "timeout_s", *_BY_RUNNER.get(str(manifest.get("runner")), ())]
    return wrong + [f"{name}: missing" for name in needed if name not in manifest]


def _is_job_id(value: Any) -> bool:
    return isinstance(value, str) and _JOB_ID.fullmatch(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and value > 0


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_artifacts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and _is_text(each.get("path")) for each in value
    )


_BY_RUNNER = {"cli": ("command",), "python": ("task",)}

_CHECKS: dict[str, _Check] = {
    "job_id": (_is_job_id, "letters, digits, dots, _ and -, at most 128, no '..'"),
    "runner": (_is_text, "a runner's name"),
    "timeout_s": (_is_positive, "seconds above zero"),
    "command": (_is_text, "a command's name"),
    "task": (_is_text, "a task's name"),
    "args": (_are_texts, "a list of strings"),
    "params": (_is_object, "an object"),
    "requirements": (_is_object, "an object"),
    "input": (_is_object, "an object"),
    "env": (_is_object, "an object"),
    "artifacts": (_are_artifacts, "a list of objects with a path"),
}
