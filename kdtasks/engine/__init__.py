"""Where strings become objects and steps become runs (on mmengine)."""
