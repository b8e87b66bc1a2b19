"""The models SGLang may serve here (SGLANG_EXTERNAL_MODEL_PACKAGE): one file imported instead of 240."""
