"""The one place where text becomes token ids and back.

A prompt is the chat template around one user turn, one BOS, ready for the model's answer. Text from
outside is tokenised with special tokens split, so that turn markers written by a user stay text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_USER = "\x01user\x01"
_MODEL = "\x01model\x01"


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, seen as four pieces: before, after, ending and stop ids."""

    tokenizer: Any
    extra_stop_ids: tuple[int, ...] = ()
    """Stop tokens named by the model's generation config."""

    @cached_property
    def _frame(self) -> tuple[list[int], list[int], list[int]]:
        turn = [{"role": "user", "content": _USER}]
        asked = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        answered = self.tokenizer.apply_chat_template(
            [*turn, {"role": "assistant", "content": _MODEL}], tokenize=False
        )
        before, after = asked.split(_USER)
        ending = answered.split(_MODEL)[1]
        return self._markup(before), self._markup(after), self._markup(ending)

    def _markup(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text.strip(), add_special_tokens=False, split_special_tokens=True))

    @cached_property
    def ending_id(self) -> int:
        """The token that closes a response: the first that the template puts after it, else EOS."""
        ending = self._frame[2]
        return int(ending[0]) if ending else int(self.tokenizer.eos_token_id)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends a response."""
        eos = self.tokenizer.eos_token_id
        return tuple(sorted({self.ending_id, *self.extra_stop_ids, *([eos] if eos is not None else [])}))

    @cached_property
    def pad_id(self) -> int:
        """What fills empty positions; masks, never ids, say what is real."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.stop_ids[0]

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of a user turn, BOS first, ending where the model's answer begins."""
        before, after, _ = self._frame
        return [*before, *self._text(prompt), *after]

    def encode_response(self, response: str) -> list[int]:
        """The ids of an answer with its ending token."""
        return [*self._text(response), self.ending_id]

    def encode_dialogue(self, turns: Sequence[str]) -> list[int]:
        """The ids of user and model turns in alternation, one BOS, from a user's turn on."""
        before, after, ending = self._frame
        bos = self.tokenizer.bos_token_id
        ids: list[int] = []
        for i, turn in enumerate(turns):
            opening = before[1:] if i and before[:1] == [bos] else before
            ids += [*self._text(turn), *ending] if i % 2 else [*opening, *self._text(turn), *after]
        return ids

    def decode_response(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the tokens that steer."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
