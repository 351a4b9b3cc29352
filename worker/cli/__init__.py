"""The command line (contract §8): one file for each command."""
