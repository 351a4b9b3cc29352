"""Bulk jobs: a file of registrations goes in, a line about each row comes out (contract §8, `submit`)."""
