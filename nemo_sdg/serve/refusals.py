"""What a client is told when it gets no answer: OpenAI's error shape with our sentences. No torch, no HTTP."""

from __future__ import annotations

from nemo_sdg.errors import UserError


class ApiError(Exception):
    """An answer with an HTTP status other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers if self.retry_after_s is None else {**headers, "Retry-After": str(self.retry_after_s)}

    def body(self) -> dict:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(param: str, what: str, found: object, expected: str) -> ApiError:
    """A field of the request that cannot be meant as it stands."""
    shown = repr(found)
    return ApiError(400, f"{param}: {what}, found {shown[:80]}, expected {expected}", param=param, code="invalid_value")


def from_row(error: UserError) -> ApiError:
    """A conversation that the templates or the model's context cannot hold."""
    too_long = "context" in error.what
    return ApiError(400, str(error), param="messages", code="context_length_exceeded" if too_long else "invalid_value")


def unknown_model(name: object, served: list[str]) -> ApiError:
    message = f"model: this server has no such model, found {str(name)[:80]!r}, expected one of {', '.join(served)}"
    return ApiError(404, message, param="model", code="model_not_found")


def busy(rows: int) -> ApiError:
    message = f"{rows} responses wait or are under way already, and no more are taken; try again in a moment"
    return ApiError(429, message, code="too_many_waiting", retry_after_s=1)


def stopping() -> ApiError:
    return ApiError(503, "this server is being stopped", code="stopping")


def not_finite() -> ApiError:
    return ApiError(500, "the model's numbers are not finite, so there is no answer", code="not_finite")
