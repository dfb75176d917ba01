"""Runs one task function; started by path in the task's own interpreter.

Standard library only, Python 3.9 or later, imports nothing of the miner's. Orders come
as JSON on standard input; the answer goes to the file `report`, the return value to
the file `result`. Tasks may say how far they are::

    from aitbc_task import progress
    progress(40, "epoch 2 of 5")
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
import types
import typing

_TRACEBACK_CHARS = 16384
_MESSAGE_CHARS = 4096
_PLAIN = (int, float, str, bool, list, dict)


class NotRunError(Exception):
    """The task cannot be called like this; nothing of it has run."""


class ResultError(Exception):
    """The task returned something that cannot be stored as JSON."""


def main() -> int:
    """Follow the orders; 0 when the task returned, something else when not."""
    orders = json.load(sys.stdin)
    _provide_progress(orders["progress"])
    try:
        function = _find(orders)
        _check_params(function, orders["params"])
        _store(function(**orders["params"]), orders)
    except NotRunError as error:
        _replace(orders["report"], {"ok": False, "refused": str(error)})
        return 1
    except BaseException as error:  # noqa: BLE001 - whatever a task raises is its answer
        _replace(orders["report"], {"ok": False, "error": _described(error)})
        traceback.print_exception(type(error), error, _own_frames(error))
        return 1
    _replace(orders["report"], {"ok": True})
    return 0


def _find(orders: dict[str, typing.Any]) -> typing.Callable[..., typing.Any]:
    """Import the task's module and give its `run`."""
    sys.path[:0] = orders["paths"]
    if orders["package"] is not None:
        # The directory holds the modules themselves: it is the package `tasks`.
        package = types.ModuleType("tasks")
        package.__path__ = [orders["package"]]
        sys.modules["tasks"] = package
    module = importlib.import_module(orders["module"])
    function = getattr(module, "run", None)
    if not callable(function):
        raise NotRunError(f"{orders['module']} has no function run")
    return typing.cast("typing.Callable[..., typing.Any]", function)


def _check_params(
    function: typing.Callable[..., typing.Any], params: dict[str, typing.Any]
) -> None:
    """Raise NotRunError with everything that is wrong with the parameters."""
    signature = inspect.signature(function)
    wrong = []
    takes_any = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            continue
        elif name not in params and parameter.default is parameter.empty:
            wrong.append(f"{name} is missing")
    if not takes_any:
        unknown = sorted(set(params) - set(signature.parameters))
        wrong += [f"{name} is unknown" for name in unknown]
    wrong += _wrong_types(function, params)
    try:
        signature.bind(**params)
    except TypeError as error:
        wrong = wrong or [str(error)]
    if wrong:
        raise NotRunError(f"run{signature} cannot be called: " + "; ".join(wrong))


def _wrong_types(
    function: typing.Callable[..., typing.Any], params: dict[str, typing.Any]
) -> list[str]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a hint that can't be evaluated checks nothing
        return []
    return [
        f"{name} must be {inspect.formatannotation(hints[name])}, "
        f"given {type(value).__name__}"
        for name, value in params.items()
        if name in hints and not _fits(value, hints[name])
    ]


def _fits(value: typing.Any, hint: typing.Any) -> bool:
    """Whether a JSON value fits a simple annotation; others are not checked."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Union or origin is getattr(types, "UnionType", None):
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if origin is type(None):
        return value is None
    if origin not in _PLAIN:
        return True
    if isinstance(value, bool):
        return origin is bool
    if origin is float:
        return isinstance(value, (int, float))
    return isinstance(value, origin)


def _store(value: typing.Any, orders: dict[str, typing.Any]) -> None:
    """Write the return value as JSON. Raises ResultError."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        # Without its cause: a traceback through this file tells nobody anything.
        raise ResultError(
            f"the return value, a {type(value).__name__}, is no JSON: {error}"
        ) from None
    data = text.encode()
    if len(data) > orders["result_max_bytes"]:
        raise ResultError(
            f"the return value takes {len(data)} bytes as JSON; "
            f"{orders['result_max_bytes']} are allowed, write a file to output/"
        )
    _write(orders["result"], data)


def _described(error: BaseException) -> dict[str, str]:
    lines = traceback.format_exception(type(error), error, _own_frames(error))
    return {
        "type": type(error).__name__,
        "message": _text_of(error)[:_MESSAGE_CHARS],
        "traceback": "".join(lines)[-_TRACEBACK_CHARS:],
    }


def _own_frames(error: BaseException) -> types.TracebackType | None:
    """Leave out the frames of this file: they tell a task's author nothing."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _text_of(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the task ended its interpreter with {error.code!r}"
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a task's exception may have a broken __str__
        return "(its text cannot be had)"


def _provide_progress(path: str) -> None:
    def progress(pct: float, note: str = "") -> None:
        """Tell how far the task is, in percent, with a few words."""
        _replace(path, {"pct": float(pct), "note": str(note)})

    module = types.ModuleType("aitbc_task", "What a task can tell the miner.")
    vars(module)["progress"] = progress
    sys.modules["aitbc_task"] = module


def _replace(path: str, report: dict[str, typing.Any]) -> None:
    _write(path, json.dumps(report).encode())


def _write(path: str, data: bytes) -> None:
    """Replace a file whole, so that no reader sees half of it."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:  # noqa: PTH123 - a plain path from the orders
        file.write(data)
    os.replace(temporary, path)  # noqa: PTH105 - the same


if __name__ == "__main__":
    sys.exit(main())
