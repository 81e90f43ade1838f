"""A day in policy.yaml that is none is told by its setting."""

from __future__ import annotations

import pytest

from sovfed.clients.orders.rules import DataPermit, Standing


@pytest.mark.parametrize("day", ["2027-13-01", "2027-02-30", "soon", "9999-12-31"])
def test_what_is_no_day_is_told_with_its_setting(day: str) -> None:
    with pytest.raises(ValueError, match=rf"permits: expires: '{day}' is no day, expected one as 2027-12-31"):
        DataPermit(expires=day)
    with pytest.raises(ValueError, match=r"orders\.standing\.until: "):
        Standing(until=day)
