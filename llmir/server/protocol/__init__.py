"""The JSON that comes in and goes out: OpenAI's names, and vLLM's for what OpenAI has not."""
