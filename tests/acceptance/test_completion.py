"""`poller completion`: what bash really offers after TAB, and that it does not slow commands down."""

import subprocess
import sys
from pathlib import Path

import pytest

from poller.cli.commands import COMMANDS

CONFIG = """\
accounts:
  main:
    app_id: "1"
    api_key: {env: KEY}
    users: {front-desk: {user_id: "a"}, billing: {user_id: "b"}}
"""
# What readline does at TAB, for the words up to the last one.
AT_TAB = """\
source "$1"; shift
poller() { "$PYTHON" -m poller -c "$CONFIG" "$@"; }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
handler=$(complete -p poller | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$handler" poller "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str) -> str:
    command = [sys.executable, "-m", "poller", "completion", shell]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "poller"
    file.write_text(script("bash"))
    return file


def offered(bash_script: Path, *words: str) -> set[str]:
    """Return what bash offers where the cursor is at the end of the last word."""
    config = bash_script.with_name("poller.yaml")
    config.write_text(CONFIG)
    done = subprocess.run(
        ["bash", "-c", AT_TAB, "bash", str(bash_script), "poller", *words],
        cwd=bash_script.parent,
        env={"PYTHON": sys.executable, "CONFIG": str(config), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("",), set(COMMANDS)),
        (("ver",), {"verify"}),
        (("verify", "--re"), {"--repair"}),
        (("backfill", ""), {"main/front-desk", "main/billing"}),
        (("once", "--user", "main/f"), {"main/front-desk"}),
        (("-c", "poll"), {"poller", "poller.yaml"}),
        (("simulate", "--ra"), {"--rate"}),
        (("completion", "z"), {"zsh"}),
    ],
)
def test_bash_offers_commands_options_users_and_files(
    words: tuple[str, ...], expected: set[str], bash_script: Path
) -> None:
    assert offered(bash_script, *words) >= expected


def test_a_wrong_configuration_is_no_noise_at_tab(bash_script: Path) -> None:
    config = bash_script.with_name("poller.yaml")
    assert offered(bash_script, "purge", "main/b") == {"main/billing"}
    config.write_text("accounts: nonsense")
    done = subprocess.run(
        [sys.executable, "-m", "poller", "-c", str(config), "completion", "users"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (78, b"")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_a_script_with_every_command(shell: str) -> None:
    made = script(shell)
    assert all(name in made for name in COMMANDS)
    assert "poller completion users" in made


def test_no_other_command_loads_what_makes_the_scripts() -> None:
    code = "import sys; from poller.cli import commands; commands.build(['status'])"
    code += "; assert not {'shtab', 'rich.prompt', 'sqlalchemy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
