"""Further strategies: schedules, parameter subsets, surgical fine-tuning and LoRA."""
