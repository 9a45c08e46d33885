"""What all stages of a run share: context, prompts, engines, trainers, checkpoints."""
