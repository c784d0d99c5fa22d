"""Figures, each as a ratio beside its reference in one run."""
