import pytest

from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.user_error import UserError


def test_pairs_are_read_in_the_order_given():
    assert parse_pairs("en-de,ru-en,zh_CN-en") == [("en", "de"), ("ru", "en"), ("zh_CN", "en")]
    assert str(LangPair("en", "de")) == "en-de"


@pytest.mark.parametrize("text", ["", "en", "en-", "en-en", "en-de-fr", "en-de,", "en de", "../x-de"])
def test_anything_but_two_different_languages_is_refused(text):
    with pytest.raises(UserError, match="is not of the form source-target; give pairs such as en-de,en-ru"):
        parse_pairs(text)


def test_a_pair_named_twice_is_refused():
    with pytest.raises(UserError, match="'en-de' is named twice"):
        parse_pairs("en-de,en-ru,en-de")
