"""Continual learning: classes come in experiences, and the model before teaches the model after."""
