"""The scores of the paper's benchmarks, as their official tools compute them: numbers and texts in, numbers out."""
