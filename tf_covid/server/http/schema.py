"""What the OpenAPI document at `/openapi.json` says of `/v1/scans`."""

from __future__ import annotations

from typing import Any

from tf_covid.server import errors
from tf_covid.server.http.scan_process import FILES

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What was wrong, in one line."}},
}

_FLAG = {
    "type": "object",
    "required": ["code", "level", "message"],
    "properties": {
        "code": {"type": "string", "description": "A code of docs/reading.md."},
        "level": {"type": "string", "enum": ["info", "warning", "error"]},
        "message": {"type": "string"},
        "value": {"description": "The number or text that the message is about, or null."},
    },
}

_RESULT = {
    "type": "object",
    "description": "`result.json` of `tfcovid infer`, and where its files are.",
    "required": ["case", "status", "quality_flags", "versions", "files"],
    "properties": {
        "case": {"type": "string"},
        "status": {"type": "string", "enum": ["pass", "repaired", "refused"]},
        "quality_flags": {"type": "array", "items": _FLAG},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "files": {
            "type": "object",
            "description": "File name → path to fetch it from; empty for a scan that is refused.",
            "additionalProperties": {"type": "string"},
        },
    },
    "additionalProperties": True,
}

#: Media type → what it is. The server looks at the bytes; it does not ask for these headers.
UPLOADS = {
    "application/zip": "A zip of one scan's DICOM files.",
    "application/x-tar": "A tar of one scan's DICOM files.",
    "application/gzip": "A .tar.gz of DICOM files, or a .nii.gz.",
    "application/octet-stream": "Any of these, or a .nii.",
}

#: Errors that a request for an answer, or for its files, may end with; nobody sees that of a client
#: that has gone.
ANSWER_ERRORS = (
    errors.InvalidArgument,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.NotFound,
    errors.SlowClient,
    errors.TooLarge,
    errors.Unsupported,
    errors.QueueFull,
    errors.Failed,
    errors.Unavailable,
    errors.TooSlow,
    errors.OutOfMemory,
)
FILE_ERRORS = (errors.Unauthenticated, errors.Forbidden, errors.NotFound)


def answer() -> dict[str, Any]:
    """Arguments of the route `POST /v1/scans` that describe it."""
    full = {"application/json": {"schema": _RESULT}}
    return {
        "summary": "Answer a whole scan",
        "responses": {
            200: {"description": "The result.", "content": full},
            422: {"description": "The scan is refused; the result says why.", "content": full},
            **_responses(ANSWER_ERRORS),
        },
        "openapi_extra": {
            "parameters": [
                {
                    "name": "model",
                    "in": "query",
                    "required": False,
                    "schema": {"type": "string"},
                    "description": "Name of a served model; the first that answers whole scans.",
                }
            ],
            "requestBody": {
                "required": True,
                "description": "The file itself as the body, not a form.",
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary", "description": text}}
                    for kind, text in UPLOADS.items()
                },
            },
        },
    }


def file() -> dict[str, Any]:
    """Arguments of the route `GET /v1/scans/{scan}/{file}` that describe it."""
    content = {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in set(FILES.values())
    }
    return {
        "summary": "Fetch a file of an answer, for some minutes",
        "responses": {
            200: {"description": "The file.", "content": content},
            **_responses(FILE_ERRORS),
        },
    }


def delete() -> dict[str, Any]:
    """Arguments of the route `DELETE /v1/scans/{scan}` that describe it."""
    return {
        "summary": "Delete the files of an answer",
        "status_code": 204,
        "responses": {204: {"description": "They are gone."}, **_responses(FILE_ERRORS)},
    }


def without_validation(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the answer 422 that FastAPI adds, and this server never gives."""
    for path in document["paths"].values():
        for operation in path.values():
            content = operation["responses"].get("422", {}).get("content", {})
            if "HTTPValidationError" in str(content):
                del operation["responses"]["422"]
    schemas = document.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _responses(kinds: tuple[type[errors.RequestError], ...]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _ERROR}}
    return {
        kind.http: {"description": (kind.__doc__ or "").split("\n")[0], "content": content}
        for kind in kinds
    }
