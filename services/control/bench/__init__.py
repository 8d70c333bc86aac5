"""`headrace bench`: how fast steps are collected and trained on, beside the machine's limit, as tables and JSON.

Needs what `headrace train` needs, and py-spy for --profile. What compares with other libraries is `benchmarks/`, which
imports this.
"""
