"""Forms of our own pages: each answered once, and not for ever."""

from __future__ import annotations

from sovfed.federation.host.forms import FORM_S, HANDED_OUT, Forms


def test_a_form_is_answered_once_and_only_while_it_is_new() -> None:
    now = [0.0]
    forms = Forms[str](lambda: now[0])
    token, old = forms.hand_out("order 1"), forms.hand_out("order 2")
    assert token != old and len(token) >= 43  # 256 bits
    assert forms.take(token) == "order 1"
    assert forms.take(token) is None and forms.take("") is None and forms.take("x" * 10_000) is None
    now[0] = FORM_S + 1
    assert forms.take(old) is None


def test_forms_that_nobody_answers_are_forgotten_the_oldest_first() -> None:
    forms = Forms[int]()
    tokens = [forms.hand_out(number) for number in range(HANDED_OUT + 2)]
    assert [forms.take(token) for token in tokens] == [None, None, *range(2, HANDED_OUT + 2)]
