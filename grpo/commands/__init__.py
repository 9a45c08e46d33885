"""One file a command of the grpo program."""
