"""What a teacher brings: each config over several seeds, every run paired with its control of the
same seed.
"""
