"""Training of GPT-2 and LLaMA with any attention variant, on one device or a pod."""
