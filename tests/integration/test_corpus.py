"""Documents by several producers are judged right: whole, cut, with holes, with a head or a tail."""

import pytest

from tests.integration.corpus import judged, table
from tests.integration.produced import PRODUCERS


@pytest.mark.parametrize("name", PRODUCERS)
def test_documents_are_judged_right(name: str) -> None:
    missing = PRODUCERS[name].missing()
    if missing:
        pytest.skip(f"{' and '.join(missing)} cannot be run here")
    judgements = judged(PRODUCERS[name])
    print(table({name: judgements}))  # visible with -s, and when this fails
    assert len([one for one in judgements if one.harm.harm == "whole"]) >= 6
    wrong = [
        (one.sample.name, one.sample.pages, one.harm.harm) for one in judgements if not one.right
    ]
    assert not wrong
