"""More text from the parents themselves: a language model continues the beginnings of given rows.

Prompts are the first tokens of a stretch that begins anywhere in a given row; every further token is drawn at
temperature one. So a few rows are enough, or one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.samples import token_rows
from fxmerge.samples.incremental import Incremental
from fxmerge.training.answers import kind_of
from fxmerge.training.measures import Distributions

Samples = Mapping[str, Tensor]

LONGEST_PROMPT = 0.25
"""Share of a row that a prompt takes at most."""


@dataclass(frozen=True)
class Writer:
    """A parent that says, at every place of a text, how likely every token is to be the next."""

    program: Program
    ids: str
    mask: str | None
    output: str

    @classmethod
    def of(cls, supernet: SuperNet, k: int, samples: Samples) -> Writer | None:
        """Parent k, if it can write; whether later tokens change what it says of earlier ones is tried out."""
        parent, program = supernet.parents[k], supernet.parents[k].shown
        found = [
            port.name
            for port, node in zip(parent.outputs, parent.result, strict=True)
            if (kind := kind_of(supernet, k, node)) is not None and kind.measure is Distributions
        ]
        groups = token_rows.groups({port.name: samples[port.name] for port in program.inputs})
        if len(found) != 1 or len(groups) != 1 or len(groups[0]) != len(program.inputs):
            return None
        layout = token_rows.layout_of(groups[0])
        if {*groups[0]} - {layout.ids, layout.mask}:
            return None
        writer = cls(program, layout.ids, layout.mask, found[0])
        return writer if writer.looks_back(samples[layout.ids]) else None

    def looks_back(self, ids: Tensor) -> bool:
        """Whether other tokens later in a row leave what is said of its first half as it is."""
        row = ids[:1]
        if row.shape[1] < 4:
            return False
        other = row.clone()
        half = row.shape[1] // 2
        other[:, half:] = other[:, half:].flip(1).roll(1, 1) if bool((row[:, half:] != row[:, half]).any()) else 0
        one, two = (self._scores(value)[:, :half] for value in (row, other))
        return bool(torch.allclose(one, two, rtol=1e-3, atol=1e-4 * float(one.abs().max())))

    @torch.no_grad()
    def _scores(self, ids: Tensor) -> Tensor:
        """(rows, tokens, vocabulary) of the next token."""
        inputs = {self.ids: ids}
        if self.mask is not None:
            inputs[self.mask] = torch.ones(ids.shape, dtype=_port(self.program, self.mask).dtype)
        return self.program.run(inputs)[self.output]

    def incremental(self, samples: Samples) -> Incremental | None:
        """The parent a token at a time; None where its rows have one length, or where that gives something else."""
        if not isinstance(_port(self.program, self.ids).shape[1], str):
            return None
        each = Incremental(self.program, self.ids, self.output)
        return each if each.agrees(samples[self.ids][:1].long()) else None

    @torch.no_grad()
    def write(
        self, samples: Samples, rows: int, seed: int, longest: int | None = None, *, each: Incremental | None = None
    ) -> dict[str, Tensor]:
        """Rows as long as the samples' own, by input name, from prompts of so many tokens at most.

        They are written together, faster with `each`: what `incremental` gives.
        """
        generator = torch.Generator().manual_seed(seed)
        given = samples[self.ids]
        layout = token_rows.layout_of({name: samples[name] for name in samples if name in (self.ids, self.mask)})
        length = given.shape[1]
        free = isinstance(_port(self.program, self.ids).shape[1], str)
        text = torch.zeros(rows, length, dtype=given.dtype)
        longest = longest or max(1, int(length * LONGEST_PROMPT))
        which = torch.randint(len(given), (rows,), generator=generator)
        prompts = torch.randint(1, longest + 1, (rows,), generator=generator)
        for row, (source, size) in enumerate(zip(which.tolist(), prompts.tolist(), strict=True)):
            begin, end = int(layout.start[source]), int(layout.end[source])
            size = min(size, end - begin)
            prompts[row] = size
            head = layout.head if size > layout.head else 0
            offset = begin + head + int(torch.randint(max(1, end - begin - size + 1), (1,), generator=generator))
            text[row, :head] = given[source, begin : begin + head]
            text[row, head:size] = given[source, offset : offset + size - head]
        for place in range(1, length):
            if each is not None:
                scores = each.step(text, place - 1)
            elif place < int(prompts.min()):
                continue
            else:
                scores = self._scores(text[:, :place] if free and place > 1 else text)[:, place - 1]
            drawn = torch.multinomial(torch.softmax(scores.float(), -1), 1, generator=generator)[:, 0]
            text[:, place] = torch.where(prompts > place, text[:, place], drawn.to(text.dtype))
        if each is not None:
            each.reset()
        made = {self.ids: text}
        if self.mask is not None:
            made[self.mask] = torch.ones(text.shape, dtype=samples[self.mask].dtype)
        return made


def _port(program: Program, name: str) -> Port:
    return next(port for port in program.inputs if port.name == name)
