"""Secrets: read where the reference says, never shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from poller.config import blanks_problem, hook_secrets, read_log_key, read_secret
from poller.config.model import Account, AccountHook, SecretRef
from poller.errors import ConfigError


def refusal(ref: SecretRef, environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_secret(ref, environ)
    assert caught.value.exit_code == 78
    return str(caught.value)


def in_file(tmp_path: Path, content: bytes) -> SecretRef:
    file = tmp_path / "efax.key"
    file.write_bytes(content)
    return SecretRef("file", str(file))


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        pytest.param(b"s3cr3t", "s3cr3t", id="as it is"),
        pytest.param(b"s3cr3t\n", "s3cr3t", id="newline at the end"),
        pytest.param(b"s3cr3t\r\n", "s3cr3t", id="Windows newline at the end"),
        pytest.param(b"\xef\xbb\xbfs3cr3t", "s3cr3t", id="byte order mark"),
        pytest.param(b" s3 cr3t ", "s3 cr3t", id="spaces inside are part of it"),
        pytest.param(b"\n\t s3cr3t\r\n\n", "s3cr3t", id="blank lines"),
        pytest.param("\ufeff\u200b\u00a0s3cr3t\ufeff".encode(), "s3cr3t", id="what nobody sees"),
        pytest.param("schlüssel".encode(), "schlüssel", id="not ASCII"),
    ],
)
def test_secret_of_a_file_comes_without_the_blanks_around_it(
    tmp_path: Path, content: bytes, secret: str
) -> None:
    assert read_secret(in_file(tmp_path, content), {}) == secret


def test_secret_of_a_credential_comes_from_the_directory_of_systemd(tmp_path: Path) -> None:
    (tmp_path / "efax-api-key").write_text("s3cr3t\n")
    ref = SecretRef("credential", "efax-api-key")
    assert read_secret(ref, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "s3cr3t"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((kept, False) for kept in (b"s3cr3t", b"s3cr3t\n", b"s3cr3t\r\n", b"\xef\xbb\xbfs3cr3t")),
        *((kept, True) for kept in (b"s3cr3t \n", b" s3cr3t", b"s3cr3t\n\n")),
    ],
)
def test_blanks_around_a_secret_are_said_but_for_an_editors(
    tmp_path: Path, content: bytes, said: bool
) -> None:
    problem = blanks_problem(in_file(tmp_path, content), {})
    assert (problem is not None) == said
    assert "s3cr3t" not in str(problem)
    assert problem is None or "has blanks around the secret, which poller ignores" in str(problem)


PEM = "-----BEGIN {0}PRIVATE KEY-----\ns3cr3t\nlines\n-----END {0}PRIVATE KEY-----"


@pytest.mark.parametrize("kind", ["", "EC ", "RSA "])
def test_private_key_comes_with_all_its_lines(tmp_path: Path, kind: str) -> None:
    whole = f"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n{PEM.format(kind)}"
    ref = replace(in_file(tmp_path, f"{whole}\n".encode()), is_pem=True)
    assert read_secret(ref, {}) == whole


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param("s3cr3t", "contains no private key; put one there in PEM form", id="no key"),
        pytest.param(PEM.format("ENCRYPTED "), "is locked with a password", id="locked"),
        pytest.param(
            PEM.format("RSA ").replace("s3cr3t", "Proc-Type: 4,ENCRYPTED"),
            "is locked with a password",
            id="locked in the old form",
        ),
        pytest.param("", "is empty", id="empty"),
    ],
)
def test_private_key_that_no_listener_could_use_is_refused(
    tmp_path: Path, content: str, why: str
) -> None:
    message = refusal(replace(in_file(tmp_path, content.encode()), is_pem=True), {})
    assert why in message
    assert "s3cr3t" not in message


def test_secrets_of_web_hooks_come_by_app_id_for_the_accounts_that_have_one() -> None:
    main, other = (
        Account(app_id, app_id, SecretRef("env", "KEY"), users=()) for app_id in ("app-1", "app-2")
    )
    main = replace(main, webhook=AccountHook("/efax", SecretRef("env", "HOOK")))
    assert hook_secrets([main, other], {"HOOK": "s3cr3t"}) == {"app-1": "s3cr3t"}
    with pytest.raises(ConfigError, match="environment variable HOOK is not set"):
        hook_secrets([main, other], {})


def test_secret_of_the_environment_is_its_variable() -> None:
    assert read_secret(SecretRef("env", "EFAX_KEY"), {"EFAX_KEY": "s3cr3t"}) == "s3cr3t"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "is empty; put the secret there", id="empty"),
        pytest.param(b" \n", "is empty; put the secret there", id="only white space"),
        pytest.param(b"app\ns3cr3t", "contains more than one line", id="two lines"),
        pytest.param(b"s3cr3t\0", "contains more than one line", id="NUL"),
        pytest.param(b"s3cr3t\xff", "is not UTF-8 text", id="not UTF-8"),
        pytest.param(b"s3cr3t" * 20_000, "is too large to be a secret", id="too large"),
    ],
)
def test_file_without_one_secret_is_refused_and_not_shown(
    tmp_path: Path, content: bytes, why: str
) -> None:
    ref = in_file(tmp_path, content)
    message = refusal(ref, {})
    assert message.startswith(f"file {ref.name} {why}")
    assert "s3cr3t" not in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    ref = SecretRef("file", str(tmp_path / "none"))
    assert refusal(ref, {}) == f"file {tmp_path}/none cannot be read: No such file or directory"


def test_missing_credential_says_what_to_add_to_the_unit(tmp_path: Path) -> None:
    ref = SecretRef("credential", "efax-api-key")
    assert refusal(ref, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == (
        "credential efax-api-key cannot be read: No such file or directory; "
        "add LoadCredential=efax-api-key:/path/of/the/secret to the unit and restart it"
    )


def test_credential_outside_systemd_says_so() -> None:
    message = refusal(SecretRef("credential", "efax-api-key"), {})
    assert message.startswith("credential efax-api-key cannot be read: $CREDENTIALS_DIRECTORY")


def test_variable_that_is_not_set_is_named() -> None:
    ref = SecretRef("env", "EFAX_KEY")
    assert refusal(ref, {}) == (
        "environment variable EFAX_KEY is not set; set it where poller is started"
    )
    assert refusal(ref, {"EFAX_KEY": ""}).endswith("is empty; put the secret there")


def test_problem_bears_the_place_where_the_reference_is_written() -> None:
    ref = SecretRef("env", "EFAX_KEY", "poller.yaml", 4, "accounts.main.api_key")
    assert refusal(ref, {}).startswith(
        "poller.yaml:4: accounts.main.api_key: environment variable EFAX_KEY is not set"
    )
    assert ref == SecretRef("env", "EFAX_KEY")  # a line that moved is not a change


def test_key_of_the_log_is_long_enough_that_nobody_finds_it_by_trying(tmp_path: Path) -> None:
    assert read_log_key(in_file(tmp_path, b"k" * 32 + b"\n"), {}) == b"k" * 32
    with pytest.raises(ConfigError, match="shorter than 32 characters; `openssl rand -hex 32`"):
        read_log_key(in_file(tmp_path, b"k" * 31), {})
