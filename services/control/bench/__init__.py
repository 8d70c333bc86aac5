"""`headrace bench`: how fast steps are collected and trained on, beside the machine's limit, as tables and JSON.

Needs nothing but Headrace's own dependencies. What compares with other libraries is `benchmarks/`, which imports this.
"""
