"""The inference engines behind one protocol: vLLM, transformers, and a scripted one for tests."""
