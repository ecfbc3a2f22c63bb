"""A judge's attributes, and those that a prompt states."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Final, Literal, Self, TypeAlias

from pydantic import model_validator

from cascade.config.base import Frozen, Width

AttributeName: TypeAlias = Literal["concept", "style", "scene", "colour", "accessory"]

Stated: TypeAlias = Mapping[AttributeName, str]
"""What a picture should show: values of the attributes that are stated, and of no others."""

# Phrases before words: "on a blue background" names a place and no colour. The thing before the
# colour, so that "a red orange" is an orange, and red.
_READING: Final[tuple[AttributeName, ...]] = ("scene", "accessory", "style", "concept", "colour")

# A thing is the last noun: "an orange toy" is no orange, and "a dog house" no dog.
_NOUN_ENDS: Final = re.compile(r"\s*(?:$|,|(?:on|in|at|with|by|under|near|and|\w+ing)\b)")


class Attribute(Frozen):
    """Something that can be told of a picture.

    Attributes:
        words: every value with the phrases that state it, in the order of the judge's answers.
        otherwise: name of the answer that it has none of them; None where a picture always has one.
    """

    words: dict[str, tuple[str, ...]]
    otherwise: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """Everything that a judge can answer."""
        return tuple(self.words) if self.otherwise is None else (*self.words, self.otherwise)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the phrases of all values; of two that begin at one place the longer."""
        phrases = sorted(self._values, key=len, reverse=True)
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})\b")

    def value(self, phrase: str) -> str:
        """Return the value that a phrase of `pattern` states."""
        return self._values[phrase]

    @cached_property
    def _values(self) -> dict[str, str]:
        return {_plain(phrase): value for value, said in self.words.items() for phrase in said}


class JudgeConfig(Frozen):
    """A judge's vocabulary and network.

    Attributes:
        attributes: what it tells.
        widths: channels of the network at 64, 32, 16 and 8 pixels.
    """

    attributes: dict[AttributeName, Attribute]
    widths: tuple[Width, Width, Width, Width] = (32, 64, 128, 192)

    @model_validator(mode="after")
    def _every_value_can_be_stated(self) -> Self:
        for name, attribute in self.attributes.items():
            mute = [value for value, said in attribute.words.items() if not any(said)]
            if mute or not attribute.words:
                raise ValueError(f"{name}: no words for {mute[0] if mute else 'any value'}")
        return self

    @property
    def counts(self) -> dict[AttributeName, int]:
        """The number of answers of each attribute."""
        return {name: len(attribute.answers) for name, attribute in self.attributes.items()}

    def stated(self, prompt: str) -> Stated:
        """Return what a prompt states, by words that the judge knows; case does not matter."""
        text = _plain(prompt)
        found: dict[AttributeName, str] = {}
        for name in _READING:
            attribute = self.attributes.get(name)
            matches = list(attribute.pattern.finditer(text)) if attribute else []
            if name == "concept":
                matches = [match for match in matches if _NOUN_ENDS.match(text, match.end())]
            if attribute and matches:
                last = matches[-1]
                found[name] = attribute.value(last.group())
                # What is read once is not read again, nor do its neighbours become one phrase.
                text = f"{text[: last.start()]},{text[last.end() :]}"
        return found


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
