"""Which words after a number are units, and which of them are the same one?"""

from __future__ import annotations

CURRENCIES = {"$": "dollar", "£": "pound sterling", "€": "euro", "¥": "yen", "₹": "rupee", "₩": "won", "US$": "dollar"}
SAME_UNIT = {
    "percent": ("percent", "percentage", "pct"),
    "degree": ("degree", "degrees", "deg"),
    "radian": ("radian", "radians", "rad"),
    "metre": ("m", "meter", "meters", "metre", "metres"),
    "centimetre": ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    "millimetre": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "kilometre": ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
    "nanometre": ("nm", "nanometer", "nanometers"),
    "inch": ("inch", "inches"),
    "foot": ("ft", "foot", "feet"),
    "yard": ("yd", "yard", "yards"),
    "mile": ("mi", "mile", "miles"),
    "gram": ("g", "gm", "gram", "grams"),
    "kilogram": ("kg", "kilogram", "kilograms"),
    "milligram": ("mg", "milligram", "milligrams"),
    "ounce": ("oz", "ounce", "ounces"),
    "pound": ("lb", "lbs"),
    "ton": ("ton", "tons", "tonne", "tonnes"),
    "litre": ("l", "L", "liter", "liters", "litre", "litres"),
    "millilitre": ("ml", "mL", "milliliter", "milliliters"),
    "second": ("s", "sec", "secs", "second", "seconds"),
    "millisecond": ("ms", "millisecond", "milliseconds"),
    "minute": ("min", "mins", "minute", "minutes"),
    "hour": ("h", "hr", "hrs", "hour", "hours"),
    "day": ("day", "days"),
    "week": ("week", "weeks"),
    "month": ("month", "months"),
    "year": ("yr", "yrs", "year", "years"),
    "mph": ("mph",),
    "dollar": ("dollar", "dollars", "USD", "usd"),
    "cent": ("cent", "cents"),
    "euro": ("euro", "euros", "EUR"),
    "pound sterling": ("GBP",),
    "rupee": ("Rs", "rupee", "rupees", "INR"),
    "yuan": ("yuan", "RMB", "CNY", "元"),
    "yen": ("yen", "JPY"),
    "celsius": ("celsius", "Celsius"),
    "fahrenheit": ("fahrenheit", "Fahrenheit"),
    "newton": ("N", "newton", "newtons"),
    "joule": ("J", "joule", "joules"),
    "kilojoule": ("kJ",),
    "watt": ("W", "watt", "watts"),
    "volt": ("V", "volt", "volts"),
    "hertz": ("Hz", "hertz"),
    "kelvin": ("K", "kelvin"),
    "pascal": ("Pa", "pascal", "pascals"),
    "mole": ("mol", "mole", "moles"),
    "electronvolt": ("eV",),
}
"""A word that is not here names what is counted (apples), and says nothing about the value. Nothing is converted."""
UNITS = {word: unit for unit, words in SAME_UNIT.items() for word in words if len(word) > 1 or not word.isascii()}
UNITS |= {"in": "inch", "units": "unit", "unit": "unit", "square": "square", "sq": "square", "cubic": "cubic", "cu": "cubic"}
ONE_LETTER = {word: unit for unit, words in SAME_UNIT.items() for word in words if len(word) == 1 and word.isascii()}


def unit_of(word: str) -> str | None:
    """The unit that a word means, whatever its spelling; None for words that are none."""
    return UNITS.get(word) or ONE_LETTER.get(word) or (UNITS.get(word.casefold()) if len(word) > 2 else None)
