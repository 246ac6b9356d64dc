"""A cluster in the lab with everything going wrong, clients that write down what it told them, and a checker that believes none of it.

`python -m tests.chaos --help`, `make chaos`.
"""
