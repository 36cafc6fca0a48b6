"""States of prompts' beginnings that were read before, so that a repeated system prompt costs nothing.

A radix tree over tokens: an edge holds the tokens in which a prompt goes on, a node perhaps the snapshot after them.
Bounded in bytes, the least recently used out. Not for several threads at once.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from exlstm.models.lm import LM
from exlstm.models.states.fingerprint import Weights, weights_of
from exlstm.models.states.snapshot import Snapshot

AT_ONCE = 512  # tokens compared at a time


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """entries: states held. bytes: of these and of the tokens. hits, misses: prompts that found a state or none.

    hit_tokens: tokens that did not have to be read; read_tokens: those that had to. evictions: states given up.
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    hit_tokens: int
    read_tokens: int
    evictions: int


@dataclass(eq=False)
class Node:
    """The tokens from its parent to here, and perhaps the snapshot after them."""

    tokens: "array[int]"
    parent: "Node | None" = None
    children: "dict[int, Node]" = field(default_factory=dict)
    snapshot: Snapshot | None = None

    @property
    def nbytes(self) -> int:
        """Of its snapshot and its tokens."""
        return (0 if self.snapshot is None else self.snapshot.nbytes) + len(self.tokens) * self.tokens.itemsize


class PrefixCache:
    """Snapshots of one model by the exact tokens they have read, `max_bytes` at most; see `snapshot_bytes` for one.

    A snapshot larger than that is not kept. min_tokens: where two prompts part, the state is kept only if it saves at
    least so many tokens more than the one before it. A cache belongs to the weights that it met first, until `clear`.
    """

    def __init__(self, max_bytes: int, *, min_tokens: int = 16) -> None:
        if max_bytes < 0 or min_tokens < 1:
            raise ValueError(
                f"max_bytes is {max_bytes} and min_tokens {min_tokens}; they must be at least 0 and at least 1."
            )
        self.max_bytes, self.min_tokens = max_bytes, min_tokens
        self.clear()

    def clear(self) -> None:
        """Forgets everything, the model included."""
        self._root, self._recent = Node(array("i")), OrderedDict[Node, None]()
        self._weights: Weights | None = None
        self._bytes = self._hits = self._misses = self._hit_tokens = self._read_tokens = self._evictions = 0

    def stats(self) -> CacheStats:
        """What it holds, and what it was good for."""
        return CacheStats(
            entries=len(self._recent), bytes=self._bytes, hits=self._hits, misses=self._misses,
            hit_tokens=self._hit_tokens, read_tokens=self._read_tokens, evictions=self._evictions,
        )  # fmt: skip

    def belong_to(self, model: LM) -> None:
        """ValueError if what it holds is of other weights than those that the model has now."""
        if self._weights is None:
            self._weights = weights_of(model)
        elif not self._weights.are_those_of(model):
            raise ValueError(
                "the prefix cache holds states of another model, or of weights that this one had before; "
                "make one cache for each model, or clear() it."
            )

    def find(self, model: LM, tokens: Sequence[int]) -> tuple[Snapshot | None, int, int]:
        """(the longest known beginning's snapshot, its number of tokens, how many tokens are known at all).

        Tokens that are known without a state are those of earlier prompts; there this prompt parts from them, or ends.
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
        """Remembers the snapshot of one row after exactly these tokens. False if it is too large to be kept."""
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

    def _node_at(self, tokens: "array[int]") -> Node:
        """The node after these tokens, made if there is none."""
        node, known = self._root, 0
        while known < len(tokens):
            child = node.children.get(tokens[known])
            if child is None:
                child = node.children[tokens[known]] = Node(tokens[known:], node)
                self._bytes += child.nbytes
                return child
            same = in_common(child.tokens, tokens, known)
            node, known = child if same == len(child.tokens) else split(child, same), known + same
        return node

    def _evict(self, node: Node) -> None:
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
    """How many tokens of an edge agree with `tokens` from `start` on."""
    size = min(len(edge), len(tokens) - start)
    same = 0
    while same < size and edge[same : same + AT_ONCE] == tokens[start + same : start + min(same + AT_ONCE, size)]:
        same = min(same + AT_ONCE, size)
    while same < size and edge[same] == tokens[start + same]:
        same += 1
    return same


def split(node: Node, size: int) -> Node:
    """A new node after the first tokens of an edge; the rest of it goes on from there."""
    assert node.parent is not None
    middle = Node(node.tokens[:size], node.parent, {node.tokens[size]: node})
    node.parent.children[node.tokens[0]] = middle
    node.tokens, node.parent = node.tokens[size:], middle
    return middle
