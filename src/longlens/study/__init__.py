"""The claims of the paper and of the lecture: correlations, ablations, published numbers, experiments to repeat."""
