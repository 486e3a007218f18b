"""Every switch has a table of values, a range, and a sentence for a wrong value."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from poller.simulator import Switches
from poller.simulator.switches import _spell


def every_value() -> list[Any]:
    table = Switches.table()
    return [
        pytest.param(name, value, id=f"{name}={_spell(value)}")
        for name, values in table.items()
        for value in values
    ]


@pytest.mark.parametrize(("name", "value"), every_value())
def test_every_value_in_the_table_can_be_set_and_be_spelled_on_the_command_line(
    name: str, value: Any
) -> None:
    assert getattr(replace(Switches(), **{name: value}), name) == value
    read = getattr(Switches.parse([f"{name}={_spell(value)}"]), name)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("name", Switches.table())
def test_the_first_value_in_the_table_is_the_default_and_there_is_another(name: str) -> None:
    values = Switches.table()[name]
    assert getattr(Switches(), name) == values[0]
    assert len(set(values)) == len(values) >= 2


def test_switches_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Switches().page_cap = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        pytest.param(
            "page_cap=0", "switch page_cap: 0 is not a number from 1 to 100", id="too low"
        ),
        pytest.param("page_cap=101", "not a number from 1 to 100", id="too high"),
        pytest.param("page_cap=many", "'many' is not a number", id="no number"),
        pytest.param("page_cap=2.5", "'2.5' is not a number", id="no whole number"),
        pytest.param("late_visible_s=nan", "nan is not a number", id="nan"),
        pytest.param("order=random", "'random' is not one of newest, oldest", id="no such value"),
        pytest.param("unknown_fields=1", "'1' is not one of no, yes", id="neither yes nor no"),
        pytest.param("colour=red", "there is no switch 'colour'", id="no such switch"),
        pytest.param("order", "write order=VALUE", id="no value"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(setting: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Switches.parse([setting])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("refuse_bare_colon=false", False, id="false for no"),
        pytest.param("unknown_fields=true", True, id="true for yes"),
        pytest.param("page_cap=7", 7, id="a number outside the table"),
        pytest.param("oldest_window_s=60", 60.0, id="a number where the default is none"),
    ],
)
def test_other_spellings_and_numbers_are_taken(setting: str, value: Any) -> None:
    assert getattr(Switches.parse([setting]), setting.partition("=")[0]) == value


def test_the_description_names_every_switch_and_value() -> None:
    text = Switches.describe()
    for name, values in Switches.table().items():
        assert f"  {name}: " in text
        assert all(_spell(value) in text for value in values)
