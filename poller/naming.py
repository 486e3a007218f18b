"""The names of faxes on disk. No value from the API decides a path unchecked."""

import hashlib
import re
from datetime import UTC, datetime
from string import Formatter, ascii_lowercase, ascii_uppercase

LONGEST_ID = 120
LONGEST_PART = 200  # a file system allows 255 bytes; dot-files and extensions need some of them
PLACEHOLDERS = ("account", "user", "fax_id")
TIME_WITHOUT_FORMAT = "%Y%m%dT%H%M%SZ"

# Only this form: without dashes, in braces or as a URN, an id may be anything.
_UUID = re.compile("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_CLOSED_TO_WINDOWS = re.compile(
    r"""[<>:"|?*\\]|[. ]$|^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)""", re.IGNORECASE
)
_FOLDED = str.maketrans(ascii_uppercase, ascii_lowercase)
_HOLDS_UNPRINTABLE = "must not contain control characters"


def fax_key(fax_id: str) -> str:
    """Return what all spellings of one fax id have in common.

    The letters of a UUID may come in either case (RFC 9562); any other id has one spelling.
    """
    return fax_id.lower() if _UUID.fullmatch(fax_id) else fax_id


def safe_id(fax_id: str) -> str:
    """Turn a fax id into a file name: two ids never give one name, and a safe id stays unchanged.

    Characters outside `[A-Za-z0-9._-]`, and a leading dot, are percent-encoded (UTF-8, upper case).
    An id of over 120 bytes becomes its first 80, `~` and 16 hex digits of its SHA-256. An empty id,
    which no fax has, becomes `%`.
    """
    encoded = _UNSAFE.sub(lambda found: _percent(found[0]), fax_id) or "%"
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) <= LONGEST_ID:
        return encoded
    return f"{encoded[:80]}~{_digest(fax_id, 16)}"


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in _utf8(text))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may contain half a surrogate pair


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(_utf8(text)).hexdigest()[:digits]


def fax_path(template: str, *, account: str, user: str, fax_id: str, at: datetime) -> str:
    """Return the path of a fax, relative to the storage directory and without extension.

    No part is empty, is `..` or begins with a dot, whatever the values are. `at`, when the fax was
    received or completed, is written in UTC. A part of over 200 bytes is shortened like an id.
    """
    values = {"account": account, "user": user, "fax_id": safe_id(fax_id)}
    filled = _fill(template, values, at.astimezone(UTC))
    return "/".join(_safe_part(part) for part in filled.split("/"))


def _fill(template: str, values: dict[str, str], at: datetime) -> str:
    filled = []
    for literal, name, spec, _ in Formatter().parse(template):
        value = values.get(name or "")
        if name and value is None:  # the time, by either of its names
            value = at.strftime(spec or TIME_WITHOUT_FORMAT)
        filled.append(literal + (value or ""))
    return "".join(filled)


def _safe_part(part: str) -> str:
    if part.startswith("."):
        part = "%2E" + part[1:]
    if len(_utf8(part)) <= LONGEST_PART:
        return part or "_"
    kept = _utf8(part)[:160].decode("utf-8", "ignore")
    return f"{kept}~{_digest(part, 16)}"


def path_template_problem(template: str, time: str = "received") -> str | None:
    """Return what is wrong with a path template, in a sentence, or None.

    `time` is the template's name for the fax's time.
    """
    try:
        return _field_problem(template, time) or _part_problem(template)
    except ValueError as error:
        return f"is not a path template: {error}"


def _field_problem(template: str, time: str) -> str | None:
    if _UNPRINTABLE.search(template):
        return _HOLDS_UNPRINTABLE
    names = set()
    for _, name, spec, conversion in Formatter().parse(template):
        names.add(name)
        if name is None:
            continue
        if name not in (*PLACEHOLDERS, time):
            known = ", ".join(f"{{{one}}}" for one in (*PLACEHOLDERS, time))
            return f"has an unknown placeholder {{{name}}}; poller knows {known}"
        if conversion or "{" in (spec or "") or (spec and name != time):
            return f"must not give a format for {{{name}}}; only {{{time}:…}} may have one"
    return None if "fax_id" in names else "must contain {fax_id}, or two faxes would have one name"


def _part_problem(template: str) -> str | None:
    example = _fill(
        template,
        {"account": "account", "user": "user", "fax_id": "id"},
        datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC),
    )
    parts = example.split("/")
    flaws = (
        (_UNPRINTABLE.search(example), _HOLDS_UNPRINTABLE),
        (not parts[0], "must be relative to the storage directory, not begin with a slash"),
        (not parts[-1], "must end with a file name, not with a slash"),
        ("" in parts, "must not have an empty part between two slashes"),
        (any(p.startswith(".") for p in parts), "must not have a part that begins with a dot"),
    )
    return next((sentence for is_so, sentence in flaws if is_so), None)


def part_closed_to_windows(path: str) -> str | None:
    """Return a part of a path, with its extension, that a Windows client cannot open."""
    return next((part for part in path.split("/") if _CLOSED_TO_WINDOWS.search(part)), None)


def folded(path: str) -> str:
    """Return the path as a file system sees it that ignores case; only ASCII letters are folded."""
    return path.translate(_FOLDED)


def disambiguated(path: str, identity: str) -> str:
    """Return another path for a fax whose own is taken; always the same one for an `identity`."""
    return f"{path}~{_digest(identity, 8)}"
