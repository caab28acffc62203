"""The one place where text becomes token ids and back.

A prompt is the chat template around one user turn, ready for the model's answer, with one BOS where the model
has one: the template's, or the tokenizer's own where the template writes none. No system turn is ever sent; what a
template puts in place of one belongs to the prompt. Text from outside is tokenised with special tokens split, so
that turn markers written by a user stay text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gemma_alignment.errors import UserError

_USER = "\x01user\x01"
_MODEL = "\x01model\x01"
_AGAIN = "\x01again\x01"


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
        return self._with_bos(self._markup(before)), self._markup(after), self._markup(ending)

    @cached_property
    def _next_turn(self) -> list[int]:
        """The markup between the end of an answer and the next turn of the user."""
        turns = zip(("user", "assistant", "user"), (_USER, _MODEL, _AGAIN), strict=True)
        said = [{"role": role, "content": text} for role, text in turns]
        between = self.tokenizer.apply_chat_template(said, tokenize=False).split(_MODEL)[1].split(_AGAIN)[0]
        answered = self.tokenizer.apply_chat_template(said[:2], tokenize=False).split(_MODEL)[1]
        return self._markup(between.removeprefix(answered))

    def _with_bos(self, ids: list[int]) -> list[int]:
        """``ids`` with the BOS that the tokenizer itself would put in front, where the template wrote none."""
        bos = self.tokenizer.bos_token_id
        own = bos is not None and list(self.tokenizer.encode(""))[:1] == [bos]
        return [bos, *ids] if own and bos not in ids else ids

    def _markup(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text.strip(), add_special_tokens=False, split_special_tokens=True))

    @cached_property
    def ending_id(self) -> int:
        """The token that closes a response: the first special one that the template puts after it, else EOS.

        Raises:
            UserError: for a template without such a token and a tokenizer without EOS.
        """
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        eos = self.tokenizer.eos_token_id
        closing = next((token for token in self._frame[2] if token in special), eos)
        if closing is None:
            raise UserError(
                "The chat template puts no special token after an answer and the tokenizer has no EOS token: "
                "nothing would ever end a response. Give the tokenizer an eos_token."
            )
        return int(closing)

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
        ids: list[int] = []
        for i, turn in enumerate(turns):
            opening = self._next_turn if i else before
            ids += [*self._text(turn), *ending] if i % 2 else [*opening, *self._text(turn), *after]
        return ids

    def decode_response(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the tokens that steer."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
