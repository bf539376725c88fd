"""Evaluation over datasets: which pairs, which methods, the table, the plot, and what is wrong with a folder."""
