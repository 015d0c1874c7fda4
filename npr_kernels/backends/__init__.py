"""What can compute the operators: `registry` chooses, one adapter file a backend says what it can serve."""
