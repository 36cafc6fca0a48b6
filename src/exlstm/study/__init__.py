"""Many runs as one question: what is compared, what executes the runs, and what their rows say."""
