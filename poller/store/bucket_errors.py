"""What a bucket's refusals mean, in sentences that contain no key and no answer of the store."""

from typing import Any

from poller.errors import StorageFull, StorageUnusable

_MANUAL = "`poller help files`"
_FULL = {"InsufficientStorage", "InsufficientStorageSpace", "QuotaExceeded", "XMinioStorageFull"}
_NO_KEY = (
    "refuses the access key ({code}): correct storage.access_key_id and storage.secret_access_key, or "
    "the machine's role"
)
_REGION = "is in another region ({code}): correct storage.region"
_DENIED = "denies this access key or role something ({code}): " + _MANUAL + " lists what it needs"
_BY_CODE = {
    "NoSuchBucket": "does not exist: create it, or correct storage.url",
    "RequestTimeTooSkewed": "refuses requests because the clock here is more than 15 minutes off: "
    "set this machine's clock",
    "InvalidAccessKeyId": _NO_KEY,
    "SignatureDoesNotMatch": _NO_KEY,
    "ExpiredToken": _NO_KEY,
    "InvalidToken": _NO_KEY,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
}
_BY_TYPE = {
    "NoCredentialsError": "needs an access key: set storage.access_key_id and "
    "storage.secret_access_key, or give the machine a role",
    "EndpointConnectionError": "cannot be reached: check storage.endpoint and the network",
    "SSLError": "has a certificate that cannot be verified: " + _MANUAL + " says how to trust it",
}


class ObjectDenied(StorageUnusable):
    """The store does not hand out this object; others may be well."""


def status_of(error: Any) -> int:
    """Return the HTTP status of a botocore ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: Any) -> str:
    """Return its code, such as SlowDown; only its number where there is no body, as for HEAD."""
    return str(error.response.get("Error", {}).get("Code", ""))


def refused(where: str, error: Any) -> StorageUnusable:
    """Translate botocore's ClientError: the store has answered."""
    code, status = code_of(error), status_of(error)
    if status == 507 or code in _FULL:
        return StorageFull(f"the bucket {where} is full, or its quota is used up ({code})")
    if code in _BY_CODE:
        return StorageUnusable(f"the bucket {where} {_BY_CODE[code].format(code=code)}")
    if status == 403:
        return ObjectDenied(
            f"the bucket {where} {_DENIED.format(code=code)}", fault=f"the store denies it ({code})"
        )
    return StorageUnusable(f"the bucket {where} answers {status} ({code}); poller tries again")


def unanswered(where: str, error: Exception) -> StorageUnusable:
    """Translate botocore's other errors: there was no answer, or not all of it."""
    name = type(error).__name__
    why = _BY_TYPE.get(name, f"does not answer ({name}); poller tries again")
    return StorageUnusable(f"the bucket {where} {why}")
