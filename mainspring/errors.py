"""Every error a user can meet.

MainspringError
├── BadRequest                 400  the request is wrong; `param` is the JSON path
│   ├── ContextLength          400  prompt and asked output exceed the context
│   └── GrammarError           400  a grammar that is none, or needs too much time or memory
├── Unauthenticated            401
├── Forbidden                  403
├── NotFound                   404
│   └── ModelNotFound          404  with the nearest names
├── MethodNotAllowed           405  with the methods that are
├── RequestTimeout             408
├── Conflict                   409
├── BodyTooLarge               413
├── UnsupportedMedia           415
├── Misdirected                421  a Host that this server does not answer to
├── Overloaded                 429  with `retry_after` seconds
├── InternalError              500  our own bug; the log has the detail, the client an id
│   ├── NumericalError         500  NaN or infinite logits
│   └── WorkerLost             500  restarts did not bring the Worker back
├── Unavailable                503  loading, draining, stalled
├── InsufficientMemory         507  a model does not fit; says what would
└── ModelError                 422  a checkpoint cannot be used, with file and reason
    └── UnknownArchitecture    422

`message` is for the client: it names the field, the limit and the fix, and never holds a path of
this machine, a key or another request's data. `detail` is for the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "Conflict",
    "ContextLength",
    "Forbidden",
    "GrammarError",
    "InsufficientMemory",
    "InternalError",
    "MainspringError",
    "MethodNotAllowed",
    "Misdirected",
    "ModelError",
    "ModelNotFound",
    "NotFound",
    "NumericalError",
    "Overloaded",
    "RequestTimeout",
    "Unauthenticated",
    "Unavailable",
    "UnknownArchitecture",
    "UnsupportedMedia",
    "WorkerLost",
]


class MainspringError(Exception):
    """Base of all errors with a message for the user."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail


class BadRequest(MainspringError):
    status = 400
    code = "invalid_request"


class ContextLength(BadRequest):
    code = "context_length_exceeded"


class GrammarError(BadRequest):
    code = "grammar_error"


class Unauthenticated(MainspringError):
    status = 401
    code = "invalid_api_key"


class Forbidden(MainspringError):
    status = 403
    code = "forbidden"


class NotFound(MainspringError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"

    @classmethod
    def among(cls, name: str, known: Iterable[str]) -> ModelNotFound:
        """The error for `name`, with the nearest of the `known` names as a hint."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = (
            f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
        )
        return cls(f"model {name[:100]!r} is not served here; {hint}", param="model")


class MethodNotAllowed(MainspringError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTimeout(MainspringError):
    status = 408
    code = "request_timeout"


class Conflict(MainspringError):
    status = 409
    code = "conflict"


class BodyTooLarge(MainspringError):
    status = 413
    code = "body_too_large"


class UnsupportedMedia(MainspringError):
    status = 415
    code = "unsupported_media_type"


class Misdirected(MainspringError):
    status = 421
    code = "host_not_allowed"


class ModelError(MainspringError):
    status = 422
    code = "model_error"


class UnknownArchitecture(ModelError):
    code = "unknown_architecture"


class Overloaded(MainspringError):
    status = 429
    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.retry_after = retry_after


class InternalError(MainspringError):
    status = 500
    code = "internal_error"


class NumericalError(InternalError):
    code = "numerical_error"


class WorkerLost(InternalError):
    code = "worker_lost"


class Unavailable(MainspringError):
    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.retry_after = retry_after


class InsufficientMemory(MainspringError):
    status = 507
    code = "insufficient_memory"
