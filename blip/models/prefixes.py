"""The distinct prefixes of many texts: where texts begin alike, a decoder reads the beginning once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Prefixes:
    """A forest of the M prefixes of texts, a tree for each of B memories, as a decoder reads them.

    A prefix is named by its index. The shortest come first: 0 to B - 1 are the first tokens. The
    whole texts are not among them, since nothing follows their last token.

    Attributes:
        token_ids: Of prefixes of 1, 2, ... tokens: (m,) the last token of each.
        paths: Of prefixes of 1, 2, ... tokens: (m, 1), (m, 2), ... the prefixes of each, the
            shortest first, itself last.
        before: (T, L - 1) the prefix that each token of a text but the first follows; 0 where the
            text has no such token.
        columns: (B, S) the prefixes of a memory, and any to fill up.
        slots: (M,) where each prefix stands in the flattened `columns`.
    """

    token_ids: list[Tensor]
    paths: list[Tensor]
    before: Tensor
    columns: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> "Prefixes":
        """Copy to a device."""
        return Prefixes(
            [ids.to(device) for ids in self.token_ids],
            [path.to(device) for path in self.paths],
            *(index.to(device) for index in (self.before, self.columns, self.slots)),
        )

    def by_memory(self, hidden: Tensor) -> Tensor:
        """Bring (M, 1, W) of prefixes to (B, S, W), those of a memory together."""
        return hidden[:, 0][self.columns]

    def in_order(self, hidden: Tensor) -> Tensor:
        """Bring (B, S, W) back to (M, 1, W)."""
        return hidden.flatten(0, 1)[self.slots, None]


def find_prefixes(
    token_ids: Tensor, mask: Tensor, memory_index: Tensor, num_memories: int, start: int
) -> Prefixes:
    """Find the distinct prefixes of T texts, on the host.

    Args:
        token_ids: (T, L) with padding on the right.
        mask: (T, L), nonzero at tokens, of which each text has two at least.
        memory_index: (T,) the memory of each text.
        num_memories: B.
        start: What the first token of all texts is read as.
    """
    last = mask.bool().sum(dim=1) - 1
    count, vocab_size = num_memories, int(token_ids.max()) + 1
    levels, paths = [token_ids.new_full((count,), start)], [torch.arange(count)[:, None]]
    before = torch.zeros(len(token_ids), token_ids.shape[1] - 1, dtype=torch.int64)
    before[:, 0] = memory_index
    for place in range(1, int(last.max())):
        rows = (last > place).nonzero()[:, 0]
        # Two prefixes are one where they follow one prefix with one token.
        keys = before[rows, place - 1] * vocab_size + token_ids[rows, place]
        distinct, which = torch.unique(keys, return_inverse=True)
        before[rows, place] = count + which
        shorter = distinct // vocab_size
        earlier = paths[-1][shorter - (count - len(paths[-1]))]
        own = torch.arange(count, count + len(distinct))
        paths.append(torch.cat([earlier, own[:, None]], dim=1))
        levels.append(distinct % vocab_size)
        count += len(distinct)
    memory = torch.cat([path[:, 0] for path in paths])
    sizes = memory.bincount(minlength=num_memories)
    grouped = memory.argsort(stable=True)
    columns = pad_sequence(list(torch.split(grouped, sizes.tolist())), batch_first=True)
    taken = torch.arange(columns.shape[1]) < sizes[:, None]
    slots = torch.empty(count, dtype=torch.int64)
    slots[columns[taken]] = taken.flatten().nonzero()[:, 0]
    return Prefixes(levels, paths, before, columns, slots)
