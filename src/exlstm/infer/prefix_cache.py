"""Prefix cache: snapshots of beginnings of prompts, so that a repeated system prompt is read once.

A radix tree over tokens: an edge holds a run of tokens, a node perhaps the snapshot after them. Bounded in bytes; the
least recently used snapshots are evicted. For one thread.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from exlstm.models.lm import LM
from exlstm.models.states.fingerprint import Weights, weights_of
from exlstm.models.states.snapshot import Snapshot

SPAN = 512  # tokens compared at a time


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Statistics of a prefix cache.

    entries: snapshots held. bytes: of these and of the tokens. hits, misses: prompts with and without a snapshot.
    hit_tokens, read_tokens: tokens of prompts that were found, and those that were not. evictions: snapshots evicted.
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    hit_tokens: int
    read_tokens: int
    evictions: int


@dataclass(eq=False)
class PrefixNode:
    """PrefixNode of the radix tree: the tokens from its parent to it, and perhaps the snapshot after them."""

    tokens: "array[int]"
    parent: "PrefixNode | None" = None
    children: "dict[int, PrefixNode]" = field(default_factory=dict)
    snapshot: Snapshot | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its snapshot and its tokens."""
        return (0 if self.snapshot is None else self.snapshot.nbytes) + len(self.tokens) * self.tokens.itemsize


class PrefixCache:
    """Snapshots of one model by the tokens they have read, at most `max_bytes`; see `snapshot_bytes` for one.

    min_tokens: where two prompts diverge, a snapshot is stored only if it saves at least so many tokens more than the
    one before it. A snapshot larger than max_bytes is not stored. A cache belongs to the first weights it is used with,
    until `clear`.
    """

    def __init__(self, max_bytes: int, *, min_tokens: int = 16) -> None:
        if max_bytes < 0 or min_tokens < 1:
            raise ValueError(
                f"max_bytes is {max_bytes} and min_tokens {min_tokens}; they must be at least 0 and at least 1."
            )
        self.max_bytes, self.min_tokens = max_bytes, min_tokens
        self.clear()

    def clear(self) -> None:
        """Removes all snapshots and statistics, and forgets the weights."""
        self._root, self._recent = PrefixNode(array("i")), OrderedDict[PrefixNode, None]()
        self._weights: Weights | None = None
        self._bytes = self._hits = self._misses = self._hit_tokens = self._read_tokens = self._evictions = 0

    def stats(self) -> CacheStats:
        """Size, hits and misses since the cache was made or cleared."""
        return CacheStats(
            entries=len(self._recent), bytes=self._bytes, hits=self._hits, misses=self._misses,
            hit_tokens=self._hit_tokens, read_tokens=self._read_tokens, evictions=self._evictions,
        )  # fmt: skip

    def belong_to(self, model: LM) -> None:
        """ValueError if its snapshots are of other weights than those that the model has now."""
        if self._weights is None:
            self._weights = weights_of(model)
        elif not self._weights.match(model):
            raise ValueError(
                "the prefix cache holds states of another model, or of weights that this one had before; "
                "make one cache for each model, or clear() it."
            )

    def find(self, model: LM, tokens: Sequence[int]) -> tuple[Snapshot | None, int, int]:
        """(snapshot of the longest stored beginning, its number of tokens, number of tokens in the tree).

        Tokens in the tree beyond the snapshot are those of earlier prompts, from which this prompt then diverges.
        """
        self.belong_to(model)
        wanted = array("i", tokens)
        node, known, best, held = self._root, 0, None, 0
        while known < len(wanted) and (child := node.children.get(wanted[known])) is not None:
            same = in_common(child.tokens, wanted, known)
            known += same
            if same < len(child.tokens):
                break
            node = child
            if node.snapshot is not None:
                best, held = node, known
        if best is not None:
            self._recent.move_to_end(best)
        self._hits, self._misses = self._hits + (best is not None), self._misses + (best is None)
        self._hit_tokens, self._read_tokens = self._hit_tokens + held, self._read_tokens + len(wanted) - held
        return None if best is None else best.snapshot, held, known

    def keep(self, tokens: Sequence[int], snapshot: Snapshot) -> bool:
        """Stores the snapshot of one row after exactly these tokens. False if it is too large."""
        if len(snapshot) != 1 or snapshot.counts != (len(tokens),) or not tokens:
            raise ValueError(
                f"a snapshot of {snapshot.counts} tokens cannot be kept for {len(tokens)}; pass one row and its tokens."
            )
        if self._weights is None:
            self._weights = snapshot.weights
        elif snapshot.weights is not self._weights and snapshot.weights.fingerprint() != self._weights.fingerprint():
            raise ValueError("the snapshot is of another model than those in the prefix cache; make a cache for each.")
        if snapshot.nbytes + len(tokens) * self._root.tokens.itemsize > self.max_bytes:
            return False
        node = self._node_at(array("i", tokens))
        self._bytes -= node.nbytes
        node.snapshot = snapshot
        self._bytes += node.nbytes
        self._recent[node] = None
        self._recent.move_to_end(node)
        while self._bytes > self.max_bytes:
            self._evict(next(iter(self._recent)))
        return True

    def _node_at(self, tokens: "array[int]") -> PrefixNode:
        """PrefixNode after these tokens, new if there is none."""
        node, known = self._root, 0
        while known < len(tokens):
            child = node.children.get(tokens[known])
            if child is None:
                child = node.children[tokens[known]] = PrefixNode(tokens[known:], node)
                self._bytes += child.nbytes
                return child
            same = in_common(child.tokens, tokens, known)
            node, known = child if same == len(child.tokens) else split(child, same), known + same
        return node

    def _evict(self, node: PrefixNode) -> None:
        del self._recent[node]
        self._evictions += 1
        self._bytes -= node.nbytes
        node.snapshot = None
        self._bytes += node.nbytes
        while node.parent is not None and node.snapshot is None and not node.children:
            self._bytes -= node.nbytes
            del node.parent.children[node.tokens[0]]
            node = node.parent


def in_common(edge: "array[int]", tokens: "array[int]", start: int) -> int:
    """Number of tokens of an edge that agree with `tokens` from `start` on."""
    size = min(len(edge), len(tokens) - start)
    same = 0
    while same < size and edge[same : same + SPAN] == tokens[start + same : start + min(same + SPAN, size)]:
        same = min(same + SPAN, size)
    while same < size and edge[same] == tokens[start + same]:
        same += 1
    return same


def split(node: PrefixNode, size: int) -> PrefixNode:
    """A new node after the first `size` tokens of an edge, with the rest of the edge below it."""
    assert node.parent is not None
    middle = PrefixNode(node.tokens[:size], node.parent, {node.tokens[size]: node})
    node.parent.children[node.tokens[0]] = middle
    node.tokens, node.parent = node.tokens[size:], middle
    return middle
