"""English phrases with German and Russian translations, composed from the Unicode CLDR through Babel.

Real localized text that needs no network: dates, spans of dates, relative times, measures, rates, amounts of money,
territories, languages and lists of them. Every phrase is rendered for all locales from the same arguments, so the
renderings are translations of each other; CLDR's plural rules decide the forms.
"""

import datetime
import random
from collections.abc import Callable, Iterator

from babel import Locale, dates, lists, numbers, units

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.parallel_text import Row, clean

SOURCE = "en"
TARGETS = ("de", "ru")
PAIRS = tuple(LangPair(SOURCE, target) for target in TARGETS)
PHRASES = 22_000
HELD_OUT = 1_000  # phrases for each of validation and test
SEED = 20220717

Phrase = Callable[[str], str]  # locale -> text


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LOCALES = {code: Locale.parse(code) for code in (SOURCE, *TARGETS)}
_FIRST_DAY = datetime.date(1950, 1, 1)
_DAYS = 36_525
_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800, "month": 2_629_746}
_MEASURES = _words("""
    angle-degree area-acre area-hectare area-square-centimeter area-square-foot area-square-kilometer
    area-square-meter area-square-mile digital-bit digital-byte digital-gigabyte digital-kilobyte digital-megabyte
    digital-terabyte duration-century duration-day duration-hour duration-microsecond duration-millisecond
    duration-minute duration-month duration-second duration-week duration-year electric-ampere electric-ohm
    electric-volt energy-joule energy-kilocalorie energy-kilojoule energy-kilowatt-hour frequency-gigahertz
    frequency-hertz frequency-kilohertz frequency-megahertz length-astronomical-unit length-centimeter length-foot
    length-inch length-kilometer length-light-year length-meter length-mile length-millimeter length-nanometer
    length-nautical-mile length-yard light-lux mass-carat mass-gram mass-kilogram mass-milligram mass-ounce
    mass-pound mass-tonne power-gigawatt power-horsepower power-kilowatt power-megawatt power-watt
    pressure-hectopascal pressure-millibar speed-kilometer-per-hour speed-knot speed-meter-per-second
    speed-mile-per-hour temperature-celsius temperature-fahrenheit temperature-kelvin volume-barrel
    volume-centiliter volume-cubic-centimeter volume-cubic-kilometer volume-cubic-meter volume-cup volume-deciliter
    volume-gallon volume-liter volume-milliliter volume-pint volume-teaspoon
""")
_RATE_OF = ("gram", "kilogram", "liter", "milligram", "milliliter", "kilometer", "meter", "megabyte", "kilowatt")
_RATE_PER = ("second", "minute", "hour", "day", "week", "month", "year", "square-meter", "liter", "kilogram")
_CURRENCIES = _words("""
    AED ARS AUD BGN BRL CAD CHF CLP CNY CZK DKK EGP EUR GBP GEL HKD HUF IDR ILS INR ISK JPY KRW KZT MAD MXN MYR NGN
    NOK NZD PEN PHP PLN RON RSD SAR SEK SGD THB TRY TWD UAH USD UZS VND ZAR
""")


def _known_to_all(names: str) -> list[str]:
    """Codes of `territories` or `languages` that every locale has a name for, in a fixed order."""
    tables = [getattr(locale, names) for locale in _LOCALES.values()]
    return sorted(set.intersection(*(set(table) for table in tables)))


_TERRITORIES = _known_to_all("territories")
_LANGUAGES = _known_to_all("languages")


def _day(rng: random.Random) -> datetime.date:
    return _FIRST_DAY + datetime.timedelta(days=rng.randrange(_DAYS))


def _amount(rng: random.Random) -> float:
    """Mostly small whole numbers (the plural forms differ there), sometimes one decimal or thousands."""
    kind = rng.random()
    if kind < 0.6:
        return rng.randint(1, 100)
    if kind < 0.8:
        return rng.randint(1, 999) / 10
    return rng.randint(101, 9_999)


def date(rng: random.Random) -> Phrase:
    day, style = _day(rng), rng.choice(("full", "long"))
    return lambda locale: dates.format_date(day, style, locale=locale)


def date_span(rng: random.Random) -> Phrase:
    start = _day(rng)
    end = start + datetime.timedelta(days=rng.randint(1, 60))
    return lambda locale: dates.format_interval(start, end, "yMMMd", locale=locale)


def relative_time(rng: random.Random) -> Phrase:
    unit = rng.choice(list(_SECONDS))
    seconds = rng.choice((-1, 1)) * rng.randint(1, 120) * _SECONDS[unit]
    # This threshold keeps the unit that was drawn, so that there are also 30 days and 90 minutes.
    return lambda locale: dates.format_timedelta(seconds, unit, threshold=1e9, add_direction=True, locale=locale)


def measure(rng: random.Random) -> Phrase:
    value, unit = _amount(rng), rng.choice(_MEASURES)
    return lambda locale: units.format_unit(value, unit, locale=locale)


def rate(rng: random.Random) -> Phrase:
    value, of, per = _amount(rng), rng.choice(_RATE_OF), rng.choice(_RATE_PER)
    return lambda locale: units.format_compound_unit(value, of, denominator_unit=per, locale=locale)


def money(rng: random.Random) -> Phrase:
    value, currency = _amount(rng), rng.choice(_CURRENCIES)
    return lambda locale: numbers.format_currency(
        value, currency, format_type="name", locale=locale, currency_digits=False, decimal_quantization=False
    )


def territory(rng: random.Random) -> Phrase:
    code = rng.choice(_TERRITORIES)
    return lambda locale: _LOCALES[locale].territories[code]


def language(rng: random.Random) -> Phrase:
    code = rng.choice(_LANGUAGES)
    return lambda locale: _LOCALES[locale].languages[code]


def list_of(item: Callable[[random.Random], Phrase]) -> Callable[[random.Random], Phrase]:
    """Two to four phrases of one kind, joined by "and" or "or"."""

    def sample(rng: random.Random) -> Phrase:
        items = [item(rng) for _ in range(rng.randint(2, 4))]
        style = rng.choice(("standard", "or"))
        return lambda locale: lists.format_list([render(locale) for render in items], style, locale)

    return sample


# How often each kind is drawn; small kinds run out of new phrases and are filled up by the large ones.
KINDS: dict[Callable[[random.Random], Phrase], int] = {
    date: 20,
    date_span: 10,
    relative_time: 10,
    measure: 20,
    rate: 10,
    money: 15,
    territory: 5,
    language: 5,
    list_of(territory): 15,
    list_of(language): 10,
    list_of(measure): 5,
}


def phrases(count: int = PHRASES, seed: int = SEED) -> list[dict[str, str]]:
    """`count` phrases as {locale: text}, the same on every call; in no language do two of them read the same."""
    rng = random.Random(seed)
    seen: dict[str, set[str]] = {code: set() for code in _LOCALES}
    found = []
    while len(found) < count:
        (sample,) = rng.choices(list(KINDS), list(KINDS.values()))
        render = sample(rng)
        texts = {code: clean(render(code)) for code in _LOCALES}
        if all(text and text not in seen[code] for code, text in texts.items()):
            for code, text in texts.items():
                seen[code].add(text)
            found.append(texts)
    # Small kinds come early in the order of drawing; the splits need their share of all kinds.
    rng.shuffle(found)
    return found


def rows(pair: LangPair, texts: list[dict[str, str]]) -> Iterator[Row]:
    """The rows of one pair: HELD_OUT test phrases, HELD_OUT validation phrases, the rest for training."""
    for number, phrase in enumerate(texts):
        split = "test" if number < HELD_OUT else "valid" if number < 2 * HELD_OUT else "train"
        yield split, phrase[pair.source], phrase[pair.target]
