"""Options that name something for each language pair: `en-de=PATH,en-ru=PATH`."""

from ..errors import UserError


def parse_by_pair(flag: str, text: str, lang_pairs: list[str]) -> dict[str, str]:
    """What the option's text says of each pair.

    Args:
        flag: the option, for messages.
        text: `en-de=PATH,en-ru=PATH:PATH2`.
        lang_pairs: that are trained.

    Raises:
        UserError: not in that form, a pair that is not trained, or one named twice.
    """
    paths: dict[str, str] = {}
    for entry in text.split(","):
        pair, _, path = entry.strip().partition("=")
        if not pair or not path:
            raise UserError(f"{flag}: cannot read `{entry}`; write PAIR=PATH, as in en-de=results/en-de/one")
        if pair not in lang_pairs:
            raise UserError(f"{flag} names {pair}, which is not among --lang-pairs {','.join(lang_pairs)}")
        if pair in paths:
            raise UserError(f"{flag} names {pair} twice; name it once (--teachers: an ensemble is joined by ':')")
        paths[pair] = path
    return paths
