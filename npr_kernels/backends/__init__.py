"""The backends that compute the operators: one adapter file each says what it can serve, and `registry` chooses."""
