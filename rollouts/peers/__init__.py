"""Other engines that write the same prompts in the same run: llama.cpp, transformers, OpenVINO."""
