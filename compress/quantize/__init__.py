"""Quantisation: schemes, fake quantisation, observers, initialisers, sensitivity."""
