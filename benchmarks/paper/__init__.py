"""The paper's tables: one trial a (preset, method, seed)."""
