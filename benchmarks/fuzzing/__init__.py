"""A seeded mutator of small scans.

seeds.py (what is changed), mutate*.py (how), judge.py (what became of it).
"""
