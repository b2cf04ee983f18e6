"""What a right answer is: tasks, verifiers and the statistics of scores."""
