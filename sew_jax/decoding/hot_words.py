"""Words and phrases that beam search favours: what each step of a hypothesis adds to its score.

A hypothesis gets the boost for each word of a phrase, wherever the whole phrase stands in it. So that the search does
not drop it before, part of that comes early, as the phrase begins, and is taken back where it goes on otherwise
(contextual biasing with failure arcs: Zhao et al. 2019, "Shallow-Fusion End-to-End Contextual Biasing"). Free of JAX.
"""

import collections
from collections.abc import Mapping, Sequence


class HotPhrases:
    """An automaton (Aho and Corasick 1975) over labels: ids of words, or of symbols. State 0 is the beginning.

    Args:
      phrases: labels of each, and what it is worth where it stands.
      lead: labels that each begins with, for which nothing comes early.
    """

    def __init__(self, phrases: Mapping[Sequence[int], float], lead: int = 0):
        self._next: list[dict[int, int]] = [{}]
        self._worth, self._early = [0.0], [0.0]  # of phrases that end in a state; of the one that may come
        self._back = [0]  # the state of the longest end of what was read that is another phrase's beginning
        for labels, worth in phrases.items():
            state = 0
            for read, label in enumerate(labels, 1):
                if label not in self._next[state]:
                    self._next[state][label] = len(self._next)
                    self._next.append({})
                    for values in (self._worth, self._early):
                        values.append(0.0)
                    self._back.append(0)
                state = self._next[state][label]
                if lead < read < len(labels):
                    early = worth * (read - lead) / (len(labels) - lead)
                    self._early[state] = max(self._early[state], early, key=abs)
            self._worth[state] += worth
        waiting = collections.deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            back = self._back[state]
            self._worth[state] += self._worth[back]
            self._early[state] = max(self._early[state], self._early[back], key=abs)
            for label, following in self._next[state].items():
                self._back[following] = self._go(back, label)
                waiting.append(following)

    def step(self, state: int, label: int) -> tuple[int, float]:
        """The state after a label, and what it adds: all phrases that it ends, and the change of what came early."""
        following = self._go(state, label)
        return following, self._worth[following] + self._early[following] - self._early[state]

    def finish(self, state: int) -> float:
        """What the end adds: what came early for a phrase that never came is taken back."""
        return -self._early[state]

    def _go(self, state: int, label: int) -> int:
        while label not in self._next[state]:
            if not state:
                return 0
            state = self._back[state]
        return self._next[state][label]
