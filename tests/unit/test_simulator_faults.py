"""When faults strike: by chance, by count, by script, for certain faxes."""

import random
from dataclasses import replace

import pytest

from poller.simulator import Fault, Faults
from poller.simulator.faults import CALLS, EFFECTS, Chooser, Target, describe


def chosen(faults: Faults, *targets: Target) -> list[str | None]:
    chooser = Chooser(faults, random.Random(1))
    found = [chooser.choose(target) for target in targets]
    return [fault.effect if fault else None for fault in found]


LIST, IMAGE = Target("list", user_id="u"), Target("image", "u", "f", 1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("500=5%", Fault("500", probability=0.05), id="percent"),
        pytest.param("500=0.05", Fault("500", probability=0.05), id="fraction"),
        pytest.param("reset=always", Fault("reset", probability=1.0), id="always"),
        pytest.param("reset=every:7", Fault("reset", every=7), id="every"),
        pytest.param("reset=first:3", Fault("reset", first=3), id="first"),
        pytest.param("cut-document=fax:10", Fault("cut-document", nth_fax=10), id="poison"),
        pytest.param(
            "429@list,image+30=every:2",
            Fault("429", frozenset({"list", "image"}), every=2, retry_after="30"),
            id="calls and Retry-After",
        ),
    ],
)
def test_a_fault_is_read_as_on_the_command_line(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("429+1@list=always", "calls come before", id="call after Retry-After"),
        pytest.param("explode=5%", "there is no fault 'explode'", id="no such effect"),
        pytest.param("200=5%", "there is no fault '200'", id="no error status"),
        pytest.param("reset", "say when", id="no when"),
        pytest.param("reset=often", "not one of 5%, every:N", id="no such when"),
        pytest.param("reset=every:0", "not one of 5%, every:N", id="every 0"),
        pytest.param("reset=101%", "a chance must be from", id="over 100 %"),
        pytest.param("reset=5", "a chance must be from", id="percent sign forgotten"),
        pytest.param("reset@fetch=5%", "there is no call 'fetch'", id="no such call"),
        pytest.param("429+é=5%", "printable ASCII", id="odd Retry-After"),
    ],
)
def test_a_wrong_fault_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Fault.parse(text)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Fault("reset", every=-1)


@pytest.mark.parametrize(
    "wrong", [{"outage_effect": "boom"}, {"script": ("boom",)}, {"drip_bytes": 0}]
)
def test_wrong_faults_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"boom|drip_bytes"):
        Faults(**wrong)  # type: ignore[arg-type]


def test_every_nth_request_is_struck() -> None:
    assert chosen(Faults.of("500=every:3"), *[LIST] * 7) == [None, None, "500"] * 2 + [None]


def test_the_first_requests_are_struck() -> None:
    assert chosen(Faults.of("500=first:2"), *[LIST] * 4) == ["500", "500", None, None]


def test_chance_strikes_about_as_often_as_said_and_the_same_with_the_same_seed() -> None:
    faults = Faults.of("500=20%")
    struck = chosen(faults, *[LIST] * 1000)
    assert 150 < struck.count("500") < 250
    assert struck == chosen(faults, *[LIST] * 1000)


def test_a_poison_fax_is_struck_at_each_download_and_no_other_call_or_fax_is() -> None:
    targets = [replace(IMAGE, fax_number=number) for number in (1, 2, 2, 3, 4)]
    assert chosen(Faults.of("500=fax:2"), *targets) == [None, "500", "500", None, "500"]
    assert chosen(Faults.of("500=fax:2"), replace(targets[1], call="metadata"), LIST) == [None] * 2


def test_the_trouble_of_a_fax_goes_before_rules_and_leaves_other_calls_alone() -> None:
    faults = Faults.of("503=always")
    troubled = replace(IMAGE, trouble="cut-document")
    assert chosen(faults, troubled, IMAGE) == ["cut-document", "503"]
    assert chosen(Faults(), replace(troubled, call="metadata")) == [None]


def test_a_fault_narrowed_to_a_user_or_fax_strikes_no_other() -> None:
    by_user = Faults((Fault("500", probability=1.0, user_id="u"),))
    assert chosen(by_user, LIST, replace(LIST, user_id="v")) == ["500", None]
    by_fax = Faults((Fault("500", probability=1.0, fax_id="f"),))
    assert chosen(by_fax, IMAGE, replace(IMAGE, fax_id="g"), LIST) == ["500", None, None]


def test_a_script_is_played_once_and_then_rules_apply() -> None:
    faults = replace(Faults.of("503=always"), script=("500", None, "429+7"))
    assert chosen(faults, *[LIST] * 4) == ["500", None, "429", "503"]


def test_a_scripted_status_can_have_a_retry_after() -> None:
    fault = Chooser(Faults(script=("429+7",)), random.Random(1)).choose(LIST)
    assert fault is not None
    assert fault.retry_after == "7"


def test_a_script_waits_for_the_calls_that_it_is_for() -> None:
    faults = Faults(script=("500",), script_calls=frozenset({"image"}))
    assert chosen(faults, LIST, IMAGE, IMAGE) == [None, "500", None]


def test_an_outage_goes_before_everything() -> None:
    faults = replace(Faults.of("500=always"), outage=True, outage_effect="reset")
    assert chosen(faults, LIST, IMAGE) == ["reset", "reset"]


def test_a_later_rule_counts_requests_that_an_earlier_one_has_struck() -> None:
    faults = Faults.of("500=first:1", "503=every:2")
    assert chosen(faults, *[LIST] * 4) == ["500", "503", None, "503"]


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_has_a_description_and_calls_that_it_can_strike(effect: str) -> None:
    assert f"  {effect}: " in describe()
    fault = Fault.parse(f"{effect}=always")
    assert any(fault.concerns(call, "u", "f") for call in CALLS)
