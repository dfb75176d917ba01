"""Errors as RFC 9457 problem JSON; every answer that is not a success is one."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aitbc_aps_miner.errors import MinerError


class ProblemError(MinerError):
    """The call is answered with `status` and these words."""

    def __init__(
        self,
        status: int,
        detail: str,
        error_code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.error_code = error_code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Give the problem as JSON."""
        code = {"error_code": self.error_code} if self.error_code else {}
        return {
            "type": "about:blank",
            "title": title(self.status),
            "status": self.status,
            "detail": self.detail,
            **code,
        }


def title(status: int) -> str:
    """Give the words of a status, also of one that the registry lacks."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        # 460 is tus's own.
        return {460: "Checksum Mismatch"}.get(status, "Error")


def not_found(what: str) -> ProblemError:
    """Say that there is no such thing."""
    return ProblemError(404, f"no such {what}", "not_found")


def conflict(detail: str, error_code: str) -> ProblemError:
    """Say that the call contradicts what is."""
    return ProblemError(409, detail, error_code)


def invalid(detail: str, error_code: str = "invalid") -> ProblemError:
    """Say that the call's content makes no sense."""
    return ProblemError(422, detail, error_code)
