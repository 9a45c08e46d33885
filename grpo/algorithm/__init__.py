"""The mathematics of group-relative policy optimisation: pure functions of tensors, and the table that names their combinations.

Nothing here imports torch at run time (the functions call methods of the tensors they are given), so a recipe's algorithm can be looked up
before anything heavy is loaded.
"""

from grpo.algorithm.table import GRPO, TABLE, Algorithm, load_algorithm

__all__ = ["GRPO", "TABLE", "Algorithm", "load_algorithm"]
