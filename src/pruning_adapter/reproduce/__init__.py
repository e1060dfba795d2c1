"""The paper, reproduced: a grid of runs, and the tables and figures that it gives."""
