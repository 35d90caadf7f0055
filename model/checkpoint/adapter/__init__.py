"""LoRA adapters as PEFT saves them: config and tensor names, without torch."""
