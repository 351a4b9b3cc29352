"""Browsing, replaying and discarding dead letters (contract §5, §8)."""
