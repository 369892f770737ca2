"""A seeded mutator of small scans.

Seeds.py (what is changed), mutate*.py (how), judge.py (what became of it).
"""
