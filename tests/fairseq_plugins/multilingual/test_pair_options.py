"""Options that name something for each language pair."""

import pytest

from fairseq_plugins.errors import UserError
from fairseq_plugins.multilingual.pair_options import parse_by_pair

PAIRS = ["en-de", "en-ru"]


def test_each_pair_has_what_stands_after_its_first_equals_sign():
    assert parse_by_pair("--teachers", "en-de=a=b, en-ru=c:d", PAIRS) == {"en-de": "a=b", "en-ru": "c:d"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("en-de", "cannot read `en-de`"),
        ("en-de=", "cannot read `en-de=`"),
        ("en-de=a,,", "cannot read ``"),
        ("en-xx=a", "names en-xx, which is not among --lang-pairs en-de,en-ru"),
        ("en-de=a,en-de=b", "names en-de twice"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_option(text, said):
    with pytest.raises(UserError, match="--teacher-outputs") as refused:
        parse_by_pair("--teacher-outputs", text, PAIRS)
    assert said in str(refused.value)
