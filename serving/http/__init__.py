"""An OpenAI-compatible server over `draftgym.serving.batching`."""
