"""Dead letters: looked at, replayed, discarded (contract §5, §8)."""
